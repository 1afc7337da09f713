"""The files that requirements/lock/data.toml names, and where they and the data sets are kept.

`root()` is what training sees; `store()` is where files stay. They differ unless ASCENDET_DATA is set: then links in
the build folder lead to the cache, so that clones share one COCO and `make clean` does not cost 20 GB.
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
    """An entry of data.toml, with the file's field names; sizes in bytes."""

    name: str
    folder: str
    urls: tuple[str, ...]
    cn: tuple[str, ...] = ()
    bytes: int | None = None
    sha256: str = ""
    md5: str = ""
    unpacked: int = 0
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the file stays."""
        return store() / self.folder / self.name

    @property
    def digests(self) -> dict[str, str]:
        """What is known of the content, by algorithm; SHA-256 may be a prefix."""
        known = {"sha256": self.sha256, "md5": "" if self.sha256 and len(self.sha256) == 64 else self.md5}
        return {name: value for name, value in known.items() if value not in ("", UNKNOWN)}

    def sources(self, mirror: str) -> tuple[str, ...]:
        """Addresses in the order to try; `mirror` is "", "cn", or the address of a folder that holds such files.

        Raises
        ------
        AscendetError
            `usage`: it is none of these.
        """
        if mirror.startswith(("https://", "http://")):
            return (f"{mirror.rstrip('/')}/{self.name}", *self.urls, *self.cn)
        if mirror not in ("", "cn"):
            raise AscendetError(
                "usage",
                "MIRROR says which mirror to try first",
                expected="cn, or the address of a folder: https://…",
                found=mirror,
                hint="MIRROR=cn",
            )
        return (*self.cn, *self.urls) if mirror == "cn" else (*self.urls, *self.cn)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a stage that fetches."""
    parser.add_argument("--mirror", default="", help="cn, or the address of a folder to try first")
    parser.add_argument("--accept-new", action="store_true", help="record digests that are unknown so far")
    parser.add_argument("--json", action="store_true", help="print the result for machines")


def root() -> Path:
    """The folder of the data sets as training sees it: `ASCENDET_DATA`, or the build folder's."""
    return Path(os.environ.get("ASCENDET_DATA") or paths.BUILD / "data").absolute()


def store() -> Path:
    """The folder where fetched files and unpacked data sets stay: `ASCENDET_DATA`, or the cache's."""
    return Path(os.environ.get("ASCENDET_DATA") or paths.CACHE / "data").absolute()


def place(name: str) -> Path:
    """The folder `name` as training sees it; where there is none it is made in the store, with a link to it.

    Raises
    ------
    AscendetError
        `data-invalid`: something else is in the way.
    """
    seen, kept = root() / name, store() / name
    if not seen.is_dir():
        with unwritable_named(kept):
            kept.mkdir(parents=True, exist_ok=True)
        if seen != kept:
            point(seen, kept)
    return seen


def point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target`, in one step."""
    if link.exists() and not link.is_symlink():
        raise AscendetError(
            "data-invalid",
            f"{paths.shorten(link)} is in the way of the data set",
            expected="nothing, or the link that an earlier run made",
            found="a folder or file that is not ours",
            hint=f"mv {paths.shorten(link)} <elsewhere>, or another ASCENDET_DATA",
        )
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    with unwritable_named(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        files.point(link, os.path.relpath(target, link.parent.resolve()))


@contextlib.contextmanager
def unwritable_named(path: Path) -> Iterator[None]:
    """Turn the refusal to write into `error[data-invalid]`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AscendetError(
            "data-invalid",
            f"{paths.shorten(path)} cannot be made",
            found=str(error.strerror),
            hint="ASCENDET_DATA=<a folder that can be written>, or none: then the build folder and the cache are used",
        ) from error


def load() -> dict[str, Asset]:
    """All entries of data.toml by name.

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
        raise ValueError(f"[{name}] needs addresses")
    if not isinstance(asset.bytes, int | None):
        raise ValueError(f"[{name}] bytes must be a number")
    digests = [asset.sha256, asset.md5, *asset.members.values()]
    if not all(re.fullmatch(r"|unknown|[0-9a-f]{8,64}", digest) for digest in digests) or not any(digests):
        raise ValueError(f"[{name}] needs a digest in lower-case hex, or sha256 = {UNKNOWN!r}")
    return asset


def ensure(names: Sequence[str], *, mirror: str = "", accept_new: bool = False) -> list[Fetched]:
    """Have these files in the store, as the lock names them; what had to be fetched.

    Raises
    ------
    AscendetError
        `digest-unknown`: the lock has no digest, and the user has not said to take what comes; and fetch's errors.
    """
    # Here, as it needs requests: bundle imports this module, and has no tools environment yet.
    from ascendet.supply import fetch

    known = load()
    for name in names:
        if name not in known:
            raise AscendetError(
                "data-lock-invalid",
                f"requirements/lock/data.toml does not know {name}",
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
            with unwritable_named(asset.path):
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
    """The error for files that nobody has published a digest of."""
    return AscendetError(
        "digest-unknown",
        f"no digest is known of {', '.join(asset.name for asset in assets)}",
        expected=f"a sha256 in {paths.shorten(paths.LOCK / 'data.toml')}",
        found=f'sha256 = "{UNKNOWN}"',
        hint="the same command with ACCEPT_NEW=1 takes what the server sends and records its digest; commit that",
    )


def find(asset: Asset) -> Path | None:
    """The file, if it is there and right. It is hashed when it is new to us, and after that when its date changes.

    Raises
    ------
    AscendetError
        `fetch-hash-mismatch`: it is there and wrong.
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
    """Hash the file; its SHA-256, or `error[fetch-hash-mismatch]`."""
    names = {"sha256", *asset.digests}
    found = files.digests(asset.path, names)
    wrong = {name: value for name, value in asset.digests.items() if not found[name].startswith(value)}
    if wrong:
        shown = paths.shorten(asset.path)
        raise AscendetError(
            "fetch-hash-mismatch",
            f"{shown} is not the file that the lock names",
            expected="\n".join(f"{name}:{value}" for name, value in wrong.items()),
            found="\n".join(f"{name}:{found[name]}" for name in wrong),
            hint=f"mv '{shown}' <elsewhere>, then run the command again",
        )
    with contextlib.suppress(OSError):  # a store that is mounted read-only is hashed anew
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
    """Put a digest that was unknown into data.toml."""
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
        f"{paths.shorten(path)}: recorded sha256:{sha256} of {name}; commit it", file=sys.stderr, flush=True
    )


def digest_lines(digests: Mapping[str, str]) -> str:
    r"""The SHA-256 of the lines "<sha256>  <name>", as sha256sum prints them, in the order of names.

    >>> digest_lines({"b": "1", "a": "0"}) == hashlib.sha256(b"0  a\n1  b\n").hexdigest()
    True
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
