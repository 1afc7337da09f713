"""Patch series: `patches/<upstream>/NNNN-slug.patch`, applied in order, all or nothing, without fuzz.

Every patch says in its header why it exists, where upstream stands and when to remove it; the linter refuses
one that does not, and `patches/README.md` is generated from those headers. Where stacks have different versions of an
upstream, a patch that fits only one of them says so (`Only-for: <version>`, as stacks.toml names it).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.core import files
from ascendet.core.stack import Upstream, load_all
from ascendet.errors import AscendetError
from ascendet.supply import sources

HOME = paths.ROOT / "patches"
TRAILERS = ("Why", "Upstream", "Remove-when")
_NAME = re.compile(r"(\d{4})-([a-z0-9]+(?:-[a-z0-9]+)*)\.patch")
_COMMAND = "make patches"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One patch file: its place, what its header says, the files that it changes."""

    path: Path
    subject: str
    why: str
    upstream: str
    remove_when: str
    files: tuple[str, ...]
    only_for: str | None = None

    @property
    def slug(self) -> str:
        """The patch's name without its number, which is how people refer to it."""
        return self.path.stem.partition("-")[2]


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the index is stale")


def execute(args: argparse.Namespace) -> None:
    """Lint every series, write (or check) the index, and apply each series to its source if that is here."""
    problems = lint_all()
    if problems:
        raise AscendetError(
            "patch-invalid",
            "a patch breaks the rules that are at the top of patches/README.md",
            found="\n".join(problems),
            hint="edit its header",
        )
    index = HOME / "README.md"
    text = render_index()
    if args.check and (not index.exists() or index.read_text(encoding="utf-8") != text):
        raise AscendetError("patch-index-stale", f"{paths.shorten(index)} is out of date", hint=_COMMAND)
    if not args.check:
        files.write_text(index, text)
    for upstream in series_names():
        for pin in _pins(upstream):
            count = len(list_files(upstream, pin.version))
            source = sources.cached(upstream, pin)
            if source is None:
                print(
                    f"patches/{upstream}: {count} patches for {pin.version}; "
                    f"their source is fetched by make {upstream}-wheel"
                )
                continue
            with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
                apply(upstream, sources.unpack_pinned(source, pin, Path(folder)), pin.version)
            print(f"patches/{upstream}: {count} patches apply to {source.name}")


def series_names() -> list[str]:
    """The upstreams that have a series."""
    return sorted({path.parent.name for path in HOME.glob("*/*.patch")})


def list_files(upstream: str, version: str | None = None) -> list[Path]:
    """Return the patch files of a series in the order of application, none for an upstream without a series.

    With a `version`, only those that are for it.
    """
    series = sorted((HOME / upstream).glob("*.patch"))
    if version is None:
        return series
    return [path for path in series if _only_for(path) in (None, version)]


def _only_for(path: Path) -> str | None:
    header = path.read_text(encoding="utf-8").partition("\n---\n")[0]
    found = re.search(r"^Only-for: *(\S+)$", header, re.MULTILINE)
    return found[1] if found else None


def digest(upstream: str, version: str | None = None) -> dict[str, str]:
    """Return the SHA-256 of every patch of a series for a version, by file name: what a build records."""
    return {path.name: files.digest(path) for path in list_files(upstream, version)}


def load(upstream: str) -> list[Patch]:
    """The series, parsed.

    Raises
    ------
    AscendetError
        `patch-invalid` where a header lacks something.
    """
    series = []
    for path in list_files(upstream):
        problems, patch = _parse(path)
        if patch is None or problems:
            raise AscendetError(
                "patch-invalid",
                f"{paths.shorten(path)} breaks the rules of patches/README.md",
                found="\n".join(problems),
                hint="edit its header",
            )
        series.append(patch)
    return series


def lint_all() -> list[str]:
    """Every broken rule of every series, as `file:line: rule`."""
    problems = []
    for upstream in series_names():
        slugs: dict[str, Path] = {}
        for number, path in enumerate(list_files(upstream), start=1):
            problems += _parse(path)[0]
            name = _NAME.fullmatch(path.name)
            if name is None:
                continue  # said by _parse
            if int(name[1]) != number:
                problems.append(f"{paths.shorten(path)}:1: number is {name[1]}, its place is {number:04d}")
            if name[2] in slugs:
                problems.append(
                    f"{paths.shorten(path)}:1: slug is also that of {paths.shorten(slugs[name[2]])}"
                )
            slugs[name[2]] = path
        strays = [path for path in (HOME / upstream).iterdir() if path.suffix not in (".patch", ".md")]
        problems += [f"{paths.shorten(path)}:1: not a patch" for path in sorted(strays)]
    return problems


def apply(upstream: str, tree: Path, version: str | None = None) -> None:
    """Apply the series for a version to `tree`: every hunk where it says, or nothing at all.

    Raises
    ------
    AscendetError
        `patch-does-not-apply`, naming the patch, the file and the line.
    """
    series = list_files(upstream, version)
    if not series:
        return
    if _git_apply(tree, series, check=True).returncode == 0:
        done = _git_apply(tree, series)
        assert done.returncode == 0, done.stderr
        return
    patch, message = _first_failure(series, tree)
    raise AscendetError(
        "patch-does-not-apply",
        f"{paths.shorten(patch)} does not apply to {tree.name}; the source was left as it was",
        expected="every hunk applies without fuzz",
        found=message,
        hint=f"correct or remove the patch, then: {_COMMAND}",
    )


