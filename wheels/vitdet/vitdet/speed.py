"""Measure how fast a checkpoint detects on one device: the first call, the calls after it, memory.

    python -m vitdet.speed --images 200

Environment: MODEL, DATASET, CHECKPOINT and WORK_DIR, where `speed.json` is written (see `ascendet_common.speed`).
"""

from __future__ import annotations

import os
from pathlib import Path

from ascendet_common.errors import forget, reporting
from ascendet_common.options import add_speed_options
from ascendet_common.speed import first_pictures, measure

from vitdet import launch
from vitdet.infer import build_detector


def main() -> None:
    """Measure with the first pictures of the validation split."""
    parser = launch.parser("Measure how fast a checkpoint detects.")
    add_speed_options(parser)
    args = parser.parse_args()
    forget()
    with reporting():
        cfg = launch.load_config(args)
        files = first_pictures(Path(cfg.data_root), args.images)
        measure(build_detector(cfg), files, Path(os.environ["WORK_DIR"]))


if __name__ == "__main__":
    main()
