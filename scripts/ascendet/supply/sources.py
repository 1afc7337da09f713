"""Fetch pinned sources from one of several places, verify their content, and unpack them without trusting their paths.

The content decides, not the place: a source is verified by the SHA-256 of its archive (locked in
requirements/lock/sources.toml), by a git commit, or by a list of git blob ids, one for each file. A source without any
of them is not fetched. `SOURCE_MIRROR`, a folder of archives and bare git repositories, is tried first, then the
package index, then the places that stacks.toml names. A file in the cache is verified at every use; a damaged one is
removed and fetched again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest, process
from ascendet.core.stack import Upstream
from ascendet.errors import AscendetError
from ascendet.supply import blobs, index, unpack


def locked_hash(sdist: str) -> str:
    """Return the SHA-256 that the lock states for a source distribution.

    Raises
    ------
    AscendetError
        `sdist-unlocked`: the lock has no hash.
    """
    lock = paths.LOCK / "sources.toml"
    table = tomllib.loads(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    entry = table.get(sdist)
    if not isinstance(entry, dict) or "sha256" not in entry:
        raise AscendetError(
            "sdist-unlocked",
            f"{sdist} has no locked hash",
            expected=f'["{sdist}"] in {paths.shorten(lock)}',
            hint="make relock",
        )
    return str(entry["sha256"])


def find_cached(name: str, pin: Upstream) -> Path | None:
    """Return the source's archive in the cache if it exists and matches the pin, else None."""
    path = _cache_path(name, pin)
    return path if path.is_file() and not (_problem(path, pin) or _damage(path, pin)) else None


def fetch(sdist: str, pip: Sequence[str]) -> Path:
    """Return the source distribution `sdist` from the cache; fetch it first if it is missing.

    Raises
    ------
    AscendetError
        As `obtain`.
    """
    version = sdist.removesuffix(".tar.gz").rpartition("-")[2]
    return _fetch(project(sdist), Upstream(version=version, sdist=sdist), pip)


def project(sdist: str) -> str:
    """Return the project's name in the file name of a source distribution.

    >>> project("pb1-detectron2-0.6.tar.gz")
    'pb1-detectron2'
    """
    return sdist.removesuffix(".tar.gz").rpartition("-")[0]


def obtain(name: str, pin: Upstream, pip: Sequence[str], folder: Path) -> Path:
    """Fetch and verify the source of the upstream `name`, unpack it into `folder`, and return its top folder.

    Parameters
    ----------
    name
        The upstream's name in stacks.toml.
    pin
        The upstream's entry there.
    pip
        The command of a pip whose interpreter can import what the distribution's setup.py imports (torch), because pip
        runs setup.py. It does so only after checking the hash.
    folder
        An empty or missing folder.

    Raises
    ------
    AscendetError
        `sdist-unlocked`, `sdist-download-failed`, `sdist-hash-mismatch`, `sdist-corrupt`. `stack-invalid`: the list of
        blobs cannot be read.
    """
    return unpack_pinned(_fetch(name, pin, pip), pin, folder)


def authority(pin: Upstream) -> dict[str, str]:
    """Return the digests that a source is verified by: of its archive, its commit or its list of blobs, by name."""
    found = {}
    if pin.sdist:
        found[pin.sdist] = locked_hash(pin.sdist)
    if pin.commit:
        found["commit"] = pin.commit
    if pin.blobs:
        found[pin.blobs] = files.digest(paths.REQUIREMENTS / pin.blobs)
    return found


# -- fetch into the cache --

# The name of a place, and a function that writes the source's archive to a path, or raises.
Place = tuple[str, Callable[[Path], None]]


def _fetch(name: str, pin: Upstream, pip: Sequence[str]) -> Path:
    """Return the archive of a source that matches its pin, from the cache or the first place that has it."""
    final = _cache_path(name, pin)
    if final.is_file():
        problem = _problem(final, pin) or _damage(final, pin)
        if problem is None:
            return final
        print(f"{final}: removed, because it does not match its pin ({problem})", flush=True)
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
                for failure in failures:
                    if failure.name == "sdist-hash-mismatch":  # somebody should mend that place
                        print(
                            f"{failure.what}; it was not used\n  found: {failure.found}",
                            file=sys.stderr,
                            flush=True,
                        )
                files.publish(archive, final)
                if not (pin.sdist or pin.blobs):
                    manifest.write(final.parent, {"sha256": files.digest(final)})
                return final
    raise _failed(name, pin, failures)


