"""Draw trainings' curves for a page: loss and its parts, AP and learning rate, time per step and device memory.

    python -m ascendet_common.page_curves --run build/runs/vitdet-tiny_shapes/latest --language en --out folder

writes loss.svg, ap.svg and step.svg, each only if there is something to draw. With several `--run` it draws their
losses and AP into the same axes. Equal progress gives equal bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from ascendet_common import svg
from ascendet_common.plot import Curves, Points, read

_WORDS = {
    "en": {
        "step": "step",
        "loss": "loss",
        "lr": "learning rate",
        "seconds": "seconds per step",
        "memory": "device memory, MiB",
        "box AP": "box AP",
        "mask AP": "mask AP",
    },
    "zh": {
        "step": "步",
        "loss": "损失",
        "lr": "学习率",
        "seconds": "每步秒数",
        "memory": "设备内存，MiB",
        "box AP": "边界框 AP",
        "mask AP": "掩码 AP",
    },
}
_HEIGHT = 230.0  # of a chart, in the SVG's units
_COLOURS = (svg.BLUE, svg.ORANGE, svg.GREEN, svg.PURPLE, "#a98a12", "#c4504b", "#4aa3b5")
_STYLES = ("-", (0, (4, 1.5)))  # of the first run, and of the second
_MARKERS = ("o", "s")
_DOTTED = (0, (1, 1.6))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart: points over steps, and how it is drawn."""

    label: str
    points: Points
    colour: str
    style: object = "-"
    width: float = 1.6
    marker: str = "o"


def draw(runs: Sequence[tuple[str, Curves]], language: str, folder: Path) -> None:
    """Write the charts of one run, or of two by name, into `folder`."""
    words = _WORDS[language]
    losses: list[Line] = []
    aps: list[Line] = []
    for (name, curves), style, marker in zip(runs, _STYLES, _MARKERS, strict=False):
        prefix = f"{name}: " if len(runs) > 1 else ""
        for at, (loss, points) in enumerate(curves.losses.items()):
            if loss == "loss":
                colour = svg.INK if len(runs) == 1 else _COLOURS[len(losses) % len(_COLOURS)]
                losses.append(
                    Line(label=prefix + words["loss"], points=points, colour=colour, style=style, width=2.4)
                )
            elif len(runs) == 1:
                losses.append(Line(label=loss, points=points, colour=_COLOURS[(at - 1) % len(_COLOURS)]))
        for at, (kind, points) in enumerate(curves.aps.items()):
            label, colour = prefix + words[kind], _COLOURS[at % 2]
            aps.append(Line(label=label, points=points, colour=colour, style=style, marker=marker))
    _draw(losses, None, words["loss"], folder / "loss.svg", words["step"])
    first = runs[0][1]
    alone = len(runs) == 1
    rate = Line(label=words["lr"], points=first.rate, colour=svg.INK, style=_DOTTED) if alone else None
    _draw(aps, rate, "AP", folder / "ap.svg", words["step"], limits=(0, 1))
    if alone:
        seconds = Line(label=words["seconds"], points=first.seconds, colour=svg.BLUE)
        memory = Line(label=words["memory"], points=first.memory, colour=svg.INK, style=_DOTTED)
        _draw([seconds], memory, words["seconds"], folder / "step.svg", words["step"])


def _draw(
    lines: Sequence[Line],
    second: Line | None,
    up: str,
    file: Path,
    across: str,
    *,
    limits: tuple[float, float] | None = None,
) -> None:
    """Write a chart; `second` has its axis on the right."""
    lines = [line for line in lines if line.points]
    second = second if second and second.points else None
    if not lines and not second:
        return
    labels = [line.label for line in [*lines, *([second] if second else [])]]
    columns = 2 if max(map(svg.text_width, labels)) > 110 else 3
    top = 14.0 * -(-len(labels) // columns) + 10
    height = _HEIGHT + top
    with mpl.rc_context(svg.STYLE | {"legend.fontsize": 9.0, "axes.grid": True, "axes.axisbelow": True}):
        figure, axes = plt.subplots(figsize=(svg.inches(svg.WIDTH), svg.inches(height)))
        right = 0.86 if second else 0.985
        figure.subplots_adjust(left=0.115, right=right, top=1 - top / height, bottom=36 / height)
        for line in lines:
            marked = line.marker if limits or len(line.points) == 1 else None
            axes.plot(
                *zip(*line.points, strict=True),
                color=line.colour,
                linestyle=line.style,
                linewidth=line.width,
                marker=marked,
                markersize=4.5,
                markerfacecolor=line.colour if line.marker == _MARKERS[0] else "none",
                label=line.label,
            )
        # Room for a marker at the top: matplotlib takes its margin from the range of values, not from the whole axis.
        axes.set(xlabel=across, ylabel=up, ylim=limits or (0, axes.get_ylim()[1] * 1.03))
        if second:
            axes.plot([], [], color=second.colour, linestyle=second.style, linewidth=1.3, label=second.label)
            other = axes.twinx()
            other.plot(
                *zip(*second.points, strict=True), color=second.colour, linestyle=second.style, linewidth=1.3
            )
            other.set(ylabel=second.label, ylim=(0, None))
            other.grid(visible=False)
        place = {"loc": "lower left", "bbox_to_anchor": (-0.115, 1.0), "borderaxespad": 0.4}
        axes.legend(ncols=columns, handlelength=1.6, columnspacing=1.2, labelspacing=0.25, **place)
        file.write_text(svg.to_svg(figure, up), encoding="utf-8")


def main() -> None:
    """Draw the curves of the run folders that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, action="append", help="a run folder")
    parser.add_argument("--language", choices=list(_WORDS), required=True, help="of the words")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    args = parser.parse_args()
    runs = [(run.resolve().name, read(run)) for run in args.run]
    if not any(curves.rate for _, curves in runs):
        sys.exit("no step was logged yet")
    draw(runs, args.language, args.out)


if __name__ == "__main__":
    main()
