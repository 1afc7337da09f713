"""Train a model, one rank per device: `torchrun --nproc-per-node=2 -m vitdet.train`, as scripts/run.sh does.

Environment: MODEL, DATASET, WORK_DIR; RESUME=1 continues from the last checkpoint in WORK_DIR.
"""

from __future__ import annotations

import os

from ascendet_common.errors import reporting
from mmengine.registry import RUNNERS

from vitdet import launch


def main() -> None:
    """Train to the end, or until a signal."""
    args = launch.parser("Train a model.").parse_args()
    with reporting():
        cfg = launch.load_config(args)
        cfg.resume = bool(os.environ.get("RESUME"))
        RUNNERS.build(cfg).train()


if __name__ == "__main__":
    main()
