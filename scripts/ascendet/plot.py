"""Draw a training's loss and AP from what mmengine logged, over all its attempts (a resumed training is one curve).

A program of its own, because it runs in a stack's environment, which has matplotlib:

    python -m ascendet.plot --run build/runs/vitdet-tiny_shapes/latest --title vitdet-tiny --out curves

writes curves.png and curves.svg; equal logs give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

_AP = {"coco/bbox_mAP": "box AP", "coco/segm_mAP": "mask AP"}


@dataclass(kw_only=True)
class Curves:
    """Points (iteration, value) by name: `losses` and the learning rate while training, `aps` from validation."""

    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    rate: list[tuple[int, float]] = field(default_factory=list)
    aps: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def _all(self) -> list[list[tuple[int, float]]]:
        return [*self.losses.values(), self.rate, *self.aps.values()]

    def forget_from(self, iteration: int) -> None:
        """Drop what an interrupted attempt logged behind the checkpoint that the next one went on from."""
        for points in self._all():
            points[:] = [point for point in points if point[0] < iteration]


def read(run: Path) -> Curves:
    """The curves of a run folder.

    Every attempt has a folder named by its time, with lines of JSON in `vis_data/scalars.json`: training's have `iter`,
    validation's follow those of the iterations before it. A line that a kill left half-written is passed over.
    """
    curves = Curves()
    for file in sorted(run.glob("*/vis_data/scalars.json")):
        iteration, first = 0, True
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "loss" in row:
                iteration = int(row["iter"])
                if first:
                    curves.forget_from(iteration)
                    first = False
                curves.rate.append((iteration, row["lr"]))
                for name in row:
                    if name.startswith("loss"):
                        curves.losses.setdefault(name, []).append((iteration, row[name]))
            for name, label in _AP.items():
                if name in row:
                    curves.aps.setdefault(label, []).append((iteration, row[name]))
    return curves


def draw(curves: Curves, title: str, out: Path) -> None:
    """Write `<out>.png` and `<out>.svg`."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "ascendet"
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, points in curves.losses.items():
        left.plot(*zip(*points, strict=True), label=name, linewidth=2 if name == "loss" else 1)
    left.set(xlabel="iteration", ylabel="loss", title=title)
    left.legend(fontsize="small")
    for label, points in curves.aps.items():
        right.plot(*zip(*points, strict=True), label=label, marker="o")
    right.set(xlabel="iteration", ylabel="AP", ylim=(0, 1))
    if curves.aps:
        right.legend(loc="upper left", fontsize="small")
    rate = right.twinx()
    rate.plot(*zip(*curves.rate, strict=True), color="0.6", linewidth=1)
    rate.set(ylabel="learning rate (grey)")
    figure.savefig(f"{out}.png", dpi=120, metadata={"Software": None})
    figure.savefig(f"{out}.svg", metadata={"Date": None})


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="a run folder")
    parser.add_argument("--title", required=True, help="what was trained, where")
    parser.add_argument("--out", type=Path, required=True, help="the pictures' name without its ending")
    args = parser.parse_args()
    curves = read(args.run)
    if not curves.rate:
        sys.exit("no iteration was logged yet")
    draw(curves, args.title, args.out)


if __name__ == "__main__":
    main()
