#!/usr/bin/env bash
# Run a program of a family of models: train, predict or infer; `make train`, `make eval` and `make infer` call this. Inside a
# container (with CANN's set_env.sh sourced and the stack's Python first on the PATH) it works by hand, as do train.sh, eval.sh
# and infer.sh:
#
#   FAMILY=vitdet MODEL=vitdet-b DATASET=coco DEVICES=0,1,2,3 ASCENDET_DATA=/data WORK_DIR=/runs/one scripts/run.sh train
#
# Environment: FAMILY, the family's Python package (in our images it is set); MODEL, DATASET; DEVICES, of which infer uses the
# first; WORK_DIR, for everything that is written; ASCENDET_DATA, the folder of the data sets.
#   train    RESUME=1 continues from the last checkpoint in WORK_DIR. With MAX_RESTARTS=3 torchrun starts the ranks again when
#            one dies, and they go on from there themselves. On several nodes NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT,
#            and the same storage at WORK_DIR. SIGTERM saves the step and ends.
#   predict  CHECKPOINT; writes predictions.json (COCO results) and images.json (of which images) to WORK_DIR.
#   infer    CHECKPOINT, and --images=list.json; writes results.json and pictures/ to WORK_DIR.
# Arguments go to the program. Exit code 75: WORK_DIR is in use; others are torchrun's or the program's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=runtime.sh
source "${BASH_SOURCE[0]%/*}/runtime.sh"

program=${1:?train, predict or infer}
shift
: "${FAMILY:?the Python package of the family of models, such as vitdet}" "${MODEL:?}" "${DATASET:?}" "${DEVICES:?}"
export FAMILY MODEL DATASET WORK_DIR=${WORK_DIR:?}
require_package "$FAMILY"
lock_work_dir "$WORK_DIR"
case $program in
    infer) # pictures one by one, on one device
        set_runtime 1
        export ASCEND_RT_VISIBLE_DEVICES=${DEVICES%%,*}
        printf 'runtime: ASCEND_RT_VISIBLE_DEVICES=%s\n' "$ASCEND_RT_VISIBLE_DEVICES"
        exec python -m "$FAMILY.infer" "$@"
        ;;
    *) launch "$DEVICES" -m "$FAMILY.$program" "$@" ;;
esac
