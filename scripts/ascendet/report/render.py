"""Write a page as one self-contained HTML file, and as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from ascendet import paths
from ascendet.report.document import Cell, Figure, Page, Table
from ascendet.report.words import Words

HTML = "report.html"
MARKDOWN = "report.md"
PICTURES = "pictures"
_TEMPLATES = Path(__file__).with_name("templates")
_GREY = "#777777"  # of texts and axes in charts, which take the page's colour instead


def tidy(text: str) -> str:
    """Return text without this machine's folders: paths in the repository as users type them, home folders as `~`."""
    text = paths.printable(text).replace(f"{paths.ROOT}/", "")
    home = str(paths.home() or "")
    return re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text) if len(home) > 1 else text


def write(page: Page, words: Words, folder: Path) -> None:
    """Write report.html, report.md and the pictures of the latter into a folder."""
    (folder / HTML).write_text(to_html(page, words), encoding="utf-8")
    (folder / MARKDOWN).write_text(to_markdown(page, words), encoding="utf-8")
    for figure in figures(page):
        (folder / PICTURES).mkdir(exist_ok=True)
        (folder / PICTURES / figure.name).write_bytes(figure.content)


def figures(page: Page) -> Iterator[Figure]:
    """Yield all figures of a page."""
    for section in page.sections:
        for block in section.blocks:
            if block.kind == "figure":
                yield block  # type: ignore[misc]  # its kind says so
            elif block.kind == "gallery":
                yield from block.figures  # type: ignore[union-attr]


def marks(table: Table) -> tuple[bool, Sequence[bool]]:
    """Return whether all figures of a table are simulated, so that it says so once; and which columns' all are.

    Without the first cells of the rows where those are names. An empty cell and a dash are no figures.
    """
    first = 1 if table.head else 0
    columns = [
        [row[at] for row in table.rows if at < len(row) and row[at].text not in ("", "–")]
        for at in range(len(table.columns))
    ]
    whole = [bool(cells) and all(cell.simulated for cell in cells) for cells in columns]
    figures_ = [cells for cells in columns[first:] if cells]
    everything = bool(figures_) and all(all(cell.simulated for cell in cells) for cells in figures_)
    return everything, whole


def to_html(page: Page, words: Words) -> str:
    """Return a page as HTML; every text in it is escaped."""
    environment = _environment()
    environment.filters["inline"] = _inline
    css = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704  # ours
    return environment.get_template("report.html.j2").render(page=page, t=words, css=css)


def to_markdown(page: Page, words: Words) -> str:
    """Return a page as Markdown; signs in its texts that Markdown or HTML would take for their own are escaped."""
    environment = _environment()
    # What is Markup is not escaped once more, as HTML.
    environment.finalize = _final
    environment.filters["cell"] = _markdown_cell
    environment.filters["code"] = lambda text: _markdown_cell(Cell(text=text, code=True), words)
    environment.filters["raw"] = _fenced
    environment.globals["pictures"] = Markup("pictures")
    text = environment.get_template("report.md.j2").render(page=page, t=words)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: tidy(value) if type(value) is str else value,
    )
    environment.globals["marks"] = marks
    return environment


def _final(value: object) -> Markup:
    """Return a value for Markdown: escaped, unless it is a piece of Markdown already."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    before, after = text[:1] == " ", text[-1:] == " "  # of words that stand between two values
    return Markup(" " * before + escape_markdown(text) + " " * after)  # noqa: S704  # escaped


def _inline(figure: Figure) -> Markup:
    """Return a figure's element: an SVG as it is, which charts.py has checked, a picture as a data URI."""
    if figure.vector:
        text = figure.content.decode("utf-8").replace(_GREY, "currentColor")
        label = html.escape(figure.alt, quote=True)
        # The label that a page shows and a screen reader reads is the page's.
        text = re.sub(r'^(<svg\b[^>]*?)\s+role="img"(?:\s+aria-label="[^"]*")?', r"\1", text)
        return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))  # noqa: S704
    data = base64.b64encode(figure.content).decode("ascii")
    return Markup('<img alt="{}" src="data:image/jpeg;base64,{}">').format(tidy(figure.alt), data)


def _fenced(text: str) -> Markup:
    """Return text for a code fence, which it cannot close."""
    return Markup(tidy(text).replace("```", ""))  # noqa: S704


def escape_markdown(text: str) -> str:
    r"""Return text whose signs mean nothing in Markdown, on one line.

    >>> print(escape_markdown("a|b <script> *c* [d](e)\n# f"))
    a\|b &lt;script&gt; \*c\* \[d\](e) # f
    """
    text = " ".join(html.escape(tidy(text), quote=False).split())
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", re.sub(r"^([#+-]|\d+\.)(?=\s)", r"\\\1", text))


def _markdown_cell(cell: Cell, words: Words, *, marked: bool = True) -> Markup:
    text = tidy(cell.text)
    if cell.code and text:
        text = f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>".replace("\n", " ")
    else:
        text = escape_markdown(text)
    if cell.strong and text:
        text = f"**{text}**"
    if cell.simulated and marked and text:
        text += words("page.brackets", text=words("page.simulated"))
    return Markup(text)  # noqa: S704  # escaped above


def terminal(page: Page, most: int) -> Iterator[str]:
    """Yield the verdict for a terminal: a headline, then a line each, at most `most` lines in all."""
    words = Words("zh" if page.language.startswith("zh") else "en")
    yield page.headline + words("page.brackets", text=page.summary)
    shown = page.verdict if len(page.verdict) < most else page.verdict[: most - 2]
    width = max((_width(line.subject) for line in shown), default=0)
    for line in shown:
        made = words("page.brackets", text=words("page.simulated")) if line.simulated else ""
        command = words("page.colon") + line.command if line.command else ""
        pad = " " * (width - _width(line.subject))
        yield tidy(f"  {line.mark} {line.subject}{pad}  {line.text}{made}{command}")
    if left := len(page.verdict) - len(shown):
        yield f"  … {left}"


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes: a Chinese character takes two."""
    return sum(2 if ord(one) > 0x2E7F else 1 for one in text)
