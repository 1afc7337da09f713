"""Draw the findings' charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from ascendet_common.findings.inputs import Ints
from ascendet_common.findings.words import Language, say
from ascendet_common.svg import BLUE, COLOURS, ORANGE, SIZE, STYLE, WIDTH, inches, text_width, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = 20  # the most classes that a confusion chart shows

Curves = Mapping[str, Sequence[Sequence[float]]]
_LINES: dict[str, dict[str, Any]] = {
    "0.5": {"linewidth": 1.4},
    "0.75": {"linewidth": 1.4, "linestyle": (0, (4, 2))},
    "mean": {"linewidth": 2.4},
}


def precision_recall(curves: Mapping[str, Curves], language: Language) -> str:
    """Return a chart of precision over recall as SVG, with a panel for boxes and one for masks."""
    top, panel, gap, bottom = 20.0, 165.0, 26.0, 34.0
    height = top + len(curves) * panel + (len(curves) - 1) * gap + bottom
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(inches(WIDTH), inches(height)))
        for at, (kind, lines) in enumerate(curves.items()):
            edge = 1 - (top + at * (panel + gap) + panel) / height
            axes = figure.add_axes((46 / WIDTH, edge, (WIDTH - 58) / WIDTH, panel / height))
            axes.set(
                xlim=(0, 1), ylim=(0, 1.02), ylabel=say("precision", language), title=say(kind, language)
            )
            axes.grid(visible=True)
            _draw_curves(axes, lines, COLOURS[kind], language)
            if at == len(curves) - 1:
                axes.set_xlabel(say("recall", language))
            else:
                axes.tick_params(labelbottom=False)
        return to_svg(figure, f"{say('precision', language)}, {say('recall', language)}")


def _draw_curves(axes: Axes, lines: Curves, colour: str, language: Language) -> None:
    legend = "lower left"
    for name, points in lines.items():
        if not points:
            axes.text(0.5, 0.5, say("no objects", language), ha="center", va="center")
            return
        recall, precision = np.array(points).T
        shown = say("mean", language) if name == "mean" else f"IoU {float(name):.2f}"
        axes.plot(
            recall, precision, color=colour, label=f"{shown}: AP {precision.mean():.3f}", **_LINES[name]
        )
        if name == "mean":
            axes.fill_between(recall, precision, color=colour, alpha=0.12, linewidth=0)
        if (precision[recall < 0.6] < 0.4).any():  # a line goes where the legend would be
            legend = "upper right"
    axes.legend(loc=legend, handlelength=2.2)


def errors(counts: Mapping[str, Mapping[str, int]], language: Language) -> str:
    """Return a chart of the number of errors of each kind as SVG, for boxes and for masks."""
    names = [name for name in next(iter(counts.values())) if name != "correct"]
    labels = [say(name, language) for name in names]
    most = max([1, *(row[name] for row in counts.values() for name in names)])
    thick, top = 0.78 / len(counts), 24.0
    row_height = 13.5 * len(counts) + 10
    height = top + row_height * len(names) + 4
    left = max(map(text_width, labels)) + 10
    right = text_width(f"{most:,}") + 8
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(inches(WIDTH), inches(height)))
        axes = figure.add_axes(
            (left / WIDTH, 4 / height, (WIDTH - left - right) / WIDTH, 1 - (top + 4) / height)
        )
        for at, (kind, row) in enumerate(counts.items()):
            places = np.arange(len(names)) + (at - (len(counts) - 1) / 2) * thick
            values = [row[name] for name in names]
            axes.barh(places, values, height=thick * 0.86, color=COLOURS[kind], label=say(kind, language))
            for place, value in zip(places, values, strict=True):
                axes.annotate(
                    f"{value:,}", (value, place), (4, 0), textcoords="offset points", va="center_baseline"
                )
        axes.set(xlim=(0, most), yticks=range(len(names)), yticklabels=labels, ylim=(len(names) - 0.5, -0.5))
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        square = {"handlelength": 0.9, "handleheight": 0.9, "handletextpad": 0.5}
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, borderpad=0.2, **square
        )
        return to_svg(figure, ", ".join(labels))


def confusion(classes: Sequence[str], matrix: Ints, language: Language) -> str:
    """Return a chart of a confusion matrix as SVG, the background last; of many classes those most confused.

    A cell is the darker the larger its share of the row is: what is correct in blue, what is not in orange.
    """
    kept = most_confused(matrix)
    chosen = [*kept, len(classes)]
    part = matrix[np.ix_(chosen, chosen)]
    names = [_shorten(classes[at]) for at in kept]
    rows, columns = [*names, say("no object", language)], [*names, say("not detected", language)]
    note = say("part", language, shown=len(kept), all=len(classes)) if len(kept) < len(classes) else ""
    size = SIZE if len(chosen) <= 8 else 8.0 if len(chosen) <= 13 else 6.5
    left = max(text_width(name, size) for name in rows) + 24
    cell = (WIDTH - left - 2) / len(chosen)
    upright = max(text_width(name, size) for name in columns) > cell - 2
    top = (max(text_width(name, size) for name in columns) if upright else size) + SIZE + 16
    high = min(cell, 36.0) if len(chosen) <= 8 else cell
    height = top + high * len(chosen) + (18 if note else 2)
    with mpl.rc_context(STYLE | {"font.size": size}):
        figure = plt.figure(figsize=(inches(WIDTH), inches(height)))
        edge = 1 - (top + high * len(chosen)) / height
        axes = figure.add_axes((left / WIDTH, edge, 1 - (left + 2) / WIDTH, high * len(chosen) / height))
        axes.set(xlim=(0, len(chosen)), ylim=(len(chosen), 0))
        gap = 1.2 / cell
        for y, x in np.argwhere(part):
            share = part[y, x] / part[y].sum()
            shade = {"color": BLUE if x == y else ORANGE, "alpha": 0.12 + 0.5 * share, "linewidth": 0}
            axes.add_patch(plt.Rectangle((x + gap / 2, y + gap / 2), 1 - gap, 1 - gap, **shade))
            digits = f"{part[y, x]:,}"
            fits = min(size, size * (cell - 2) / text_width(digits, size))
            axes.text(x + 0.5, y + 0.5, digits, ha="center", va="center_baseline", fontsize=fits)
        middle = np.arange(len(chosen)) + 0.5
        axes.set_xticks(middle, columns, rotation=90 if upright else 0)
        axes.set_yticks(middle, rows)
        axes.tick_params(top=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        heading = {"fontsize": SIZE, "fontweight": "bold", "ha": "center"}
        figure.text(
            (left + WIDTH) / 2 / WIDTH, 1 - (SIZE + 2) / height, say("detected as", language), **heading
        )
        middle_row = edge + high * len(chosen) / 2 / height
        figure.text(
            (SIZE + 2) / WIDTH, middle_row, say("object", language), rotation=90, va="center", **heading
        )
        if note:
            figure.text(1 - 2 / WIDTH, 4 / height, note, ha="right", fontsize=SIZE - 1)
        return to_svg(figure, f"{say('object', language)}, {say('detected as', language)}")


def most_confused(matrix: Ints, count: int = CLASSES) -> list[int]:
    """Return up to `count` classes, in their order: those with most objects or detections of another class.

    >>> most_confused(np.array([[9, 0, 1, 0], [0, 9, 0, 5], [2, 0, 9, 0], [0, 0, 0, 0]]), 2)
    [0, 2]
    """
    between = matrix[:-1, :-1] * (1 - np.eye(len(matrix) - 1, dtype=np.int64))
    between = between.sum(0) + between.sum(1)
    alone = matrix[-1, :-1] + matrix[:-1, -1]  # decides between classes that are confused equally often
    return sorted(np.lexsort((-alone, -between))[:count].tolist())


def _shorten(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
