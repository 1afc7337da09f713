"""Check the categories and images of an annotation file with each other and with the picture files."""

from __future__ import annotations

import contextlib
import os
import posixpath
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

from ascendet.data.annotation_rules import Findings, shown

Entry = dict[str, Any]
Id = int | str
LARGEST_ID = 2**31 - 1
_LARGEST_PICTURE = 2**30  # pixels, OpenCV's limit
_TURNED = range(5, 9)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112
_EVERY = 5.0  # seconds between lines of progress
# The encodings of names in zips that Windows makes in China, Taiwan, Japan and Korea.
_ENCODINGS = ("gb18030", "big5", "shift_jis", "cp949")
# The last bytes of a complete file, by Pillow's name of the format.
_TAIL = 64  # bytes at a file's end to look at
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def as_id(value: object) -> Id | None:
    """Return an id as a number or text: 7, 7.0 and "7" are 7, other text is an id as it is; None for an invalid id.

    >>> as_id(7.0), as_id("7"), as_id("07"), as_id(True), as_id(7.5)
    (7, 7, '07', None, None)
    """
    if type(value) is int:
        return value
    if type(value) is float:
        return int(value) if value.is_integer() else None
    if type(value) is str and value:
        plain = (
            len(value) < 19 and value.isascii() and value.isdecimal() and (value[0] != "0" or value == "0")
        )
        return int(value) if plain else value
    return None


def renumber(entries: list[Entry], ids: list[Id | None], rule: str, findings: Findings) -> None:
    """Give entries ids that all evaluators can use: unique whole numbers from 1 to 2^31 - 1."""
    usable = [type(one) is int and 1 <= one <= LARGEST_ID for one in ids]
    repeated = {one for one, count in Counter(ids).items() if count > 1}
    bad = [not fine or one in repeated for fine, one in zip(usable, ids, strict=True)]
    if any(bad):
        findings.extend(rule, (entry.get("id") for entry, is_bad in zip(entries, bad, strict=True) if is_bad))
        for number, entry in enumerate(entries, 1):
            if "id" in entry and entry["id"] != number:
                entry["original_id"] = entry["id"]
            entry["id"] = number
        return
    for entry, one in zip(entries, ids, strict=True):
        if type(entry["id"]) is not int:
            findings.add("id-form", entry["id"])
            entry["id"] = one


# -- categories --


def check_categories(entries: list[Any], used: set[Id], findings: Findings) -> dict[Id, Entry]:
    """Return the categories by the id that objects refer to, sorted by id; give them ids that all evaluators can use.

    `used` are the ids that objects refer to.
    """
    if not entries:
        findings.add("categories-none")
    found: dict[Id, Entry] = {}
    for position, entry in enumerate(entries):
        identity = as_id(entry.get("id")) if isinstance(entry, dict) else None
        if identity is None or not _has_name(entry, findings):
            findings.add("category-invalid", f"categories[{position}]: {shown(entry)}")
        elif identity not in found:
            found[identity] = entry
        elif found[identity] == entry:
            findings.add("category-repeated", identity)
        else:
            findings.add("category-id-twice", identity)
    if all(isinstance(one, int) for one in found):
        found = dict(sorted(found.items()))
    _drop_root(found, used, findings)
    names = Counter(entry["name"] for entry in found.values())
    findings.extend("category-name-twice", (name for name, count in names.items() if count > 1))
    findings.extend("category-unused", (entry["name"] for one, entry in found.items() if one not in used))
    renumber(list(found.values()), list(found), "category-ids", findings)
    return found


def _has_name(entry: Entry, findings: Findings) -> bool:
    name = entry.get("name")
    if type(name) in (int, float):
        findings.add("category-name-number", name)
        entry["name"] = name = shown(name)
    return isinstance(name, str) and bool(name.strip()) and _is_text(name)


