"""Input shapes and gears: what --input_shape and the three options of gears say, before the model is read.

A model with gears is compiled once for each of a few shapes; the runtime chooses one. The order of the checks and
their codes are the real tool's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cann_sim.atc.errors import AtcError

LEAST, MOST = 2, 100
KINDS = {"dynamic_batch_size": "batch", "dynamic_image_size": "image", "dynamic_dims": "dims"}
SAMPLE = '"image:1,3,800,1344;scale:1,2"'
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Gears:
    """The kind of gears (`batch`, `image`, `dims`, or "" for none) and their sizes in the order that was given."""

    kind: str
    sizes: tuple[Shape, ...]


@dataclass(frozen=True)
class Request:
    """What the command line says about shapes.

    Attributes
    ----------
    shapes
        Sizes by input name; -1 where a gear varies.
    ranges
        Inputs whose shape varies within a range, with least and greatest size (-1: no limit) of every dimension.
    gears
        The gears of the model.
    """

    shapes: dict[str, Shape]
    ranges: dict[str, tuple[tuple[int, int], ...]]
    gears: Gears


def read_request(
    input_shape: str, input_shape_range: str, options: dict[str, str], input_format: str
) -> Request:
    """Return what --input_shape, --input_shape_range and `options` (by name: the options of gears) ask for.

    Raises `AtcError`: E10001 to E10004, E10009, E10011 to E10014, E10018 to E10020, E10031, E10035 to E10040, E10058.
    """
    given = [name for name in KINDS if options.get(name)]
    if given and "~" in input_shape:
        raise AtcError("E10040", parameter=given[0])
    ranged = input_shape_range
    if not ranged and not given and ("~" in input_shape or "-1" in input_shape):
        ranged = input_shape
    if len(given) + bool(ranged) > 1:
        found = ", ".join(f"--{name}" for name in given + (["input_shape_range"] if ranged else []))
        raise AtcError("E10009", found=found)
    if ranged:
        return Request({}, _ranges(ranged), Gears("", ()))
    if given and not input_shape:
        raise AtcError("E10004", parameter="input_shape")
    shapes = _shapes(input_shape, gears=bool(given))
    if not given:
        return Request(shapes, {}, Gears("", ()))
    name = given[0]
    read = {"batch": _batches, "image": _images, "dims": _dims}[KINDS[name]]
    sizes = read(options[name].rstrip(";"), shapes, input_format)
    _check_sizes(name, sizes)
    return Request(shapes, {}, Gears(KINDS[name], tuple(sizes)))


def gear_shapes(shapes: dict[str, Shape], gears: Gears, size: Shape) -> dict[str, Shape]:
    """Return the static shapes of one gear: each -1 of `shapes` replaced by its size.

    >>> gear_shapes({"x": (-1, 3), "y": (2,)}, Gears("batch", ((1,), (4,))), (4,))
    {'x': (4, 3), 'y': (2,)}
    """
    sizes = list(size)
    result = {}
    for name, shape in shapes.items():
        if gears.kind == "dims":  # the sizes of all inputs in one row
            result[name] = tuple(sizes.pop(0) if dim == -1 else dim for dim in shape)
        else:  # the same size in every input
            own = list(size)
            result[name] = tuple(own.pop(0) if dim == -1 else dim for dim in shape)
    return result


def gear_key(gears: Gears, size: Shape, shapes: dict[str, Shape]) -> Shape:
    """Return the key of a gear's program: for `dims` the sizes of all inputs, one after another, else the gear."""
    return tuple(dim for shape in shapes.values() for dim in shape) if gears.kind == "dims" else size


def _shapes(text: str, *, gears: bool) -> dict[str, Shape]:
    """Return the shapes of `name:1,2;name:3` by name."""
    shapes: dict[str, Shape] = {}
    for part in filter(None, text.split(";")):
        name, colon, sizes = part.rpartition(":")
        if not colon or not name.strip():
            raise AtcError(
                "E10002", shape=part, reason="an input's name and a colon are missing", sample=SAMPLE
            )
        shape = tuple(_size(word.strip(), part) for word in sizes.split(",")) if sizes.strip() else ()
        for size in shape:
            if size <= 0 and not (gears and size == -1):
                raise AtcError("E10011", shape=part, result=size)
        shapes[name.strip()] = shape
    return shapes


def _size(word: str, part: str) -> int:
    """Return one size of a shape."""
    if "." in word:
        raise AtcError("E10002", shape=part, reason="a size is no integer", sample=SAMPLE)
    if not re.match(r"[+-]?\d", word):
        raise AtcError("E10014", parameter="input_shape", value=word or "nothing")
    if not re.fullmatch(r"-?\d+", word):
        raise AtcError("E10002", shape=part, reason=f"{word} is no number", sample=SAMPLE)
    if not -(2**63) <= int(word) < 2**63:
        raise AtcError("E10013", parameter="input_shape", value=word)
    return int(word)


