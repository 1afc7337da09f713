"""What a report consists of, whatever it is written as: sections of tables, figures, commands and remarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A piece of text: what it is (a figure of simulated devices, code) and how it stands out."""

    text: str
    simulated: bool = False
    code: bool = False
    strong: bool = False
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A sentence or more."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; columns from `numeric` on are aligned to the right; `head` says that the first cell names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    numeric: int = 1
    head: bool = True
    kind: str = "table"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Names with their values."""

    rows: Sequence[tuple[str, Sequence[Cell]]]
    kind: str = "listing"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart or a picture: `content` is the file's, `name` what the Markdown's file is called."""

    name: str
    content: bytes
    alt: str
    caption: str = ""
    simulated: bool = False
    kind: str = "figure"

    @property
    def vector(self) -> bool:
        """Whether it is an SVG."""
        return self.name.endswith(".svg")


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Figures beside each other."""

    figures: Sequence[Figure]
    title: str = ""
    kind: str = "gallery"


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Commands, one a line."""

    lines: Sequence[str]
    kind: str = "commands"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What is not shown, and the command that makes it."""

    text: str
    command: str | None = None
    kind: str = "missing"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file that cannot be used, why, and the command that mends it, after the words that `lead` to it."""

    text: str
    why: str
    lead: str
    command: str
    kind: str = "damage"


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: str = "heading"


Block = Paragraph | Table | Listing | Figure | Gallery | Commands | Missing | Damage | Heading


@dataclass(kw_only=True)
class Section:
    """A section: its anchor, title and blocks."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the key numbers on the first screen."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    simulated: bool = False
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A line of the verdict in words."""

    state: str
    mark: str
    subject: str
    text: str
    section: str
    command: str | None = None
    simulated: bool = False


@dataclass(kw_only=True)
class Page:
    """A whole report."""

    language: str
    title: str
    subtitle: Sequence[Cell]
    simulated: bool
    outcome: str
    headline: str
    summary: str
    tiles: Sequence[Tile]
    verdict: Sequence[Judged]
    sections: Sequence[Section]
    made: str