def _drop_root(found: dict[Id, Entry], used: set[Id], findings: Findings) -> None:
    """Remove Roboflow's first category: the project's name, which all other categories have as supercategory."""
    first = next(iter(found), None)
    if first is None or first in used or len(found) < 2:
        return
    others = [entry for one, entry in found.items() if one != first]
    if found[first].get("supercategory") == "none" and all(
        entry.get("supercategory") == found[first]["name"] for entry in others
    ):
        findings.add("category-root", found.pop(first)["name"])


# -- images --


def check_images(
    entries: list[Any], pictures: Path | None, findings: Findings
) -> tuple[dict[Id, Entry | None], list[Entry]]:
    """Return the images by the id that objects refer to (None for dropped ones), and the list of the kept images."""
    found: dict[Id, Entry | None] = {}
    for position, entry in enumerate(entries):
        identity = as_id(entry.get("id")) if isinstance(entry, dict) else None
        if identity is None:
            findings.add("image-invalid", f"images[{position}]: {shown(entry)}")
        elif identity not in found:
            found[identity] = entry
        elif found[identity] == entry:
            findings.add("image-repeated", identity)
        else:
            findings.add("image-id-twice", identity)
    for identity, entry in found.items():
        if not _check_name(entry or {}, findings):
            found[identity] = None
    if pictures is not None:
        _find_files(found, pictures, findings)
    _check_sizes(found, pictures, findings)
    _join_twins(found, findings)
    kept = list({id(entry): entry for entry in found.values() if entry is not None}.values())
    if not kept:
        findings.add("images-none")
    renumber(kept, [as_id(entry["id"]) for entry in kept], "image-ids", findings)
    return found, kept


def _check_name(entry: Entry, findings: Findings) -> bool:
    """Return whether an image's file_name is valid and stays in the picture folder."""
    name = entry.get("file_name")
    if not isinstance(name, str) or not name.strip("./\\ ") or "\0" in name or not _is_text(name):
        findings.add("file-name-invalid", entry.get("id") if name is None else name)
        return False
    windows = PureWindowsPath(name)  # takes / and \
    if windows.drive or windows.root or ".." in windows.parts:
        findings.add("file-name-outside", name)
        return False
    return True


def _is_text(name: str) -> bool:
    """Return whether a name can be encoded; bytes that are not UTF-8, as lone surrogates, can."""
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _find_files(found: dict[Id, Entry | None], pictures: Path, findings: Findings) -> None:
    """Replace each file_name with the name of the existing file; drop images without a file."""
    names = set(list_files(pictures))
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_fold(name), []).append(name)
    missing = []
    present = 0
    for identity, entry in found.items():
        if entry is None:
            continue
        if entry["file_name"] not in names and not _correct_name(entry, names, alike, pictures, findings):
            missing.append(entry["file_name"])
            found[identity] = None
        else:
            present += 1
    findings.extend("picture-missing" if present else "pictures-missing", missing)


def _correct_name(
    entry: Entry, names: set[str], alike: dict[str, list[str]], pictures: Path, findings: Findings
) -> bool:
    """Look for an image's file under an equivalent name, write that into the entry, and return whether it was found."""
    given = entry["file_name"]
    name = posixpath.normpath(given.replace("\\", "/"))
    similar = alike.get(_fold(name), [])
    if name in names or (pictures / name).is_file():
        if name != given:
            findings.add("file-name-form", given)
    elif len(similar) == 1:
        findings.add("file-name-case", given)
        name = similar[0]
    elif encoded := [other for other in _encode(name) if other in names]:
        findings.add("file-name-encoding", given)
        name = encoded[0]
    else:
        return False
    entry["file_name"] = name
    return True


def _encode(name: str) -> Iterator[str]:
    """Yield a name as the file system shows it if its bytes are in one of `_ENCODINGS`."""
    for encoding in _ENCODINGS:
        with contextlib.suppress(UnicodeEncodeError):
            yield os.fsdecode(name.encode(encoding))


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def list_files(folder: Path) -> Iterator[str]:
    """Yield the relative names of all files below a folder."""
    for root, _, files in os.walk(folder):
        start = os.path.relpath(root, folder)
        for name in files:
            yield name if start == "." else f"{start}/{name}"


