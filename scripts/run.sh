#!/usr/bin/env bash
# Run a program of a family of models: train, predict, infer, speed or export. `make train`, `make eval`, `make infer`, `make speed`
# and `make export` call this script, `make om` for CANN's atc, and `make infer-om` for a program of the package staged_om. In a container (with CANN's set_env.sh sourced and the stack's Python first on the PATH) it can be called by
# hand, and so can train.sh, eval.sh and infer.sh:
#
#   FAMILY=vitdet MODEL=vitdet-b DATASET=coco DEVICES=0,1,2,3 ASCENDET_DATA=/data WORK_DIR=/runs/one scripts/run.sh train
#
# Environment variables: FAMILY, the family's Python package (set in our images); MODEL, DATASET; CONFIG, a configuration file
# to use for MODEL, where the family takes one; DEVICES (infer and speed use only the first); WORK_DIR, the folder for all
# output; ASCENDET_DATA, the folder of the data sets.
#   train    RESUME=1 continues from the last checkpoint in WORK_DIR. With MAX_RESTARTS=3 torchrun restarts all ranks when one
#            dies, and they resume from that checkpoint. Several nodes need NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, and
#            the same storage at WORK_DIR. After SIGTERM the training saves a checkpoint and ends.
#   predict  CHECKPOINT; writes predictions.json (COCO results) and images.json (the predicted pictures) to WORK_DIR.
#   infer    CHECKPOINT and --images=list.json; writes results.json and pictures/ to WORK_DIR.
#   speed    CHECKPOINT and --images=200, how many pictures of the validation split; writes speed.json to WORK_DIR.
#   export   CHECKPOINT; writes the stages as ONNX and export_meta.json to WORK_DIR, on the CPU.
#   atc      CANN's atc, with WORK_DIR as its current folder, where it leaves more than its OM file.
#   staged_om.infer
#            --om=folder and --images=list.json; writes results.json and pictures/ to WORK_DIR, without the model's framework.
# Arguments are passed to the program. Exit code 75: WORK_DIR is in use; others are torchrun's or the program's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=runtime.sh
source "${BASH_SOURCE[0]%/*}/runtime.sh"

program=${1:?train, predict, infer, speed, export, atc or staged_om.infer}
shift
: "${FAMILY:?the Python package of the family of models, such as vitdet}" "${MODEL:?}" "${DATASET:?}" "${DEVICES:?}"
export FAMILY MODEL DATASET WORK_DIR=${WORK_DIR:?}
require_package "$FAMILY"
lock_work_dir "$WORK_DIR" "$program"
case $program in
    infer | speed | staged_om.*) # on one device
        set_runtime 1
        export ASCEND_RT_VISIBLE_DEVICES=${DEVICES%%,*}
        printf 'runtime: ASCEND_RT_VISIBLE_DEVICES=%s\n' "$ASCEND_RT_VISIBLE_DEVICES"
        [[ $program == *.* ]] || program=$FAMILY.$program
        exec python -m "$program" "$@"
        ;;
    export) # on the CPU
        set_runtime 1
        exec python -m "$FAMILY.export" "$@"
        ;;
    atc)
        cd "$WORK_DIR"
        exec atc "$@"
        ;;
    *) launch "$DEVICES" -m "$FAMILY.$program" "$@" ;;
esac
