# shellcheck shell=bash
# Sourced by run.sh: sets the run-time settings. A setting that the caller has set is kept, and all settings are printed.

# Set an environment variable unless the caller has set it, and print it. $1: name; $2: value
default() {
    [[ -v $1 ]] || printf -v "$1" '%s' "$2"
    export "${1?}"
    printf 'runtime: %s=%s\n' "$1" "${!1}"
}

# Set the variables of a run. $1: number of ranks on this node
set_runtime() {
    local ranks=$1
    local threads=$(($(nproc) / ranks))
    default OMP_NUM_THREADS "$((threads > 0 ? threads : 1))" # the ranks share the CPU cores
    # With a task queue, torch_npu submits operators from a separate thread. A simulated device computes on the host's
    # cores, so nothing can overlap, and the queue's threads poll (measured: a fifth of a core for each rank).
    if [[ -e ${ASCEND_HOME_PATH:-}/lib64/libcann_sim_compute.so ]]; then
        default TASK_QUEUE_ENABLE 0
        # Kernels' threads that spin while they wait for each other take the cores from one another as soon as anything else
        # runs here (measured beside ten other processes: 8 s a picture with two threads, 0.1 s without spinning).
        default OMP_WAIT_POLICY passive
    else
        default TASK_QUEUE_ENABLE 1
    fi
    default PYTORCH_NPU_ALLOC_CONF expandable_segments:True  # pictures of many sizes would fragment fixed segments
    default HCCL_CONNECT_TIMEOUT 600                         # seconds; the first rank may still compile operators
    default HCCL_EXEC_TIMEOUT 1836                           # seconds; rank 0 writes checkpoints while others wait
    default NPU_FALLBACK warn                                # an operator without an NPU kernel: warn, error or allow
    default MAX_RESTARTS 0                                   # how often torchrun restarts the ranks after one died
    # torch 2.8 shares one store between attempts, so restarted ranks would find a communicator that no longer exists.
    ((MAX_RESTARTS == 0)) || default TORCH_DISABLE_SHARE_RDZV_TCP_STORE 1
    default PYTHONUNBUFFERED 1                               # progress is printed at once
}

# Start a program once per device: on one node with a free port, or as one of several nodes. Ascend's operator for Kubernetes
# sets MASTER_ADDR, MASTER_PORT, RANK (of this node), WORLD_SIZE and LOCAL_WORLD_SIZE (number of devices of all nodes, of each
# node). By hand and with Volcano they are NNODES, and NODE_RANK or RANK.
# $1: devices, such as 6,7; $2: program; others: its arguments
launch() {
    local devices=$1
    shift
    local -a ids
    IFS=, read -r -a ids <<<"$devices"
    set_runtime "${#ids[@]}"
    # Ranks connect at this port plus the device id of the first rank, so two jobs on one host need two ranges. Each node may
    # use another range, because the ranks learn the port together with the address.
    local ports
    ports=${HCCL_IF_BASE_PORT-$(free_ports)}
    default HCCL_IF_BASE_PORT "$ports"
    # A blank or a descending id would silently drop devices. make train checks the list; check it yourself in a call by hand.
    export ASCEND_RT_VISIBLE_DEVICES=$devices
    printf 'runtime: ASCEND_RT_VISIBLE_DEVICES=%s\n' "$devices"
    local nodes=${NNODES:-1} rank=${NODE_RANK:-${RANK:-0}}
    [[ -n ${NNODES-} || -z ${WORLD_SIZE-} || -z ${LOCAL_WORLD_SIZE-} ]] || nodes=$((WORLD_SIZE / LOCAL_WORLD_SIZE))
    local -a where=(--standalone --local-addr=127.0.0.1)
    if ((nodes > 1)); then
        : "${MASTER_ADDR:?}" "${MASTER_PORT:=29500}"
        if ((MAX_RESTARTS)); then
            # A rank that dies on one node restarts the ranks of all nodes; in the new rendezvous, any node may get any rank.
            where=(--nnodes="$nodes" --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id=ascendet
                --rdzv-conf="is_host=$((rank == 0))" --local-addr="$(address_towards "$MASTER_ADDR")")
        else
            where=(--nnodes="$nodes" --node-rank="$rank" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
        fi
        ((${LOCAL_WORLD_SIZE:-${#ids[@]}} == ${#ids[@]})) || {
            printf 'error[devices-invalid]: DEVICES must be as many devices as LOCAL_WORLD_SIZE, %s, not %s\n' "$LOCAL_WORLD_SIZE" "${#ids[@]}" >&2
            exit 24 # errors.EXIT_CODES["devices-invalid"]
        }
        printf 'runtime: node %s of %s, master %s:%s\n' "$rank" "$nodes" "$MASTER_ADDR" "$MASTER_PORT"
    fi
    # The operator uses these names for nodes, torchrun for ranks; torchrun sets them itself.
    unset RANK WORLD_SIZE LOCAL_WORLD_SIZE
    exec torchrun "${where[@]}" --max-restarts="$MAX_RESTARTS" --nproc-per-node="${#ids[@]}" "$@"
}

# Print the first of 16 free ports (the number that HCCL may use, according to CANN). The range is above the ports that Linux
# assigns itself, and chosen at random, so that two jobs that start at the same time do not choose the same one.
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
sys.exit("error[port-in-use]: there are no 16 consecutive free ports above 61000; next: HCCL_IF_BASE_PORT=<the first of 16>")' ||
        exit 27 # errors.EXIT_CODES["port-in-use"]
}

# Print the address of this machine that a peer sees; nothing is sent. $1: the peer
address_towards() {
    python -c '
import socket, sys
family, kind, _, _, peer = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as end:
    end.connect(peer)
    print(end.getsockname()[0])' "$1"
}

# End with an error if a package is not installed, without importing it. $1: package
require_package() {
    python -c '
import importlib.util, sys
if importlib.util.find_spec(sys.argv[1]) is None:
    sys.exit(f"error: {sys.argv[1]} is not installed in {sys.prefix}; next: make install, or source its venv")' "$1"
}

# Hold the lock of a work folder as long as the ranks run, and note there who holds it; only the first of several nodes
# does. $1: folder, $2: program
lock_work_dir() {
    mkdir -p "$1"
    [[ ${NODE_RANK:-${RANK:-0}} == 0 ]] || return 0
    exec 9>>"$1/.lock"
    if ! flock --nonblock 9; then
        printf 'error[run-busy]: another process works in %s\n' "$1" >&2
        exit 75 # errors.EXIT_CODES["run-busy"]
    fi
    printf '%s (process %s on %s)\n' "$2" "$$" "$(uname --nodename)" >"$1/.lock"
}