def _check_sizes(found: dict[Id, Entry | None], pictures: Path | None, findings: Findings) -> None:
    """Compare the stated width and height with the headers of the files."""
    stated = {one: _stated_size(entry) for one, entry in found.items() if entry is not None}
    names = {one: str((found[one] or {})["file_name"]) for one in stated}
    sizes = read_sizes(pictures, {names[one]: size for one, size in stated.items()}) if pictures else {}
    for identity, entry in found.items():
        if entry is None:
            continue
        name, size = names[identity], stated[identity]
        if pictures is None:
            problem = None if size else "image-size-invalid"
        else:
            read = sizes[name]
            problem = _compare_size(entry, size, read, findings) if read else "picture-unreadable"
        if problem:
            findings.add(problem, name)
            found[identity] = None


def _compare_size(
    entry: Entry, stated: tuple[int, int] | None, read: tuple[int, int, bool], findings: Findings
) -> str | None:
    """Return the rule that a size breaks, or None; both the stored and the turned size are accepted, as in training."""
    width, height, turned = read
    if width * height > _LARGEST_PICTURE:
        return "image-size-invalid"
    if stated is None:
        if entry.get("width") is not None or entry.get("height") is not None:
            return "image-size-invalid"
        findings.add("image-size-absent", entry["file_name"])
        entry["width"], entry["height"] = (height, width) if turned else (width, height)
    elif turned and stated == (height, width):
        findings.add("picture-turned", entry["file_name"])
    elif stated != (width, height):
        return "image-size-differs"
    return None


def _stated_size(entry: Entry) -> tuple[int, int] | None:
    width, height = as_id(entry.get("width")), as_id(entry.get("height"))
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        return None
    if width * height > _LARGEST_PICTURE:
        return None
    entry["width"], entry["height"] = width, height
    return width, height


def read_sizes(
    folder: Path, stated: Mapping[str, tuple[int, int] | None]
) -> dict[str, tuple[int, int, bool] | None]:
    """Return the result of `read_size` for each picture by name; read several at a time and print the progress."""
    sizes = {}
    told = time.monotonic()
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        results = pool.map(lambda name: read_size(folder / name, stated[name]), stated)
        for count, (name, size) in enumerate(zip(stated, results, strict=True)):
            sizes[name] = size
            if time.monotonic() - told > _EVERY:
                told = time.monotonic()
                print(f"picture sizes: {count} of {len(stated)} read", file=sys.stderr, flush=True)
    return sizes


def read_size(path: Path, stated: tuple[int, int] | None) -> tuple[int, int, bool] | None:
    """Return a picture's width and height as stored, and whether its EXIF orientation swaps them; None if unreadable.

    The orientation is read only if the size is not the stated one, because in a PNG it may follow the pixels. Pixels
    are decoded only if the file does not end as complete files do, to find out whether it is truncated.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # only `_LARGEST_PICTURE` is a limit
    try:
        with path.open("rb") as file:
            tail = _tail(file)
            with Image.open(file) as image:
                width, height = image.size
                turned = image.size != stated and image.getexif().get(_ORIENTATION) in _TURNED
                end = _ENDS.get(image.format or "")
                if not (end and tail.endswith(end)) and width * height <= _LARGEST_PICTURE:
                    image.load()  # raises OSError if the file is truncated
                return width, height, turned
    except (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError):  # damaged headers
        return None


def _tail(file: BinaryIO) -> bytes:
    """Return a file's last bytes without padding; the position is the file's start afterwards."""
    file.seek(-min(_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read().rstrip(b"\0")
    file.seek(0)
    return tail


def _join_twins(found: dict[Id, Entry | None], findings: Findings) -> None:
    """Merge entries that name the same file."""
    by_name: dict[str, Entry] = {}
    for identity, entry in found.items():
        if entry is None:
            continue
        first = by_name.setdefault(entry["file_name"], entry)
        if first is entry:
            continue
        same = (first["width"], first["height"]) == (entry["width"], entry["height"])
        findings.add("file-name-twice" if same else "file-name-conflict", entry["file_name"])
        found[identity] = first
