"""Train a model, one rank per device: `torchrun --nproc-per-node=2 -m vitdet.train`, as scripts/run.sh does.

Environment: MODEL, DATASET, WORK_DIR; RESUME=1 continues from the last checkpoint in WORK_DIR; CHECKPOINT is a file
to start from, of the same or of other classes.
"""

from __future__ import annotations

import os

from ascendet_common import fallback
from ascendet_common.errors import forget, reporting
from mmengine.registry import RUNNERS

from vitdet import launch


def main() -> None:
    """Train to the end, or until a signal."""
    parser = launch.parser("Train a model.")
    parser.add_argument("--epochs", type=int, help="passes over the data set; the recipe's by default")
    parser.add_argument("--lr", type=float, help="learning rate; the recipe's by default")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
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
