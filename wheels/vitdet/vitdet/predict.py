"""Write what a checkpoint finds in the validation split, one rank per device; `make eval` scores it.

    torchrun --nproc-per-node=2 -m vitdet.predict

Environment: MODEL, DATASET, CHECKPOINT; WORK_DIR, which gets `predictions.json`, COCO results with boxes and masks, and
`images.json` with `annotations`, the file, and `images`, the ids of the images that were looked at, in their order:
all of the file's, the first ones (--images), or those that a training keeps.
"""

from __future__ import annotations

import os

from ascendet_common import fallback
from ascendet_common.errors import forget, reporting
from mmengine.registry import RUNNERS

from vitdet import launch


def main() -> None:
    """Predict."""
    parser = launch.parser("Write a checkpoint's predictions on the validation split.")
    parser.add_argument("--images", type=int, help="how many, from the first on; all by default")
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