def _failed(name: str, pin: Upstream, failures: Sequence[AscendetError]) -> AscendetError:
    """Return the error for a source that no place has: the only failure, or one error that lists all failures."""
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
    """Yield the places of a source, in the order to try."""
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
    """Download a release archive, which the caller verifies."""
    from ascendet.supply import fetch  # needs requests, which only the tools environment has

    fetch.fetch([fetch.File(path=path, urls=(address,))])


def _archive_commit(repository: str, name: str, pin: Upstream, path: Path) -> None:
    """Write the tree of a git commit as an archive. git itself verifies that it fetched this commit."""
    if pin.commit is None or len(pin.commit) != 40:
        raise AscendetError(
            "sdist-unlocked",
            "the commit must be a full id, to be fetched from a git repository",
            expected=f"40 hex digits as `commit` of {name} in requirements/stacks.toml",
            found=str(pin.commit),
            hint=f"git ls-remote {repository}",
        )
    # Without a credential prompt, and without the variables of a git process that may have started us.
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
        # Archive the blobs unchanged: none left out, nothing substituted, no line ends converted.
        (bare / "info").mkdir(exist_ok=True)
        (bare / "info/attributes").write_text("* -export-ignore -export-subst -text -eol -ident -filter\n")
        top = f"--prefix={name}-{pin.version}/"
        git("archive", "--format=tar.gz", top, f"--output={path}", pin.commit)


# -- verify --


def _problem(archive: Path, pin: Upstream) -> str | None:
    """Return why an archive does not match its pin, or None if it does."""
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
    """Return why an archive in the cache is not the one that git made from the commit, or None if it is."""
    if pin.sdist or pin.blobs:
        return None  # `_problem` has compared its content
    written = (manifest.read(archive.parent) or {}).get("sha256")
    return None if files.digest(archive) == written else "it has changed since it was fetched"


def unpack_pinned(archive: Path, pin: Upstream, folder: Path) -> Path:
    """Unpack a source and return its top folder; with a list of blobs, verify these files and remove all others."""
    tree = unpack.unpack(archive, folder, links=bool(pin.commit or pin.blobs))
    if pin.blobs is None:
        return tree
    listed = blobs.read(paths.REQUIREMENTS / pin.blobs)
    blobs.move_to_listed_names(tree, listed)
    problems = blobs.compare(tree, listed)
    if problems:
        raise _mismatch(archive.name, pin, "\n".join(problems[:5]))
    for path in list(files.walk(tree)):
        if path.relative_to(tree).as_posix() not in listed:
            path.unlink()
    return tree


def _archive_name(name: str, pin: Upstream) -> str:
    return pin.sdist or f"{name}-{pin.version}.tar.gz"


def _cache_path(name: str, pin: Upstream) -> Path:
    """Return the archive's path in the cache, below the digest that verifies it."""
    known = authority(pin)
    key = known[pin.sdist] if pin.sdist else known[pin.blobs] if pin.blobs else known["commit"]
    return paths.CACHE / "sdist" / key / _archive_name(name, pin)


def _download_sdist(sdist: str, pip: Sequence[str], path: Path) -> None:
    """Download a source distribution with pip, which checks its hash."""
    expected = locked_hash(sdist)
    version = sdist.removesuffix(".tar.gz").rpartition("-")[2]
    wish = path.with_name("requirements.txt")
    wish.write_text(f"{project(sdist)}=={version} --hash=sha256:{expected}\n", encoding="utf-8")
    command = [*pip, "download", "--no-deps", "--no-build-isolation", "--no-binary", project(sdist)]
    command += ["--require-hashes", "--requirement", str(wish), "--dest", str(path.parent), "--quiet"]
    # pip runs setup.py for its metadata; torch must not load the NPU's libraries then, which may not exist yet.
    environ = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode or not path.is_file():
        if "cannot declare direct URL dependencies" in done.stderr:
            # pip cannot download a project that it refuses to resolve; the file's link and hash are enough for us.
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
        f"{archive} is not the pinned source; it was not used",
        expected=f"sha256:{locked_hash(pin.sdist)}"
        if pin.sdist
        else f"every file of requirements/{pin.blobs}",
        found=found,
        hint="check its origin (a mirror?); if upstream republished it, check the changes, then: make relock",
    )
