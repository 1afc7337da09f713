"""Write SHA256SUMS of a folder, and verify the folder by it and by what its index says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ascendet.core import files
from ascendet.release import index

NAME = "SHA256SUMS"
SIGNATURE = f"{NAME}.sig"  # of a signed release


def write(folder: Path) -> None:
    """Write the digest of every file in the folder, in the format of `sha256sum --check`."""
    names = sorted(file.relative_to(folder).as_posix() for file in files.walk(folder))
    (folder / NAME).write_text("".join(f"{files.digest(folder / name)}  {name}\n" for name in names))


def read(folder: Path) -> dict[str, str]:
    """Return the stated digests by relative name; raise ValueError for a line of another form."""
    stated = {}
    for number, line in enumerate((folder / NAME).read_text(encoding="utf-8").splitlines(), start=1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or not name:
            raise ValueError(f"{NAME}:{number}: not '<sha256>  <file>'")
        stated[name] = digest
    return stated


def listed(problems: Sequence[str], most: int = 10) -> str:
    """Return the first of many problems, a line each, and how many more there are."""
    more = len(problems) - most
    return "\n".join([*problems[:most], *([f"and {more} more"] if more > 0 else [])])


def problems(folder: Path) -> list[str]:
    """Return a sentence for every difference between the folder, its SHA256SUMS and its index; none if it is sound."""
    try:
        stated = read(folder)
        pages = index.read(folder)
    except FileNotFoundError as error:
        return [f"{Path(str(error.filename)).name} is missing"]
    except (OSError, ValueError) as error:
        return [str(error)]
    found = {file.relative_to(folder).as_posix(): file for file in files.walk(folder)}
    lines = [f"{name} is missing" for name in sorted(stated.keys() - found.keys())]
    lines += [f"{name} is not in {NAME}" for name in sorted(found.keys() - stated.keys() - {NAME, SIGNATURE})]
    changed = {name for name in stated.keys() & found.keys() if files.digest(found[name]) != stated[name]}
    lines += [f"{name} has another digest than in {NAME}" for name in sorted(changed)]
    offered: set[str] = set()
    for page, links in pages.items():
        offered |= links.keys()
        for name, digest in links.items():
            if name not in found:
                lines.append(f"{page} lists {name}, which is missing")
            elif stated.get(name) != digest:
                lines.append(f"{page} states another digest of {name} than {NAME}")
    wheels = {name for name in found if name.endswith(".whl")}
    lines += [f"no page lists {name}" for name in sorted(wheels - offered)]
    return lines
