#!/usr/bin/env bash
# Detect objects in pictures on one device. `make infer` calls this; by hand, see train.sh.
#
#   MODEL=vitdet-b DATASET=coco DEVICES=0 CHECKPOINT=epoch_12.pth OUT=/runs/one/infer scripts/infer.sh --images list.json
#
# Environment: MODEL; DATASET, whose classes the model has (for a checkpoint that does not say its own); DEVICES, of which the first is used; CHECKPOINT; OUT, the
# folder for results.json and pictures/. Arguments go to vitdet.infer.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=runtime.sh
source "${BASH_SOURCE[0]%/*}/runtime.sh"

configs=$(package_folder vitdet)/configs
export DATASET=${DATASET:?} # the configuration takes it from here
set_runtime 1
export ASCEND_RT_VISIBLE_DEVICES=${DEVICES:?}
ASCEND_RT_VISIBLE_DEVICES=${ASCEND_RT_VISIBLE_DEVICES%%,*}
printf 'runtime: ASCEND_RT_VISIBLE_DEVICES=%s\n' "$ASCEND_RT_VISIBLE_DEVICES"
exec python -m vitdet.infer --config "$configs/${MODEL:?}.py" --checkpoint "${CHECKPOINT:?}" --out "${OUT:?}" "$@"
