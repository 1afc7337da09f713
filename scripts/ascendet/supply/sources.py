"""Pinned sources: fetched from one of several places, verified by content, unpacked without trusting their paths.

The content is the authority, the place is not: a source is what it is by the SHA-256 of its archive (locked in
requirements/lock/sources.toml), by a git commit, or by a list of git blob ids, one for each file. What has none of
them is not fetched at all. `SOURCE_MIRROR`, a folder of archives and bare git repositories, is asked first, then the
package index, then the places that stacks.toml names. A file in the cache is verified again at every use: a damaged
one is noticed, removed and fetched anew, never built from.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ascendet import paths
from ascendet.core import files, manifest, process
from ascendet.core.stack import Upstream
from ascendet.errors import AscendetError
from ascendet.supply import index

# mmcv and mmdet unpack to 10 MB and 3,000 files; what is far beyond that is no source distribution.
_MAX_BYTES = 512 * 2**20
_MAX_MEMBERS = 50_000


def locked_hash(sdist: str) -> str:
    """The SHA-256 that the lock states for a source distribution.

    Raises
    ------
    AscendetError
        `sdist-unlocked`: no hash is an error, not a pass.
    """
    lock = paths.LOCK / "sources.toml"
    table = tomllib.loads(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    entry = table.get(sdist)
    if not isinstance(entry, dict) or "sha256" not in entry:
        raise AscendetError(
            "sdist-unlocked",
            f"there is no hash for {sdist}",
            expected=f'["{sdist}"] in {paths.shorten(lock)}',
            hint="make relock",
        )
    return str(entry["sha256"])


def cached(name: str, pin: Upstream) -> Path | None:
    """Return the source's archive in the cache if it is there and what its pin says, else None."""
    path = _cache_path(name, pin)
    return path if path.is_file() and not (_problem(path, pin) or _damage(path, pin)) else None


def fetch(sdist: str, pip: Sequence[str]) -> Path:
    """Return the source distribution `sdist`, from the cache, or else fetched.

    Raises
    ------
    AscendetError
        As `obtain`.
    """
    version = sdist.removesuffix(".tar.gz").rpartition("-")[2]
    return _fetch(project(sdist), Upstream(version=version, sdist=sdist), pip)


def project(sdist: str) -> str:
    """Return whose source distribution it is.

    >>> project("pb1-detectron2-0.6.tar.gz")
    'pb1-detectron2'
    """
    return sdist.removesuffix(".tar.gz").rpartition("-")[0]


def obtain(name: str, pin: Upstream, pip: Sequence[str], folder: Path) -> Path:
    """Unpack the source of the upstream `name` into `folder`, verified, and return its top folder.

    Parameters
    ----------
    name
        The upstream's name in stacks.toml.
    pin
        What the stack says about it.
    pip
        Command of a pip whose interpreter can import what the distribution's setup.py imports (torch): pip
        insists on running it, which it does only after the hash was checked.
    folder
        An empty or missing folder.

    Raises
    ------
    AscendetError
        `sdist-unlocked`, `sdist-download-failed`, `sdist-hash-mismatch`, `sdist-corrupt`; `stack-invalid` where the
        list of blobs cannot be read.
    """
    return unpack_pinned(_fetch(name, pin, pip), pin, folder)


def authority(pin: Upstream) -> dict[str, str]:
    """Return what the source is verified by: a digest by the name of what it is a digest of."""
    found = {}
    if pin.sdist:
        found[pin.sdist] = locked_hash(pin.sdist)
    if pin.commit:
        found["commit"] = pin.commit
    if pin.blobs:
        found[pin.blobs] = files.digest(paths.REQUIREMENTS / pin.blobs)
    return found


# -- from a place into the cache --

# Writes an archive to a path, or raises; by the name of the place.
Place = tuple[str, Callable[[Path], None]]


