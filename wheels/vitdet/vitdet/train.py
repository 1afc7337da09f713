"""Train a model, one rank per device: `torchrun --nproc-per-node=2 -m vitdet.train`, as scripts/run.sh does.

Environment: MODEL, DATASET and WORK_DIR; RESUME=1 continues from the last checkpoint in WORK_DIR; CHECKPOINT is a file
to start from, with the same or other classes.
"""

from __future__ import annotations

import os

from ascendet_common import fallback
from ascendet_common.errors import forget, reporting
from ascendet_common.options import add_train_options
from mmengine.registry import RUNNERS

from vitdet import launch


def main() -> None:
    """Train until the end, or until a signal."""
    parser = launch.parser("Train a model.")
    add_train_options(parser)
    args = parser.parse_args()
    forget()
    with reporting():
        cfg = launch.load_config(args)
        for name in ("epochs", "lr", "amp"):  # for vitdet.recipe
            if getattr(args, name):
                cfg[name] = getattr(args, name)
        launch.join_ranks(cfg)
        cfg.resume = bool(os.environ.get("RESUME"))
        runner = RUNNERS.build(cfg)
        fallback.watch()
        runner.train()


if __name__ == "__main__":
    main()