def render_index() -> str:
    """The text of patches/README.md."""
    lines = [
        "# Patches",
        "",
        f"<!-- Generated by `{_COMMAND}` from the patches' headers. Do not edit. -->",
        "",
        "Each folder is one upstream, each `NNNN-slug.patch` one change. They are applied in this order, all",
        "or nothing and without fuzz. A header says `Why:`, `Upstream:` (an address, or `N/A` and a reason)",
        "and `Remove-when:`. The patches are ours, in git's format, as small as they can be (one line of",
        "context). We name a patch by its slug: numbers may change.",
    ]
    for upstream in series_names():
        lines += ["", f"## {upstream} ({_source_name(upstream)})", ""]
        for patch in load(upstream):
            lines += [
                f"### {patch.path.name}",
                "",
                patch.subject,
                "",
                f"- Why: {patch.why}",
                f"- Upstream: {patch.upstream}",
                f"- Remove-when: {patch.remove_when}",
                *([f"- Only-for: {patch.only_for}"] if patch.only_for else []),
                *(f"- `{file}`" for file in patch.files),
                "",
            ]
        lines.pop()
    return "\n".join(lines) + "\n"


def _pins(upstream: str) -> list[Upstream]:
    """Return what the stacks say about an upstream, each version once."""
    found = {stack.upstreams[upstream] for stack in load_all().values() if upstream in stack.upstreams}
    return sorted(found, key=lambda pin: pin.version)


def _source_name(upstream: str) -> str:
    pins = _pins(upstream)
    return (
        ", ".join(pin.sdist or f"{pin.version} {pin.commit or ''}".strip() for pin in pins)
        or "no source in stacks.toml"
    )


def _parse(path: Path) -> tuple[list[str], Patch | None]:
    """The rules that a patch file breaks, and the patch if its header is complete."""
    name = paths.shorten(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if line == "---"), None)
    if end is None:
        return [f"{name}:1: no '---' line between header and diff: make it with git format-patch"], None
    problems = []
    if _NAME.fullmatch(path.name) is None:
        problems.append(f"{name}:1: the file name is not NNNN-slug.patch")
    fields: dict[str, str] = {}
    key = None
    for number, line in enumerate(lines[:end], start=1):
        field = re.match(r"([A-Z][A-Za-z-]+): *(.*)", line)
        if field:
            key = field[1]
            if key in fields:
                problems.append(f"{name}:{number}: {key} stands there twice")
            fields[key] = field[2].strip()
        elif line.startswith(" ") and key:
            fields[key] += " " + line.strip()
        else:
            key = None
    for trailer in TRAILERS:
        if not fields.get(trailer):
            problems.append(f"{name}:{end + 1}: no {trailer}: in the header")
    known = {pin.version for pin in _pins(path.parent.name)}
    if known and fields.get("Only-for", next(iter(known))) not in known:
        problems.append(
            f"{name}:{end + 1}: Only-for: {fields['Only-for']} is none of {', '.join(sorted(known))} in stacks.toml"
        )
    upstream = fields.get("Upstream", "https://")
    if not re.match(r"https://|N/A \S", upstream):
        problems.append(f"{name}:{end + 1}: Upstream: is neither an address nor 'N/A <reason>'")
    subject = re.sub(r"^\[PATCH[^]]*\] *", "", fields.get("Subject", ""))
    if not subject:
        problems.append(f"{name}:1: no Subject:")
    body = lines[end:]
    changed = [line.split(" b/", 1)[1] for line in body if line.startswith("diff --git ")]
    if not changed:
        problems.append(f"{name}:{end + 1}: changes no file")
    for number, line in enumerate(body, start=end + 1):
        if line.startswith("+") and not line.startswith("+++") and line != line.rstrip():
            problems.append(f"{name}:{number}: white space at the end of an added line")
    if any(not fields.get(trailer) for trailer in TRAILERS) or not subject:
        return problems, None
    patch = Patch(
        path=path,
        subject=subject,
        why=fields["Why"],
        upstream=fields["Upstream"],
        remove_when=fields["Remove-when"],
        only_for=fields.get("Only-for"),
        files=tuple(changed),
    )
    return problems, patch


def _git_apply(tree: Path, series: list[Path], *, check: bool = False) -> subprocess.CompletedProcess[str]:
    """`git apply` of all patches as one, which is what makes it all or nothing."""
    joined = "\n".join(path.read_text(encoding="utf-8") for path in series)
    # Below a git repository, git would take paths as relative to that repository's root and skip the rest.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_CEILING_DIRECTORIES": str(tree.resolve().parent), "LC_ALL": "C"}
    command = ["git", "apply", "--whitespace=nowarn", *(["--check"] if check else []), "-"]
    return subprocess.run(
        command, cwd=tree, env=environ, input=joined, capture_output=True, text=True, check=False
    )


def _first_failure(series: list[Path], tree: Path) -> tuple[Path, str]:
    """Which patch of a failing series is the one, and what git says about it: found out on a copy."""
    with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
        copy = Path(folder, tree.name)
        shutil.copytree(tree, copy)
        for path in series:
            done = _git_apply(copy, [path])
            if done.returncode:
                return path, done.stderr.strip()
    raise AssertionError("a series fails as one but not patch by patch")
