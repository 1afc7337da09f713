"""Write the ranges of an exported model's values over some pictures: what a forecast needs to see fp16 overflow.

    python -m staged_om.ranges --export build/om/<model>-<dataset>-<size>-b1 --images list.json

WORK_DIR gets `activations.json`, which `python -m cann_sim.atc.forecast --activations` reads. ONNX Runtime computes the
stages in float32 on the CPU, with the family's host steps between them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ascendet_common import progress
from ascendet_common.errors import forget, reporting
from ascendet_common.images import read
from cann_sim.atc import activations

from staged_om.meta import Meta
from staged_om.onnx_runner import Runner, Tensors, after_aipp, onnx_stages

FILE = "activations.json"
# Inputs of all stages are held in memory; a forecast needs the order of magnitude.
MOST = 8


def collect(folder: Path, pictures: Sequence[np.ndarray]) -> dict[str, activations.Ranges]:
    """Return the smallest and largest number of each value by stage, over pictures (uint8 [height, width, 3], BGR)."""
    meta = Meta.read(folder)
    family = importlib.import_module(f"{meta.family}.om")
    runner = Runner(meta, family.pipeline(meta), onnx_stages(meta, folder))
    feeds: dict[str, list[Tensors]] = {stage.name: [] for stage in meta.stages}
    for start in range(0, len(pictures), meta.batch):
        done = runner.run(pictures[start : start + meta.batch])
        for stage, given in done.inputs.items():
            feeds[stage].append(after_aipp(meta, given, rounds=True))
    return {stage.name: activations.collect(folder / stage.file, feeds[stage.name]) for stage in meta.stages}


def main() -> None:
    """Write the ranges of the exported model that the command line names."""
    parser = argparse.ArgumentParser(description="Collect the ranges of an exported model's values.")
    parser.add_argument("--export", required=True, type=Path, help="a folder that make export made")
    parser.add_argument("--images", required=True, type=Path, help="JSON list of file names")
    args = parser.parse_args()
    forget()
    with reporting():
        files = json.loads(args.images.read_text(encoding="utf-8"))[:MOST]
        found = collect(args.export, [read(file) for file in files])
        activations.write(Path(os.environ["WORK_DIR"], FILE), found)
        progress.write("note", text=f"ranges of values over {len(files)} pictures")


if __name__ == "__main__":
    main()
