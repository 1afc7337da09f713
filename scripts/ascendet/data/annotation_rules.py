"""The rules for annotation files, by name; docs/annotations.md explains each to users."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Action = Literal["noted", "repaired", "dropped", "refused"]
_FIRST = 5  # number of examples that a finding shows

# Each sentence describes one occurrence; the number of occurrences is printed beside it.
_RULES: dict[Action, dict[str, str]] = {
    "refused": {
        # the file
        "not-text": "the file is neither UTF-8 nor UTF-16 text",
        "not-json": "the file is not JSON, or it ends too early",
        "key-twice": "an object gives one key two different values",
        "not-coco": "the top level is not an object with the lists images, annotations and categories",
        # categories
        "categories-none": "there are no categories",
        "category-invalid": "a category lacks an id, or a name that is text",
        "category-id-twice": "two categories have the same id",
        "category-name-twice": "two categories have the same name",
        # images
        "images-none": "no picture can be used",
        "image-id-twice": "two different images have the same id",
        "file-name-outside": "a file_name is absolute or leads out of the picture folder by ..",
        "file-name-conflict": "two images name the same file and state different sizes",
        "pictures-missing": "not one of the pictures is in the picture folder",
        # annotations
        "boxes-in-fractions": "every box lies within 0 to 1: fractions of the picture's size, where pixels are needed",
        "boxes-corners": "the boxes look like [x1, y1, x2, y2], where [x, y, width, height] is needed",
        "boxes-contradict-masks": "most boxes do not surround their object's mask",
        "masks-absent": "not one object has a mask, and the models learn masks",
        "all-crowd": "every object is a crowd, of which nothing is learnt",
        "nothing-to-train-on": "no object can be used",
    },
    "dropped": {
        "category-root": "a category that no object has and that all others name as their supercategory "
        "(the first of a Roboflow export)",
        "image-invalid": "an entry of images is not an object, or it has no id that can be used",
        "image-size-invalid": "width or height is no whole number of pixels, or absent without a file to read it from",
        "image-size-differs": "the picture's file has another size than its annotations state",
        "file-name-invalid": "an image has no file_name that can be one",
        "picture-missing": "the picture is not in the picture folder",
        "picture-unreadable": "the file is no picture, or is truncated",
        "object-invalid": "an entry of annotations is not an object",
        "object-image-unknown": "an object's image_id names no image",
        "object-image-dropped": "an object of a picture that was dropped",
        "object-category-unknown": "an object's category_id names no category",
        "crowd-invalid": "iscrowd is neither 0 nor 1",
        "box-invalid": "a box is not four finite numbers",
        "box-negative": "a box has a negative width or height",
        "box-empty": "a box has no width or no height",
        "box-outside": "a box lies outside its picture",
        "box-contradicts-mask": "a box does not surround its object's mask",
        "mask-absent": "an object has no mask",
        "mask-invalid": "a mask is neither run lengths nor polygons of at least three points",
        "mask-far": "each polygon of a mask has points far from the picture",
        "mask-size": "a mask of run lengths has another size than its picture",
        "mask-counts": "a mask's run lengths are damaged or do not add up to its size",
        "mask-empty": "a mask covers no pixel of the picture",
    },
    "repaired": {
        "byte-order-mark": "the file begins with a byte order mark",
        "utf-16": "the file is UTF-16; JSON is UTF-8",
        "number-literal": "NaN or Infinity, which JSON does not know, is taken as missing",
        "id-form": "an id in quotes or with a decimal point is now a whole number",
        "category-ids": "category ids that an evaluator cannot use are numbered from 1; the old one is original_id",
        "category-name-number": "a category's name is a number; it is now text",
        "category-repeated": "a category is listed twice in the same words",
        "image-ids": "image ids that an evaluator cannot use are numbered from 1; the old one is original_id",
        "image-repeated": "an image is listed twice in the same words",
        "image-size-absent": "width and height are absent and now those of the file",
        "file-name-form": "a file_name with backslashes, ./ or // is now written with single /",
        "file-name-case": "a file_name differs from the file's in case or accents' form and is now the file's",
        "file-name-encoding": "a file's name is not UTF-8 (zips from Chinese, Japanese or Korean Windows) and the "
        "file_name is now the file's",
        "file-name-twice": "two images name the same file and are now one, with the objects of both",
        "object-ids": "annotation ids that are missing, equal, or that an evaluator cannot use are numbered from 1; "
        "the old one is original_id",
        "crowd-absent": "iscrowd is absent and now 0",
        "crowd-form": "iscrowd is true, false or in quotes and now 0 or 1",
        "area-absent": "area is absent and now the mask's",
        "area-invalid": "area is not a number above 0 and now the mask's",
        "box-absent": "a box is absent and now the one around the mask",
        "box-clipped": "a box reaches beyond its picture and is now cut to it",
        "mask-flat": "a mask is one flat list of coordinates and now a list of polygons",
        "polygon-invalid": "a mask's polygon with an odd number of coordinates, fewer than three points, or points far "
        "from the picture is left out",
    },
    "noted": {
        "picture-turned": "the picture is to be turned (EXIF), and its annotations fit it turned",
        "category-unused": "no object has this category",
        "box-thin": "a box is narrower than a pixel; the training passes over it",
        "mask-outside": "a polygon reaches beyond its picture, where it is cut",
        "area-differs": "area is far from the mask's; it decides only in which of the scores for small, medium and "
        "large objects an object counts",
        "nothing-to-score": "there is no object, so there are no scores",
    },
}
RULES: dict[str, tuple[Action, str]] = {
    name: (action, what) for action, rules in _RULES.items() for name, what in rules.items()
}
# Findings that the families and the evaluator can handle in the original file. All others need the copy that
# `make data` writes.
IN_PLACE = frozenset({*_RULES["noted"], "box-empty", "box-clipped", "mask-empty"})


@dataclass(kw_only=True)
class Finding:
    """A rule that an annotation file breaks: how often, and the first ids or names."""

    name: str
    action: Action
    what: str
    count: int = 0
    first: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return the finding as one line.

        >>> Finding(name="box-empty", action="dropped", what="a box has no width", count=2, first=["7", "9"]).line()
        'box-empty: a box has no width (2: 7, 9)'
        """
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.name}: {self.what} ({self.count}{': ' if self.first else ''}{', '.join(self.first)}{more})"