def _fetch(name: str, pin: Upstream, pip: Sequence[str]) -> Path:
    """Return the archive of a source that is what its pin says."""
    final = _cache_path(name, pin)
    if final.is_file():
        problem = _problem(final, pin) or _damage(final, pin)
        if problem is None:
            return final
        print(f"{final}: not what is pinned ({problem}); removed", flush=True)
        final.unlink()
    failures: list[AscendetError] = []
    with files.disk_errors(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        for place, write in _places(name, pin, pip):
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=files.TEMP) as folder:
                archive = Path(folder, final.name)
                try:
                    write(archive)
                    problem = _problem(archive, pin)
                    if problem:
                        raise _mismatch(final.name, pin, problem)
                except AscendetError as error:
                    if error.name == "disk-full":
                        raise
                    error.what = f"{place}: {error.what}"
                    failures.append(error)
                    continue
                files.publish(archive, final)
                if not (pin.sdist or pin.blobs):
                    manifest.write(final.parent, {"sha256": files.digest(final)})
                return final
    raise _failed(name, pin, failures)


def _failed(name: str, pin: Upstream, failures: Sequence[AscendetError]) -> AscendetError:
    """Return the error for a source that no place has: the only failure, or the list of them."""
    if len(failures) == 1:
        return failures[0]
    wrong = any(error.name == "sdist-hash-mismatch" for error in failures)
    return AscendetError(
        "sdist-hash-mismatch" if wrong else "sdist-download-failed",
        f"no place has the source of {name} {pin.version}",
        expected=", ".join(f"{kind} {digest[:16]}" for kind, digest in authority(pin).items()),
        found="\n".join(f"{error.what}: {error.found}" for error in failures) or "no place is known",
        hint=f"SOURCE_MIRROR=<a folder with {_archive_name(name, pin)} or a git repository {name}.git>",
    )


def _places(name: str, pin: Upstream, pip: Sequence[str]) -> Iterator[Place]:
    """Yield where the source may be, in the order to try."""
    mirror = os.environ.get("SOURCE_MIRROR")
    if mirror:
        local = Path(mirror).expanduser().absolute() / _archive_name(name, pin)
        repository = local.with_name(f"{name}.git")
        if local.is_file():
            yield str(local), lambda path: _copy(local, path)
        if repository.is_dir() and pin.commit:
            yield str(repository), lambda path: _archive_commit(str(repository), name, pin, path)
        if not local.is_file() and not repository.is_dir():
            print(f"SOURCE_MIRROR: {mirror} has neither {local.name} nor {repository.name}", flush=True)
    if pin.sdist:
        sdist = pin.sdist
        yield "the package index", lambda path: _download_sdist(sdist, pip, path)
    for place in pin.places:
        if place.endswith(".git"):
            yield place, lambda path, place=place: _archive_commit(place, name, pin, path)  # type: ignore[misc]
        else:
            yield place, lambda path, place=place: _download(place, path)  # type: ignore[misc]


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _download(address: str, path: Path) -> None:
    """Fetch a release archive; the caller verifies it."""
    from ascendet.supply import fetch  # needs requests, which only the tools environment has

    fetch.fetch([fetch.File(path=path, urls=(address,))])


def _archive_commit(repository: str, name: str, pin: Upstream, path: Path) -> None:
    """Write the tree of a git commit as an archive. git itself verifies that what it fetches is the commit."""
    if pin.commit is None or len(pin.commit) != 40:
        raise AscendetError(
            "sdist-unlocked",
            "a git repository can only be asked for a whole commit id",
            expected=f"40 hex digits as `commit` of {name} in requirements/stacks.toml",
            found=str(pin.commit),
            hint=f"git ls-remote {repository}",
        )
    # No credential prompt, and no variable of a git that we run in.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environ |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
        bare = Path(folder, "repository.git")

        def git(*arguments: str) -> None:
            process.run(
                ["git", f"--git-dir={bare}", *arguments],
                env=environ,
                disks=[bare.parent, path.parent],
                error="sdist-download-failed",
                what=f"git cannot fetch {name} {pin.commit}",
                hint="check the network, or SOURCE_MIRROR=<a folder with the repository>",
            )

        git("init", "--quiet", "--bare")
        git(
            "-c",
            "fetch.fsckObjects=true",
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            repository,
            pin.commit,
        )
        # The blobs as they are: nothing left out, nothing filled in, no line ends changed.
        (bare / "info").mkdir(exist_ok=True)
        (bare / "info/attributes").write_text("* -export-ignore -export-subst -text -eol -ident -filter\n")
        top = f"--prefix={name}-{pin.version}/"
        git("archive", "--format=tar.gz", top, f"--output={path}", pin.commit)


