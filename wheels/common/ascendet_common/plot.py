"""Draw a training's loss and AP from its progress.jsonl, over all its attempts (a resumed training is one curve).

    python -m ascendet_common.plot --run build/runs/vitdet-tiny_shapes/latest --title vitdet-tiny --out curves

writes curves.png and curves.svg; equal progress gives equal bytes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ascendet_common import progress

_AP = {"bbox": "box AP", "segm": "mask AP"}
Points = list[tuple[int, float]]


@dataclass(kw_only=True)
class Curves:
    """Points (step, value) by name.

    `losses`, the learning rate, `seconds` per step and `memory` (MiB) are of the training, `aps` of the validation.
    """

    losses: dict[str, Points] = field(default_factory=dict)
    rate: Points = field(default_factory=list)
    seconds: Points = field(default_factory=list)
    memory: Points = field(default_factory=list)
    aps: dict[str, Points] = field(default_factory=dict)

    def _all(self) -> list[Points]:
        return [*self.losses.values(), self.rate, self.seconds, self.memory, *self.aps.values()]

    def forget_from(self, step: int) -> None:
        """Drop the points from `step` on, which an interrupted attempt logged and the next attempt repeats."""
        for points in self._all():
            points[:] = [point for point in points if point[0] < step]


def read(run: Path) -> Curves:
    """Return the curves of a run folder."""
    curves = Curves()
    last = 0
    for row in progress.read(run):
        step = row.get("step", 0)
        if row["phase"] == "train":
            if step <= last:  # another attempt began
                curves.forget_from(step)
            last = step
            curves.rate.append((step, row["lr"]))
            for name, points in (("seconds", curves.seconds), ("memory", curves.memory)):
                if row.get(name):
                    points.append((step, row[name]))
            for name, value in {"loss": row["loss"], **row["losses"]}.items():
                curves.losses.setdefault(name, []).append((step, value))
        elif row["phase"] == "validate":
            for kind, value in row.get("AP", {}).items():
                curves.aps.setdefault(_AP[kind], []).append((step, value))
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
    left.set(xlabel="step", ylabel="loss", title=title)
    left.legend(fontsize="small")
    for label, points in curves.aps.items():
        right.plot(*zip(*points, strict=True), label=label, marker="o")
    right.set(xlabel="step", ylabel="AP", ylim=(0, 1))
    if curves.aps:
        right.legend(loc="upper left", fontsize="small")
    rate = right.twinx()
    rate.plot(*zip(*curves.rate, strict=True), color="0.6", linewidth=1)
    rate.set(ylabel="learning rate (grey)")
    figure.savefig(f"{out}.png", dpi=120, metadata={"Software": None})
    figure.savefig(f"{out}.svg", metadata={"Date": None})


def main() -> None:
    """Draw the curves of the run folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="a run folder")
    parser.add_argument("--title", required=True, help="what was trained, where")
    parser.add_argument("--out", type=Path, required=True, help="the pictures' name without its ending")
    args = parser.parse_args()
    curves = read(args.run)
    if not curves.rate:
        sys.exit("no step was logged yet")
    draw(curves, args.title, args.out)


if __name__ == "__main__":
    main()
