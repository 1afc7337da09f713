"""Write a checkpoint's predictions on the validation split, one rank per device; `make eval` scores them.

    torchrun --nproc-per-node=2 -m vitdet.predict

Environment: MODEL, DATASET, CHECKPOINT and WORK_DIR. Into WORK_DIR it writes `predictions.json`, COCO results with
boxes and masks, and `images.json`, with the annotation file (`annotations`) and the ids of the images that were
predicted, in their order (`images`): all images of the file, the first ones (--images), or those that a training keeps.
"""

from __future__ import annotations

import os

from ascendet_common import fallback
from ascendet_common.errors import forget, reporting
from ascendet_common.options import add_predict_options
from mmengine.registry import RUNNERS

from vitdet import launch


def main() -> None:
    """Predict the validation split with the checkpoint that the environment names."""
    parser = launch.parser("Write a checkpoint's predictions on the validation split.")
    add_predict_options(parser)
    args = parser.parse_args()
    forget()
    with reporting():
        cfg = launch.load_config(args)
        launch.join_ranks(cfg)
        launch.leave_training_out(cfg)
        cfg.load_from = os.environ["CHECKPOINT"]
        cfg.custom_hooks.append(dict(type="PredictionsHook"))
        if args.images:
            cfg.test_dataloader.dataset.indices = args.images
        runner = RUNNERS.build(cfg)
        fallback.watch()
        runner.test()


if __name__ == "__main__":
    main()
