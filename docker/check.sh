#!/usr/bin/env bash
# Runs inside `docker build`: what was installed can be imported, $@: lists such as torch,torch_npu
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cann.sh
source "${BASH_SOURCE[0]%/*}/cann.sh"

load_cann
machine=$(uname -m)
export LD_LIBRARY_PATH+=":$ASCEND_HOME_PATH/$machine-linux/devlib" TORCH_DEVICE_BACKEND_AUTOLOAD=0 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
for modules in "$@"; do
    "$VIRTUAL_ENV/bin/python" -c "import $modules"
done