class Findings:
    """The findings about one file, in the order in which they were added."""

    def __init__(self) -> None:
        self.by_name: dict[str, Finding] = {}

    def add(self, name: str, example: object = None) -> None:
        """Count one more occurrence of a rule; `example` is the id or name of the entry."""
        finding = self.by_name.get(name)
        if finding is None:
            action, what = RULES[name]
            finding = self.by_name[name] = Finding(name=name, action=action, what=what)
        finding.count += 1
        if example is not None and len(finding.first) < _FIRST:
            finding.first.append(shown(example))

    def extend(self, name: str, examples: Iterable[object]) -> None:
        """Count an occurrence of a rule for each of the examples."""
        for example in examples:
            self.add(name, example)

    @property
    def refused(self) -> bool:
        """Whether the file cannot be used."""
        return any(finding.action == "refused" for finding in self.by_name.values())

    def sorted(self) -> list[Finding]:
        """Return the findings, the most serious ones first."""
        order = list(_RULES)
        return sorted(self.by_name.values(), key=lambda finding: order.index(finding.action))

    def as_json(self) -> list[dict[str, Any]]:
        """Return the findings as JSON values."""
        return [asdict(finding) for finding in self.sorted()]


def shown(value: object, limit: int = 60) -> str:
    r"""Return a value from a file as text that every terminal can print, of at most `limit` characters.

    >>> shown("a\udcff\n"), shown(3), shown([1] * 99)[-3:]
    ('a\\udcff\\n', '3', '1 …')
    """
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # an integer with more digits than Python prints
        text = "a number of thousands of digits"
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return text if len(text) <= limit else f"{text[: limit - 2].rstrip(', ')} …"