def _ranges(text: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return the ranges of `name:1~4,3` (also with brackets around the sizes) by name."""
    ranges = {}
    for part in filter(None, text.split(";")):
        name, colon, sizes = part.rpartition(":")
        if not colon or not name.strip():
            raise AtcError(
                "E10002", shape=part, reason="an input's name and a colon are missing", sample=SAMPLE
            )
        pairs = []
        for word in sizes.strip("[] ").split(","):
            least, tilde, most = word.strip().partition("~")
            if not re.fullmatch(r"-1|\d+", least) or (tilde and not re.fullmatch(r"-1|\d+", most)):
                raise AtcError("E10002", shape=part, reason=f"{word} is no size and no range", sample=SAMPLE)
            low = int(least)
            pairs.append((low, int(most)) if tilde else ((0, -1) if low == -1 else (low, low)))
        ranges[name.strip()] = tuple(pairs)
    return ranges


def _batches(text: str, shapes: dict[str, Shape], _format: str) -> list[Shape]:
    """Return the gears of --dynamic_batch_size."""
    varying = 0
    for name, shape in shapes.items():
        if not shape:
            raise AtcError("E10012")
        for index, dim in enumerate(shape):
            if dim == -1 and index:
                raise AtcError("E10018", index=index, shape=f"{name}:{','.join(map(str, shape))}")
        varying += shape[0] == -1
    if not varying:
        raise AtcError("E10031")
    if not re.fullmatch(r"[\d,]*", text):
        reason = "it may have digits and commas only"
        raise AtcError("E10003", parameter="dynamic_batch_size", value=text, reason=reason)
    return [(int(word),) for word in text.split(",") if word]


def _images(text: str, shapes: dict[str, Shape], input_format: str) -> list[Shape]:
    """Return the gears of --dynamic_image_size."""
    if input_format != "NCHW":
        reason = "gears of image sizes need NCHW; with ND use --dynamic_dims"
        raise AtcError("E10003", parameter="input_format", value=input_format, reason=reason)
    varying = 0
    for name, shape in shapes.items():
        found = {index for index, dim in enumerate(shape) if dim == -1}
        if found and (len(shape) != 4 or found != {2, 3}):
            raise AtcError("E10019", shape=f"{name}:{','.join(map(str, shape))}")
        varying += bool(found)
    if not varying:
        raise AtcError("E10019", shape="no -1")
    if not re.fullmatch(r"[\d,; ]*", text):
        reason = "it may have digits, commas and semicolons only"
        raise AtcError("E10003", parameter="dynamic_image_size", value=text, reason=reason)
    sizes = []
    for gear in text.split(";"):
        words = gear.split(",")
        if len(words) != 2 or not all(word.strip() for word in words):
            raise AtcError("E10020", value=gear)
        sizes.append(tuple(map(int, words)))
    return sizes


def _dims(text: str, shapes: dict[str, Shape], _format: str) -> list[Shape]:
    """Return the gears of --dynamic_dims."""
    varying = sum(shape.count(-1) for shape in shapes.values())
    if not varying:
        reason = "with --dynamic_dims a size must be -1"
        raise AtcError("E10001", parameter="--input_shape's number of -1", value=0, reason=reason)
    if not text:
        raise AtcError("E10058", parameter="--dynamic_dims")
    sizes = []
    for gear in text.split(";"):
        words = [word.strip() for word in gear.split(",")]
        if len(words) != varying:  # before E10045 and E10046, which the real tool has for the same
            reason = f"a gear has {len(words)} sizes, and --input_shape has -1 {varying} times"
            raise AtcError("E10003", parameter="dynamic_dims", value=text, reason=reason)
        for word in words:
            if not word.isdigit():
                raise AtcError("E10001", parameter="--dynamic_dims", value=word, reason="sizes are positive")
        sizes.append(tuple(map(int, words)))
    return sizes


def _check_sizes(name: str, sizes: list[Shape]) -> None:
    """Check number, lengths, values and repetition of gears."""
    if len(sizes) < LEAST:
        raise AtcError("E10035", parameter=name, found=len(sizes), least=LEAST)
    if len(sizes) > MOST:
        raise AtcError("E10036", parameter=name, found=len(sizes), most=MOST)
    seen = set()
    for size in sizes:
        if len(size) != len(sizes[0]):
            raise AtcError("E10037", parameter=name, first=len(sizes[0]), second=len(size))
        for dim in size:
            if dim <= 0:
                raise AtcError("E10038", parameter=name, dim=dim)
        if size in seen:
            raise AtcError("E10039", parameter=name, gear=",".join(map(str, size)))
        seen.add(size)
