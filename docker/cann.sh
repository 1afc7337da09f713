# shellcheck shell=bash
# Sourced in the image: finds CANN whatever its directory is called in this 8.x release, and makes its environment.

# $1: name; $2: exit code, both of scripts/ascendet/errors.py; $3: what; $4: the next thing to do
fail() {
    printf 'error[%s]: %s\n  next:     %s\n' "$1" "$3" "$4" >&2
    exit "$2"
}

# $1: script; others: its arguments. CANN's scripts read unset variables and care for no exit codes inside.
source_script() {
    local options status=0
    options=$(set +o)
    set +eu
    # shellcheck disable=SC1090
    source "$@" >&2 || status=$?
    eval "$options"
    ((status == 0)) || fail npu-missing 23 "$1 fails with exit code $status" "bash -x $1"
}

load_cann() {
    local home ascend=/usr/local/Ascend
    for home in "${ASCEND_HOME_PATH:-$ascend/cann}" "$ascend/cann" "$ascend"/cann-* "$ascend/ascend-toolkit/latest" ''; do
        [[ ! -e $home/lib64/libascendcl.so ]] || break
    done
    [[ -n $home ]] || fail npu-missing 23 "there is no CANN in $ascend" 'make image: its base must be a CANN image'
    if [[ -e $home/set_env.sh ]]; then
        source_script "$home/set_env.sh"
    else
        source_script "${home%/*}/set_env.sh" # older releases keep it beside the tree
    fi
    export ASCEND_HOME_PATH=${ASCEND_HOME_PATH:-$home}
    # Named, because ATB's script imports torch to find out otherwise. All torch since 2.7 has the C++11 ABI.
    [[ ! -e $ascend/nnal/atb/set_env.sh ]] || source_script "$ascend/nnal/atb/set_env.sh" --cxx_abi=1
}

is_simulated() {
    [[ -e $ASCEND_HOME_PATH/lib64/libcann_sim_compute.so ]]
}