# -- verifying --


def _problem(archive: Path, pin: Upstream) -> str | None:
    """Return why an archive is not what its pin says; None where it is."""
    if pin.sdist and not pin.blobs:
        found, expected = files.digest(archive), locked_hash(pin.sdist)
        return None if found == expected else f"sha256:{found}"
    if pin.blobs:
        with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
            try:
                unpack_pinned(archive, pin, Path(folder))
            except AscendetError as error:
                if error.name not in ("sdist-corrupt", "sdist-hash-mismatch"):
                    raise
                return error.found
    return None


def _damage(archive: Path, pin: Upstream) -> str | None:
    """Return why an archive in the cache is not what git made of the commit; None where it is."""
    if pin.sdist or pin.blobs:
        return None  # its content was compared with them
    written = (manifest.read(archive.parent) or {}).get("sha256")
    return None if files.digest(archive) == written else "is not what was fetched"


def unpack_pinned(archive: Path, pin: Upstream, folder: Path) -> Path:
    """Unpack a source; one with a list of blobs consists of exactly these files afterwards."""
    tree = unpack(archive, folder, links=bool(pin.commit or pin.blobs))
    if pin.blobs is None:
        return tree
    listed = read_blobs(paths.REQUIREMENTS / pin.blobs)
    _move_to_listed_names(tree, listed)
    problems = compare_blobs(tree, listed)
    if problems:
        raise _mismatch(archive.name, pin, "\n".join(problems[:5]))
    for path in list(files.walk(tree)):
        if path.relative_to(tree).as_posix() not in listed:
            path.unlink()
    return tree


def _move_to_listed_names(tree: Path, listed: Mapping[str, str]) -> None:
    """Give each listed file that `tree` has under another name its own: a distribution may move files.

    detectron2's packs configs/ below detectron2/model_zoo/.
    """
    missing = {name: blob for name, blob in listed.items() if not (tree / name).exists()}
    if not missing:
        return
    there = {blob_id(path.read_bytes()): path for path in files.walk(tree)}
    for name, blob in missing.items():
        if blob in there:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(there[blob], tree / name)


def read_blobs(path: Path) -> dict[str, str]:
    """Return a list of git blob ids by file name.

    Raises
    ------
    AscendetError
        `stack-invalid`: a line is not "<40 hex digits>  <relative path>", or there is none.
    """
    try:
        return _parse_blobs(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        shown = paths.shorten(path)
        raise AscendetError(
            "stack-invalid", f"{shown} cannot be read", found=str(error), hint=f"git diff {shown}"
        ) from error


def _parse_blobs(text: str) -> dict[str, str]:
    listed = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        found = re.fullmatch(r"([0-9a-f]{40})  (\S.*)", line)
        if found is None or PurePosixPath(found[2]).is_absolute() or ".." in found[2].split("/"):
            raise ValueError(f"not a line '<git blob id>  <path>': {line!r}")
        listed[found[2]] = found[1]
    if not listed:
        raise ValueError("it names no file")
    return listed


def compare_blobs(tree: Path, listed: Mapping[str, str]) -> list[str]:
    """Return a sentence for each listed file that is missing in `tree` or has another content."""
    problems = []
    for name, expected in sorted(listed.items()):
        path = tree / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := blob_id(path.read_bytes())) != expected:
            problems.append(f"{name} is blob {found[:12]}, not {expected[:12]}")
    return problems


def blob_id(content: bytes) -> str:
    """Return the id under which git stores a file's content.

    >>> blob_id(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


# -- archives --


def unpack(sdist: Path, folder: Path, *, links: bool = False) -> Path:
    """Unpack an archive into the empty or missing `folder`, and return the one folder that it contains.

    With `links`, symbolic links are left out, and how many is said (git repositories have some, between documents);
    else they are refused.

    Raises
    ------
    AscendetError
        `sdist-corrupt`: not a gzip-compressed tar, cut off, or with a member that has no business in a source
        distribution (absolute path, `..`, link, device, no common top folder, too large).
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with gzip.open(sdist) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            top = _extract(sdist, archive, folder, links=links)
            while stream.read(2**20):  # to its end, where the checksum is
                pass
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise _corrupt(sdist, str(error)) from error
    except OSError as error:
        if error.errno is not None:  # the disk's trouble, not the archive's
            raise
        raise _corrupt(sdist, str(error)) from error
    return folder / top


