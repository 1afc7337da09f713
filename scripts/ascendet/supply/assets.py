"""The files that requirements/lock/data.toml lists, and the folders that hold them and the data sets.

`root()` is the folder that training reads; `store()` is the folder where files are kept. Both are ASCENDET_DATA if it
is set. Otherwise links in the build folder point to the cache, so that clones share one COCO and `make clean` does not
delete 20 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.errors import AscendetError

if TYPE_CHECKING:
    from ascendet.supply.fetch import Fetched

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """An entry of data.toml; the fields have the names that they have there, sizes are in bytes."""

    name: str
    folder: str
    urls: tuple[str, ...]
    cn: tuple[str, ...] = ()
    bytes: int | None = None
    sha256: str = ""
    md5: str = ""
    licence: str = ""
    unpacked: int = 0
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file's path in the store."""
        return store() / self.folder / self.name

    @property
    def digests(self) -> dict[str, str]:
        """The known digests by algorithm; the SHA-256 may be only its beginning."""
        known = {"sha256": self.sha256, "md5": "" if self.sha256 and len(self.sha256) == 64 else self.md5}
        return {name: value for name, value in known.items() if value not in ("", UNKNOWN)}

    def sources(self, mirror: str) -> tuple[str, ...]:
        """Return the addresses in the order to try; `mirror` is "", "cn", or the address of a folder with such files.

        Raises
        ------
        AscendetError
            `usage`: `mirror` is none of these.
        """
        if mirror.startswith(("https://", "http://")):
            return (f"{mirror.rstrip('/')}/{self.name}", *self.urls, *self.cn)
        if mirror not in ("", "cn"):
            raise AscendetError(
                "usage",
                "MIRROR must be cn or the address of a folder",
                expected="cn, or https://…",
                found=f"MIRROR={mirror}",
                hint="MIRROR=cn",
            )
        return (*self.cn, *self.urls) if mirror == "cn" else (*self.urls, *self.cn)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a stage that fetches."""
    parser.add_argument("--mirror", default="", help="cn, or the address of a folder to try first")
    parser.add_argument("--accept-new", action="store_true", help="record digests that are unknown so far")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def root() -> Path:
    """Return the folder of the data sets that training reads: `ASCENDET_DATA`, or data in the build folder."""
    return Path(os.environ.get("ASCENDET_DATA") or paths.BUILD / "data").absolute()


def store() -> Path:
    """Return the folder that keeps fetched files and unpacked data sets: `ASCENDET_DATA`, or data in the cache."""
    return Path(os.environ.get("ASCENDET_DATA") or paths.CACHE / "data").absolute()


def ensure_folder(name: str) -> Path:
    """Return the folder `name` that training reads; if it is missing, create it in the store, with a link to it.

    Raises
    ------
    AscendetError
        `data-invalid`: another file or folder has this name.
    """
    seen, kept = root() / name, store() / name
    if not seen.is_dir():
        with reporting_unwritable(kept):
            kept.mkdir(parents=True, exist_ok=True)
        if seen != kept:
            point(seen, kept)
    return seen


def point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target`, in one step; raise `data-invalid` if it is a file or folder."""
    if link.exists() and not link.is_symlink():
        raise AscendetError(
            "data-invalid",
            f"{paths.shorten(link)} exists already, so the data set cannot be linked there",
            expected="no such file, or the link that an earlier run made",
            found="another folder or file",
            hint=f"mv {paths.shorten(link)} <elsewhere>, or another ASCENDET_DATA",
        )
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    with reporting_unwritable(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        files.point(link, os.path.relpath(target, link.parent.resolve()))


@contextlib.contextmanager
def reporting_unwritable(path: Path) -> Iterator[None]:
    """Raise `data-invalid` if the block cannot write `path`; errors about a full disk are not changed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AscendetError(
            "data-invalid",
            f"{paths.shorten(path)} cannot be created",
            found=str(error.strerror),
            hint="ASCENDET_DATA=<a writable folder>, or unset it to use the build folder and the cache",
        ) from error


def load() -> dict[str, Asset]:
    """Return all entries of data.toml by name.

    Raises
    ------
    AscendetError
        `data-lock-invalid`.
    """
    path = paths.LOCK / "data.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        assets = {name: _parse(name, table) for name, table in tables.items()}
    except (OSError, tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise AscendetError(
            "data-lock-invalid",
            f"{paths.shorten(path)} cannot be read",
            found=str(error),
            hint=f"git diff {paths.shorten(path)}",
        ) from error
    return assets


def _parse(name: str, table: Mapping[str, object]) -> Asset:
    lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    asset = Asset(name=name, **(dict(table) | lists))  # type: ignore[arg-type]  # checked below
    urls = [*asset.urls, *asset.cn]
    if not urls or not all(isinstance(url, str) and url.startswith(("https://", "http://")) for url in urls):
        raise ValueError(f"[{name}] must have urls or cn, with addresses")
    if not isinstance(asset.bytes, int | None):
        raise ValueError(f"[{name}] bytes must be a number")
    digests = [asset.sha256, asset.md5, *asset.members.values()]
    if not all(re.fullmatch(r"|unknown|[0-9a-f]{8,64}", digest) for digest in digests) or not any(digests):
        raise ValueError(f"[{name}] must have a digest in lower-case hex, or sha256 = {UNKNOWN!r}")
    return asset


def ensure(names: Sequence[str], *, mirror: str = "", accept_new: bool = False) -> list[Fetched]:
    """Fetch the files that are missing from the store and return those that were fetched.

    Raises
    ------
    AscendetError
        `digest-unknown`: the lock has no digest of a file, and `accept_new` is not set. Also the errors of `fetch`.
    """
    # Imported here because it needs requests: bundle imports this module without the tools environment.
    from ascendet.supply import fetch

    known = load()
    for name in names:
        if name not in known:
            raise AscendetError(
                "data-lock-invalid",
                f"requirements/lock/data.toml has no entry {name}",
                hint="make check-lock",
            )
    assets = [known[name] for name in names]
    new = [asset for asset in assets if not asset.digests]
    if new and not accept_new:
        raise unknown_digest(new)
    if all(find(asset) for asset in assets):
        return []
    with contextlib.ExitStack() as stack:
        for asset in sorted(assets, key=lambda asset: asset.name):
            with reporting_unwritable(asset.path):
                asset.path.parent.mkdir(parents=True, exist_ok=True)
                lock = asset.path.with_name(f".{asset.name}.lock")
                stack.enter_context(files.holding_lock(lock, asset.name))
        missing = [asset for asset in assets if not find(asset)]
        wanted = [
            fetch.File(path=asset.path, urls=asset.sources(mirror), size=asset.bytes, digests=asset.digests)
            for asset in missing
        ]
        fetched = fetch.fetch(wanted)
        for asset, one in zip(missing, fetched, strict=True):
            _write_receipt(asset, {"sha256": one.sha256})
            if not asset.digests:
                record(asset.name, one.sha256)
    return fetched


def unknown_digest(assets: Sequence[Asset]) -> AscendetError:
    """Return the error for files whose digest nobody has published."""
    return AscendetError(
        "digest-unknown",
        f"no digest is known for {', '.join(asset.name for asset in assets)}",
        expected=f"a sha256 in {paths.shorten(paths.LOCK / 'data.toml')}",
        found=f'sha256 = "{UNKNOWN}"',
        hint="run the command with ACCEPT_NEW=1 to accept its content and record its digest, then commit that",
    )


def find(asset: Asset) -> Path | None:
    """Return the file's path if it exists and is verified, else None; it is hashed only if it is new or has changed.

    Raises
    ------
    AscendetError
        `fetch-hash-mismatch`: the file exists, but has another digest.
    """
    path = asset.path
    if not path.is_file():
        return None
    receipt = manifest.read(_receipt(asset)) or {}
    stat = path.stat()
    known = str(receipt.get("sha256")).startswith(asset.digests.get("sha256", ""))
    if asset.digests and known and receipt.get("stamp") == [stat.st_size, stat.st_mtime_ns]:
        return path
    verify(asset)
    return path


def verify(asset: Asset) -> str:
    """Hash the file and return its SHA-256; raise `fetch-hash-mismatch` if a digest differs from the lock's."""
    names = {"sha256", *asset.digests}
    found = files.digests(asset.path, names)
    wrong = {name: value for name, value in asset.digests.items() if not found[name].startswith(value)}
    if wrong:
        shown = paths.shorten(asset.path)
        raise AscendetError(
            "fetch-hash-mismatch",
            f"{shown} is not the file in requirements/lock/data.toml",
            expected="\n".join(f"{name}:{value}" for name, value in wrong.items()),
            found="\n".join(f"{name}:{found[name]}" for name in wrong),
            hint=f"mv '{shown}' <elsewhere>, then run the command again",
        )
    with contextlib.suppress(
        OSError
    ):  # a read-only store has no receipts; its files are hashed again each time
        _write_receipt(asset, found)
    return found["sha256"]


def _receipt(asset: Asset) -> Path:
    return store() / ".receipts" / asset.name


def _write_receipt(asset: Asset, digests: Mapping[str, str]) -> None:
    folder = _receipt(asset)
    folder.mkdir(parents=True, exist_ok=True)
    stat = asset.path.stat()
    manifest.write(folder, {**digests, "stamp": [stat.st_size, stat.st_mtime_ns]})


def record(name: str, sha256: str) -> None:
    """Write a digest that was unknown into data.toml."""
    path = paths.LOCK / "data.toml"
    text = path.read_text(encoding="utf-8")
    header = re.escape(name) if re.fullmatch(r"[\w-]+", name) else f'"{re.escape(name)}"'
    entry = rf'(?ms)(^\[{header}\]$(?:(?!^\[).)*?^sha256 = )"{UNKNOWN}"'
    changed, count = re.subn(entry, rf'\g<1>"{sha256}"', text)
    assert count == 1, name
    temp = path.with_name(f".tmp-{path.name}")
    temp.write_text(changed, encoding="utf-8")
    temp.rename(path)
    print(
        f"{paths.shorten(path)}: recorded sha256:{sha256} for {name}; commit it", file=sys.stderr, flush=True
    )


def digest_lines(digests: Mapping[str, str]) -> str:
    r"""Return the SHA-256 of the lines "<sha256>  <name>", as sha256sum prints them, sorted by name.

    >>> digest_lines({"b": "1", "a": "0"}) == hashlib.sha256(b"0  a\n1  b\n").hexdigest()
    True
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
