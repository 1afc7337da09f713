# shellcheck shell=bash
# Source this file: makes the simulated CANN the CANN of the shell. Same variables as CANN 8.5's own set_env.sh.
_home=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
# Two trees in one process give neither: libraries that one lacks would come from the other.
IFS=: read -ra _folders <<<"${LD_LIBRARY_PATH:-}"
for _other in "${_folders[@]}"; do
    if [[ -n $_other && -e $_other/libascendcl.so && ! $_other -ef $_home/lib64 ]]; then
        echo "error[cann-sim-mixed-trees]: another CANN tree is on LD_LIBRARY_PATH
  expected: none beside the simulated one, $_home
  found:    $_other
  next:     take it off, or begin with a clean path: unset LD_LIBRARY_PATH" >&2
        unset _home _folders _other
        # shellcheck disable=SC2317  # for a script that runs this file instead of sourcing it
        return 1 || exit 1
    fi
done
export ASCEND_HOME_PATH="$_home"
export ASCEND_TOOLKIT_HOME="$_home"
export ASCEND_OPP_PATH="$_home/opp"
export ASCEND_AICPU_PATH="$_home"
export LD_LIBRARY_PATH="$_home/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH="$_home/bin:$_home/tools/profiler/bin:$PATH"
# torch_npu's import starts torch.compile's worker processes; the simulated device has no compiler for them to run.
export TORCHINDUCTOR_COMPILE_THREADS="${TORCHINDUCTOR_COMPILE_THREADS:-1}"
unset _home _folders _other