def _extract(sdist: Path, archive: tarfile.TarFile, folder: Path, *, links: bool) -> str:
    tops: set[str] = set()
    left_out = []
    size = count = 0
    for member in archive:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise _corrupt(sdist, f"member {member.name!r} points outside")
        if links and member.issym():
            left_out.append(member.name)
            continue
        if not (member.isfile() or member.isdir()):
            raise _corrupt(sdist, f"member {member.name!r} is neither a file nor a folder")
        count += 1
        size += member.size
        if size > _MAX_BYTES or count > _MAX_MEMBERS:
            raise _corrupt(sdist, f"more than {_MAX_BYTES} bytes or {_MAX_MEMBERS} members")
        tops.add(name.parts[0])
        target = folder.joinpath(*name.parts)
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        content = archive.extractfile(member)
        assert content is not None, "isfile() said so"
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    if left_out:
        print(f"{sdist.name}: {len(left_out)} symbolic links are left out, such as {left_out[0]}", flush=True)
    if len(tops) != 1:
        raise _corrupt(sdist, f"expected one folder at the top, found {len(tops)}")
    return tops.pop()


def _archive_name(name: str, pin: Upstream) -> str:
    return pin.sdist or f"{name}-{pin.version}.tar.gz"


def _cache_path(name: str, pin: Upstream) -> Path:
    """Return where the archive is kept: below the digest that it is verified by."""
    known = authority(pin)
    key = known[pin.sdist] if pin.sdist else known[pin.blobs] if pin.blobs else known["commit"]
    return paths.CACHE / "sdist" / key / _archive_name(name, pin)


def _download_sdist(sdist: str, pip: Sequence[str], path: Path) -> None:
    """Have pip download a source distribution."""
    expected = locked_hash(sdist)
    version = sdist.removesuffix(".tar.gz").rpartition("-")[2]
    wish = path.with_name("requirements.txt")
    wish.write_text(f"{project(sdist)}=={version} --hash=sha256:{expected}\n", encoding="utf-8")
    command = [*pip, "download", "--no-deps", "--no-build-isolation", "--no-binary", project(sdist)]
    command += ["--require-hashes", "--requirement", str(wish), "--dest", str(path.parent), "--quiet"]
    # setup.py is run for its metadata: torch must not load NPU libraries, which may not be there yet.
    environ = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode or not path.is_file():
        if "cannot declare direct URL dependencies" in done.stderr:
            # What pip refuses to resolve it can still not download. Its link and its hash are all that we need.
            _download(index.find_link(index.settings(pip), project(sdist), sdist), path)
            return
        got = re.search(r"DO NOT MATCH THE HASHES.*?\bGot\s+([0-9a-f]{64})", done.stderr, re.DOTALL)
        if got:
            raise _mismatch(sdist, Upstream(version=version, sdist=sdist), f"sha256:{got[1]}")
        errors = [line[:200] for line in done.stderr.splitlines() if "error" in line.lower()]
        raise AscendetError(
            "sdist-download-failed",
            f"pip could not download {sdist}",
            found="\n".join(errors[-3:]) or process.describe_exit(done.returncode),
            hint="check the network and pip's index (pip config list), then run the command again",
        )


def _mismatch(archive: str, pin: Upstream, found: str) -> AscendetError:
    return AscendetError(
        "sdist-hash-mismatch",
        f"{archive} is not the source that is pinned; nothing was kept",
        expected=f"sha256:{locked_hash(pin.sdist)}"
        if pin.sdist
        else f"every file of requirements/{pin.blobs}",
        found=found,
        hint="check where it came from (a mirror?); if upstream republished it, look at it, then: make relock",
    )


def _corrupt(sdist: Path, why: str) -> AscendetError:
    return AscendetError(
        "sdist-corrupt",
        f"{sdist.name} cannot be unpacked",
        expected="a gzip-compressed tar of files below one folder",
        found=why,
        hint=f"rm '{sdist}', then run the command again",
    )
