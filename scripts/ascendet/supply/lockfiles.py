"""The files in requirements/lock/, and the requirements that they are made from.

No lock names a host: the user's pip configuration says where files come from, and the hash verifies them.
"""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

from ascendet import paths
from ascendet.core.stack import Stack, load_all
from ascendet.errors import AscendetError
from ascendet.machine import arch

COMMAND = "make relock"


# Not locked, although packages require it: it needs libGL, which a minimal system lacks. opencv-python-headless has the
# same module.
REPLACED = "opencv-python"


_BLOCK = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)
_HASH = re.compile(r"--hash=(\S+)")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) \\$", re.MULTILINE)


def lock_names() -> list[str]:
    """Return the names of all files that `make relock` writes (in data.toml only digests that are unknown so far)."""
    names = [
        "sources.toml",
        "data.toml",
        "images.toml",
        *(packages_lock(name).name for name in package_lists()),
    ]
    for stack in load_all():
        names += [f"{stack}-torch-{machine}.txt" for machine in arch.KNOWN]
    return names


def package_lists() -> list[str]:
    """Return the names of all `*.in` files, without the suffix."""
    return list(dict.fromkeys(["tools", *(stack.packages for stack in load_all().values())]))


def packages_lock(packages: str) -> Path:
    """Return the path of the lock of `<packages>.in`."""
    return paths.LOCK / f"{packages}.txt"


def torch_lock(stack: Stack, machine: str) -> Path:
    """Return the path of the torch family's lock for an architecture; raise `lock-missing` if there is none."""
    path = paths.LOCK / f"{stack.name}-torch-{machine}.txt"
    if not path.exists():
        raise AscendetError(
            "lock-missing",
            f"the {stack.name} stack has no torch lock for this architecture",
            expected=f"one of {', '.join(arch.KNOWN)}",
            found=machine,
            hint=COMMAND,
        )
    return path


def pins(text: str) -> dict[str, str]:
    r"""Return the pinned versions in a lock by normalised name.

    >>> pins("Foo.Bar==1.2 \\\n    --hash=sha256:00\n")
    {'foo-bar': '1.2'}
    """
    return {normalise(name): version for name, version in _PIN.findall(text)}


def hashes(text: str) -> dict[tuple[str, str], list[str]]:
    r"""Return the hashes in a lock by normalised name and version.

    >>> hashes("Foo==1 \\\n    --hash=sha256:00\n    # via bar\n")
    {('foo', '1'): ['sha256:00']}
    """
    return {(normalise(name), version): _HASH.findall(found) for name, version, found in _BLOCK.findall(text)}


def part(text: str, names: Set[str]) -> str:
    r"""Return the part of a lock that is about some packages, by their normalised names.

    >>> part("numpy==2 \\\n    --hash=sha256:00\npip==1 \\\n    --hash=sha256:11\n", {"numpy"})
    'numpy==2 \\\n    --hash=sha256:00\n'
    """
    blocks = re.split(r"^(?=\w)", text, flags=re.MULTILINE)
    return "".join(block for block in blocks if normalise(block.partition("==")[0]) in names)


def normalise(name: str) -> str:
    """Return a project name normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wishes(text: str) -> list[str]:
    """Return the requirement lines of an `*.in` file."""
    return [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]


def image_names() -> list[str]:
    """Return the names and tags of the CANN images of all stacks."""
    return sorted({stack.base_image(soc) for stack in load_all().values() for soc in stack.soc})


def sdists() -> list[str]:
    """Return the file names of all source distributions that upstreams are pinned to."""
    pinned = [pin for stack in load_all().values() for pin in stack.upstreams.values()]
    return sorted({pin.sdist for pin in pinned if pin.sdist is not None})
