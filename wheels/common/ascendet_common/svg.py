"""Charts as SVG that a page can inline, on a light or a dark ground: text stays text, in one grey."""

from __future__ import annotations

import html
import io
import re
import unicodedata
import warnings
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#777777"  # of all text and axes; a page may replace it by currentColor
# Told apart by the colour-blind; their contrast with white and with #111 is 3 or more.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#3b7fc4", "#d0741c", "#2c9167", "#a568b8", "#8a8a8a"
COLOURS = {"bbox": BLUE, "segm": ORANGE}
WIDTH = 390.0  # of a chart, in the SVG's units (points)
SIZE = 10.0  # of text

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $a$
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": SIZE,
    "axes.titleweight": "bold",
    "axes.titlepad": 4.0,
    "axes.unicode_minus": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5.0,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": SIZE,
}


def text_width(text: str, size: float = SIZE) -> float:
    """Return about how wide a text is in the SVG's units: a page has fonts of its own, a Chinese one among them.

    >>> text_width("星", 10), text_width("star", 10)
    (10.0, 23.2)
    """
    return size * sum(1.0 if unicodedata.east_asian_width(one) in "WF" else 0.58 for one in text)


def inches(points: float) -> float:
    """Return a length in matplotlib's unit."""
    return points / 72


def to_svg(figure: Figure, label: str) -> str:
    """Return a figure as SVG and close it.

    It has no prolog and no metadata, names no font that a reader may not have, and has no `id` of a chart with another
    label, so that a page can have them all. Equal figures give equal text.

    Parameters
    ----------
    figure
        Drawn within `mpl.rc_context(STYLE)`.
    label
        What the chart shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    # Names of clip paths and markers are digests; the label makes them differ between charts.
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": label}):
        warnings.filterwarnings(
            "ignore", message="Glyph", category=UserWarning
        )  # Chinese ones, which the page has
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#(\w+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"(?:'[^';\"]*', )+sans-serif", "sans-serif", text)
    head, _, rest = text.partition(">")
    return f'{head} role="img" aria-label="{html.escape(label)}">{rest}'
