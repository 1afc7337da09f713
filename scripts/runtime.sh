# shellcheck shell=bash
# Sourced by train.sh and eval.sh: the one place for the run time's settings. What the caller has set is kept; what is
# used is printed.

# $1: name; $2: value unless the caller has set one
default() {
    [[ -v $1 ]] || printf -v "$1" '%s' "$2"
    export "${1?}"
    printf 'runtime: %s=%s\n' "$1" "${!1}"
}

# $1: number of ranks on this machine
set_runtime() {
    local ranks=$1
    local threads=$(($(nproc) / ranks))
    default OMP_NUM_THREADS "$((threads > 0 ? threads : 1))" # ranks share the cores instead of fighting for them
    # torch_npu submits operators from its own thread. A simulated device computes on the host's cores: there is nothing
    # to overlap with, and the queue's threads poll (measured: a fifth of a core per rank).
    case ${ASCEND_HOME_PATH:-} in
        */cann_sim/*) default TASK_QUEUE_ENABLE 0 ;;
        *) default TASK_QUEUE_ENABLE 1 ;;
    esac
    default PYTORCH_NPU_ALLOC_CONF expandable_segments:True  # images of many sizes fragment fixed segments
    default HCCL_CONNECT_TIMEOUT 600                         # seconds; the first rank may still compile operators
    default HCCL_EXEC_TIMEOUT 1836                           # seconds; rank 0 writes checkpoints while others wait
    default PYTHONUNBUFFERED 1                               # progress appears when it happens
}

# Start a program once per device, on a free port of this machine.
# $1: devices, such as 6,7; $2: program; others: its arguments
launch() {
    local devices=$1
    shift
    local -a ids
    IFS=, read -r -a ids <<<"$devices"
    set_runtime "${#ids[@]}"
    # A blank or a descending id would silently drop devices: make train checks the list, by hand it is yours to check.
    export ASCEND_RT_VISIBLE_DEVICES=$devices
    printf 'runtime: ASCEND_RT_VISIBLE_DEVICES=%s\n' "$devices"
    exec torchrun --standalone --local-addr=127.0.0.1 --nproc-per-node="${#ids[@]}" "$@"
}

# Where a package is installed; it is not imported. $1: package
package_folder() {
    python -c '
import importlib.util, sys
found = importlib.util.find_spec(sys.argv[1])
if found is None:
    sys.exit(f"error: {sys.argv[1]} is not installed in {sys.prefix}; next: make install, or source its venv")
print(found.submodule_search_locations[0])' "$1"
}

# Hold the lock of a work folder as long as the ranks live. $1: folder
lock_work_dir() {
    mkdir -p "$1"
    exec 9>"$1/.lock"
    if ! flock --nonblock 9; then
        printf 'error[run-busy]: another process works in %s\n' "$1" >&2
        exit 75 # errors.EXIT_CODES["run-busy"]
    fi
}
