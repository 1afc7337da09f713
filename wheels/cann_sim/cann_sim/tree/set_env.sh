# shellcheck shell=bash
# Source this file to use the simulated CANN in a shell. It sets the variables that CANN 8.5's own set_env.sh sets.
_home=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
# Refuse two CANN trees on the path: a process would load from one the libraries that the other lacks.
IFS=: read -ra _folders <<<"${LD_LIBRARY_PATH:-}"
for _other in "${_folders[@]}"; do
    if [[ -n $_other && -e $_other/libascendcl.so && ! $_other -ef $_home/lib64 ]]; then
        echo "error[cann-sim-mixed-trees]: another CANN tree is on LD_LIBRARY_PATH
  expected: none beside the simulated one, $_home
  found:    $_other
  next:     remove it from LD_LIBRARY_PATH, or: unset LD_LIBRARY_PATH" >&2
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
export PYTHONPATH="$_home/python/site-packages${PYTHONPATH:+:$PYTHONPATH}"
export PATH="$_home/bin:$_home/tools/profiler/bin:$PATH"
# Importing torch_npu starts torch.compile's workers; the simulated device has no compiler that they could run.
export TORCHINDUCTOR_COMPILE_THREADS="${TORCHINDUCTOR_COMPILE_THREADS:-1}"
unset _home _folders _other
