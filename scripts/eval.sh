#!/usr/bin/env bash
# Write a model's predictions on the validation split as COCO results, one rank per device: $OUT.bbox.json and
# $OUT.segm.json; $OUT.images.json says of which images. `make eval` calls this and scores them; by hand, see train.sh.
#
#   MODEL=vitdet-b DATASET=coco DEVICES=0 CHECKPOINT=epoch_12.pth WORK_DIR=/runs/one/eval OUT=/runs/one/eval/predictions scripts/eval.sh
#
# Environment: MODEL, DATASET, DEVICES, CHECKPOINT, WORK_DIR, OUT; ASCENDET_DATA, the folder of the data sets.
# Arguments go to mmdet's test.py. Exit code 75: WORK_DIR is in use; others are torchrun's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=runtime.sh
source "${BASH_SOURCE[0]%/*}/runtime.sh"

configs=$(package_folder vitdet)/configs
tools=$(package_folder mmdet)/.mim/tools

export DATASET=${DATASET:?} # the configuration takes it from here
export OUT=${OUT:?}         # vitdet's PredictionsHook takes it from here
lock_work_dir "${WORK_DIR:?}"
launch "${DEVICES:?}" "$tools/test.py" "$configs/${MODEL:?}.py" "${CHECKPOINT:?}" \
    --launcher pytorch --work-dir "$WORK_DIR" "$@"
