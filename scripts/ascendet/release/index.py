"""Write and read a static package index: PEP 503 and 691 pages over a flat folder of wheels, with PEP 658 metadata.

`simple/<project>/index.html` is what pip reads, from the folder or from any web server; `simple/<project>/index.json`
is the same for tools that ask for JSON. All links are relative, so the folder can be moved.
"""

from __future__ import annotations

import email.parser
import hashlib
import html
import json
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascendet.core import files
from ascendet.supply import index as supply_index
from ascendet.supply import lockfiles
from ascendet.wheels import wheelfile

WHEELS, SIMPLE = "wheels", "simple"
_VERSION = "1.1"  # of the index's format, PEP 700


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of the index.

    Attributes
    ----------
    project, version
        The project's normalised name, and the version in the file's metadata.
    name, size, sha256
        The wheel's file name, its size in bytes, its digest in hex.
    requires_python, licence
        What its metadata says of the versions of Python that it is for, "" for any, and of its licence, "" for nothing.
    metadata
        The content of METADATA.
    """

    project: str
    version: str
    name: str
    size: int
    sha256: str
    requires_python: str
    licence: str
    metadata: bytes

    @property
    def metadata_sha256(self) -> str:
        """The digest of the metadata file beside the wheel, in hex."""
        return hashlib.sha256(self.metadata).hexdigest()


def read_wheel(path: Path) -> Entry:
    """Return a wheel's entry; raise `wheel-corrupt` if the file is damaged."""
    wheel = wheelfile.read(path)
    metadata = wheel.files[f"{wheel.dist_info}/METADATA"]
    stated = email.parser.BytesHeaderParser().parsebytes(metadata)
    return Entry(
        project=lockfiles.normalise(wheel.name),
        version=wheel.version,
        name=path.name,
        size=path.stat().st_size,
        sha256=files.digest(path),
        requires_python=str(stated["Requires-Python"] or ""),
        licence=str(stated["License-Expression"] or stated["License"] or ""),
        metadata=metadata,
    )


def write(folder: Path, entries: Iterable[Entry]) -> None:
    """Write the pages, and each wheel's metadata beside it, for the wheels in `folder`/wheels."""
    projects: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.name):
        projects.setdefault(entry.project, []).append(entry)
        (folder / WHEELS / f"{entry.name}.metadata").write_bytes(entry.metadata)
    links = {f"{project}/": project for project in sorted(projects)}
    _write_pages(
        folder / SIMPLE,
        _page("Index", [f'<a href="{link}">{text}</a>' for link, text in links.items()]),
        {"projects": [{"name": project} for project in sorted(projects)]},
    )
    for project, found in projects.items():
        listing = {
            "name": project,
            "versions": sorted({entry.version for entry in found}),
            "files": list(map(_json_file, found)),
        }
        _write_pages(folder / SIMPLE / project, _page(project, list(map(_html_link, found))), listing)


def read(folder: Path) -> dict[str, dict[str, str]]:
    """Return what the pages of an index say: SHA-256 by file, relative to `folder`, by page.

    Raises
    ------
    ValueError
        A page cannot be read, or an entry has no digest.
    """
    pages = {}
    for page in sorted((folder / SIMPLE).glob("*/index.*")):
        found: dict[str, str] = {}
        text = page.read_text(encoding="utf-8")
        for link in _json_links(text) if page.suffix == ".json" else supply_index.links_in(text):
            target, _, digest = link.partition("#sha256=")
            if not digest:
                raise ValueError(f"{page.parent.name}/{page.name}: {link} has no digest")
            place = (page.parent / urllib.parse.unquote(target)).resolve()
            if not place.is_relative_to((folder / WHEELS).resolve()):
                raise ValueError(f"{page.parent.name}/{page.name}: {link} leads out of {WHEELS}/")
            found[place.relative_to(folder.resolve()).as_posix()] = digest
        pages[page.relative_to(folder).as_posix()] = found
    return pages


def _write_pages(folder: Path, page: str, listing: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(page, encoding="utf-8")
    whole = {"meta": {"api-version": _VERSION}, **listing}
    (folder / "index.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _page(title: str, links: Iterable[str]) -> str:
    body = "".join(f"    {link}<br>\n" for link in links)
    head = f'<meta name="pypi:repository-version" content="{_VERSION}">\n    <title>{title}</title>'
    return f"<!DOCTYPE html>\n<html>\n  <head>\n    {head}\n  </head>\n  <body>\n{body}  </body>\n</html>\n"


def _address(entry: Entry) -> str:
    return f"../../{WHEELS}/{urllib.parse.quote(entry.name)}"


def _html_link(entry: Entry) -> str:
    known = f"sha256={entry.metadata_sha256}"
    attributes = [f'href="{_address(entry)}#sha256={entry.sha256}"']
    if entry.requires_python:
        attributes.append(f'data-requires-python="{html.escape(entry.requires_python)}"')
    # PEP 658 and, by its later name, PEP 714.
    attributes += [f'data-dist-info-metadata="{known}"', f'data-core-metadata="{known}"']
    return f"<a {' '.join(attributes)}>{entry.name}</a>"


def _json_file(entry: Entry) -> dict[str, Any]:
    return {
        "filename": entry.name,
        "url": _address(entry),
        "size": entry.size,
        "hashes": {"sha256": entry.sha256},
        **({"requires-python": entry.requires_python} if entry.requires_python else {}),
        "core-metadata": {"sha256": entry.metadata_sha256},
    }


def _json_links(text: str) -> list[str]:
    try:
        listed = json.loads(text)["files"]
        return [f"{file['url']}#sha256={file['hashes']['sha256']}" for file in listed]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a page of PEP 691: {error!r}") from error
