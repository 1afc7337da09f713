# shellcheck shell=bash
# Sourced by run.sh: the one place for the run time's settings. What the caller has set is kept;
# what is used is printed.

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
    if [[ -e ${ASCEND_HOME_PATH:-}/lib64/libcann_sim_compute.so ]]; then
        default TASK_QUEUE_ENABLE 0
    else
        default TASK_QUEUE_ENABLE 1
    fi
    default PYTORCH_NPU_ALLOC_CONF expandable_segments:True  # images of many sizes fragment fixed segments
    default HCCL_CONNECT_TIMEOUT 600                         # seconds; the first rank may still compile operators
    default HCCL_EXEC_TIMEOUT 1836                           # seconds; rank 0 writes checkpoints while others wait
    default NPU_FALLBACK warn                                # an operator without an NPU kernel: warn, error or allow
    default MAX_RESTARTS 0                                   # how often torchrun starts the ranks again after one died
    # torch 2.8 shares one store between attempts: ranks that start again would meet at a communicator that is no more.
    ((MAX_RESTARTS == 0)) || default TORCH_DISABLE_SHARE_RDZV_TCP_STORE 1
    default PYTHONUNBUFFERED 1                               # progress appears when it happens
}

# Start a program once per device. Alone, on a free port of this machine; as one of several machines where the variables are
# set that Ascend's operator for Kubernetes gives every one of them: MASTER_ADDR, MASTER_PORT, RANK (of this machine),
# WORLD_SIZE and LOCAL_WORLD_SIZE (devices of all, of each). By hand and by Volcano: NNODES and NODE_RANK or RANK.
# $1: devices, such as 6,7; $2: program; others: its arguments
launch() {
    local devices=$1
    shift
    local -a ids
    IFS=, read -r -a ids <<<"$devices"
    set_runtime "${#ids[@]}"
    # Ranks meet at this port plus their first one's device id: two jobs of one host need two ranges. Every machine has
    # its own, as the address that the ranks are told holds the port.
    local ports
    ports=${HCCL_IF_BASE_PORT-$(free_ports)}
    default HCCL_IF_BASE_PORT "$ports"
    # A blank or a descending id would silently drop devices: make train checks the list, by hand it is yours to check.
    export ASCEND_RT_VISIBLE_DEVICES=$devices
    printf 'runtime: ASCEND_RT_VISIBLE_DEVICES=%s\n' "$devices"
    local nodes=${NNODES:-1} rank=${NODE_RANK:-${RANK:-0}}
    [[ -n ${NNODES-} || -z ${WORLD_SIZE-} || -z ${LOCAL_WORLD_SIZE-} ]] || nodes=$((WORLD_SIZE / LOCAL_WORLD_SIZE))
    local -a where=(--standalone --local-addr=127.0.0.1)
    if ((nodes > 1)); then
        : "${MASTER_ADDR:?}" "${MASTER_PORT:=29500}"
        if ((MAX_RESTARTS)); then
            # A rank that dies on one machine restarts those of all: they meet anew. Whoever comes gets a rank.
            where=(--nnodes="$nodes" --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id=ascendet
                --rdzv-conf="is_host=$((rank == 0))" --local-addr="$(address_towards "$MASTER_ADDR")")
        else
            where=(--nnodes="$nodes" --node-rank="$rank" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
        fi
        ((${LOCAL_WORLD_SIZE:-${#ids[@]}} == ${#ids[@]})) || {
            printf 'error[devices-invalid]: DEVICES has %s devices, LOCAL_WORLD_SIZE says %s\n' "${#ids[@]}" "$LOCAL_WORLD_SIZE" >&2
            exit 24 # errors.EXIT_CODES["devices-invalid"]
        }
        printf 'runtime: machine %s of %s, master %s:%s\n' "$rank" "$nodes" "$MASTER_ADDR" "$MASTER_PORT"
    fi
    # The operator's words for machines are torchrun's for ranks, which it sets itself.
    unset RANK WORLD_SIZE LOCAL_WORLD_SIZE
    exec torchrun "${where[@]}" --max-restarts="$MAX_RESTARTS" --nproc-per-node="${#ids[@]}" "$@"
}

# The first of 16 ports (as many as HCCL may use, says CANN) on which nothing listens here; above those that Linux gives
# away by itself, and by chance, so that two jobs that start together do not choose the same.
free_ports() {
    python -c '
import random, socket, sys

def is_free(port):
    dual = socket.has_dualstack_ipv6()
    try:
        socket.create_server(("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual).close()
    except OSError:
        return False
    return True

firsts = range(61000, 65520 - 16, 16)
for first in random.sample(firsts, len(firsts)):
    if all(is_free(first + i) for i in range(16)):
        print(first)
        sys.exit()
sys.exit("error[port-in-use]: no 16 ports in a row are free from 61000 on; next: HCCL_IF_BASE_PORT=<the first of 16>")' ||
        exit 27 # errors.EXIT_CODES["port-in-use"]
}

# This machine's address as a peer sees it; nothing is sent. $1: the peer
address_towards() {
    python -c '
import socket, sys
family, kind, _, _, peer = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as end:
    end.connect(peer)
    print(end.getsockname()[0])' "$1"
}

# End with the next command where a package is not installed; it is not imported. $1: package
require_package() {
    python -c '
import importlib.util, sys
if importlib.util.find_spec(sys.argv[1]) is None:
    sys.exit(f"error: {sys.argv[1]} is not installed in {sys.prefix}; next: make install, or source its venv")' "$1"
}

# Hold the lock of a work folder as long as the ranks live; of several machines, the first does. $1: folder
lock_work_dir() {
    mkdir -p "$1"
    [[ ${NODE_RANK:-${RANK:-0}} == 0 ]] || return 0
    exec 9>"$1/.lock"
    if ! flock --nonblock 9; then
        printf 'error[run-busy]: another process works in %s\n' "$1" >&2
        exit 75 # errors.EXIT_CODES["run-busy"]
    fi
}
