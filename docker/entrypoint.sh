#!/usr/bin/env bash
# The image's entry point: makes CANN's environment, checks that the devices can be used, becomes the command.
# Exit codes 23, 88, 89: no device, no permission, no driver; others are the command's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cann.sh
source "${BASH_SOURCE[0]%/*}/cann.sh"

# Devices as the host gives them: a group that this user lacks looks like "0 devices" to every program.
check_devices() {
    local node
    local -a nodes=(/dev/davinci[0-9]*)
    [[ -e ${nodes[0]} ]] || fail npu-missing 23 'no NPU was given to this container' \
        "make plan-run shows the options that docker needs (--device /dev/davinci0 …)"
    for node in "${nodes[@]}" /dev/davinci_manager /dev/devmm_svm /dev/hisi_hdc; do
        [[ -e $node ]] || fail npu-missing 23 "$node was not given to this container" "docker run --device $node"
        [[ -r $node && -w $node ]] || fail device-permission 88 \
            "$(id) may not use $node, which is for $(stat --format='uid %u, gid %g, mode %a' "$node")" \
            "docker run --group-add $(stat --format=%g "$node") (the host's HwHiAiUser)"
    done
    [[ -e /usr/local/Ascend/driver/lib64 ]] || fail driver-missing 89 'the NPU driver was not given to this container' \
        'docker run --volume /usr/local/Ascend/driver/lib64:/usr/local/Ascend/driver/lib64:ro'
}

load_cann
# The simulated CANN has devices of its own, unless the host's are given: then they are held to the same rules.
{ is_simulated && ! compgen -G '/dev/davinci*' >/dev/null; } || check_devices
exec "$@"
