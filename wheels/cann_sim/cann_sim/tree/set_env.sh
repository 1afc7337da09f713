# shellcheck shell=bash
# Source this file: makes the simulated CANN the CANN of the shell. Same variables as CANN 8.5's own set_env.sh.
_home=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
export ASCEND_HOME_PATH="$_home"
export ASCEND_TOOLKIT_HOME="$_home"
export ASCEND_OPP_PATH="$_home/opp"
export ASCEND_AICPU_PATH="$_home"
export LD_LIBRARY_PATH="$_home/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH="$_home/bin:$_home/tools/profiler/bin:$PATH"
# torch_npu's import starts torch.compile's worker processes; the simulated device has no compiler for them to run.
export TORCHINDUCTOR_COMPILE_THREADS="${TORCHINDUCTOR_COMPILE_THREADS:-1}"
unset _home
