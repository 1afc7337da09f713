#!/usr/bin/env bash
# Train one model on one data set, one rank per device. `make train` calls this; inside a container (with CANN's
# set_env.sh sourced and the stack's Python first on the PATH) it works by hand:
#
#   MODEL=vitdet-b DATASET=coco DEVICES=0,1,2,3 ASCENDET_DATA=/data WORK_DIR=/runs/one scripts/train.sh
#
# Environment: MODEL, DATASET, DEVICES, WORK_DIR; ASCENDET_DATA, the folder of the data sets; RESUME=1 continues from
# the last checkpoint in WORK_DIR; CHECKPOINT is a file to start from, of the same or other classes; AMP=1 trains in mixed
# precision and LR=5e-5 at that learning rate (vitdet.recipe reads both). With MAX_RESTARTS=3 torchrun starts the ranks again
# when one dies, and they go on from there themselves. On several machines NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, and
# the same storage at WORK_DIR. SIGTERM saves the step and ends. Arguments go to mmdet's train.py: --cfg-options epochs=12.
# Exit code 75: WORK_DIR is in use; others are
# torchrun's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=runtime.sh
source "${BASH_SOURCE[0]%/*}/runtime.sh"

configs=$(package_folder vitdet)/configs
tools=$(package_folder mmdet)/.mim/tools
resume=()
[[ -z ${RESUME-} ]] || resume=(--resume)

export DATASET=${DATASET:?} # the configuration takes it from here
lock_work_dir "${WORK_DIR:?}"
launch "${DEVICES:?}" "$tools/train.py" "$configs/${MODEL:?}.py" \
    --launcher pytorch --work-dir "$WORK_DIR" "${resume[@]}" "$@"
