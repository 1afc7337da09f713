"""Check that the locks agree with stacks.toml, the *.in files and requirements/README.md."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable

from ascendet import paths
from ascendet.core.stack import Stack, load_all
from ascendet.errors import AscendetError
from ascendet.machine import arch
from ascendet.supply import assets, lockfiles

_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}$")


# -- checking --


def check() -> list[str]:
    """Return a sentence for each disagreement between stacks.toml, the *.in files, the locks and README.md."""
    missing = [name for name in lockfiles.lock_names() if not (paths.LOCK / name).exists()]
    if missing:
        return [f"lock/{name} is missing" for name in missing]
    problems: list[str] = []
    listed = _listed_reasons()
    wished: set[str] = set()
    for name in lockfiles.package_lists():
        lines = lockfiles.wishes((paths.REQUIREMENTS / f"{name}.in").read_text(encoding="utf-8"))
        wished |= {lockfiles.normalise(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in lines}
        problems += _check_pins(name, lines)
    problems += [f"README.md gives no reason for {name}" for name in sorted(wished - listed)]
    problems += [
        f"README.md gives a reason for {name}, which no *.in file lists" for name in sorted(listed - wished)
    ]
    for stack in load_all().values():
        problems += _check_stack(stack)
    for name in lockfiles.lock_names():
        problems += _check_text(name)
    problems += _check_data()
    sources = tomllib.loads((paths.LOCK / "sources.toml").read_text(encoding="utf-8"))
    expected = set(lockfiles.sdists())
    problems += [
        f"lock/sources.toml: {name} is in only one of it and stacks.toml"
        for name in sorted(expected ^ set(sources))
    ]
    images = tomllib.loads((paths.LOCK / "images.toml").read_text(encoding="utf-8"))
    problems += [
        f"lock/images.toml: no stack uses {name}"
        for name in sorted(images.keys() - set(lockfiles.image_names()))
    ]
    known = {path.name for path in paths.LOCK.iterdir()}
    problems += [
        f"lock/{name} is not written by {lockfiles.COMMAND}"
        for name in sorted(known - set(lockfiles.lock_names()))
    ]
    return problems


def _check_pins(name: str, lines: Iterable[str]) -> list[str]:
    from packaging.requirements import Requirement

    locked = lockfiles.pins(lockfiles.packages_lock(name).read_text(encoding="utf-8"))
    problems = []
    for line in lines:
        wish = Requirement(line)
        version = locked.get(lockfiles.normalise(wish.name))
        if version is None:
            problems.append(f"lock/{name}.txt lacks {wish.name}")
        elif not wish.specifier.contains(version, prereleases=True):
            problems.append(f"lock/{name}.txt has {wish.name} {version}, {name}.in requires {line}")
    if lockfiles.REPLACED in locked:
        problems.append(
            f"lock/{name}.txt has {lockfiles.REPLACED}, which needs libGL; use {lockfiles.REPLACED}-headless"
        )
    return problems


def _check_stack(stack: Stack) -> list[str]:
    problems = []
    shared = lockfiles.packages_lock(stack.packages)
    locked = lockfiles.pins(shared.read_text(encoding="utf-8"))
    for upstream, pin in stack.upstreams.items():
        if pin.packaged and locked.get(upstream) != pin.version:
            found = locked.get(upstream)
            problems.append(f"lock/{shared.name} has {upstream} {found}, stacks.toml says {pin.version}")
    for machine in arch.KNOWN:
        name = f"{stack.name}-torch-{machine}.txt"
        family = lockfiles.pins((paths.LOCK / name).read_text(encoding="utf-8"))
        for project, version in (
            ("torch", stack.torch),
            ("torchvision", stack.torchvision),
            ("torch-npu", stack.torch_npu),
        ):
            if family.get(project, "").removesuffix("+cpu") != version:
                problems.append(
                    f"lock/{name} has {project} {family.get(project)}, stacks.toml says {version}"
                )
        problems += [
            f"{project} is in lock/{name} and in lock/{shared.name}"
            for project in family.keys() & locked.keys()
        ]
    return problems


def _check_data() -> list[str]:
    try:
        known = assets.load()
    except AscendetError as error:
        return [f"lock/data.toml: {error.found}"]
    wished = {name for stack in load_all().values() for name in stack.weights}
    listed = {name for name, asset in known.items() if asset.folder == "weights"}
    return [
        f"lock/data.toml: {name} is in only one of it and stacks.toml" for name in sorted(wished ^ listed)
    ] + [
        f"lock/data.toml: {name} does not say its licence"
        for name in sorted(listed)
        if not known[name].licence
    ]


def _check_text(name: str) -> list[str]:
    """Return sentences about a lock that names a host or a local file, or has a pin without a hash."""
    text = (paths.LOCK / name).read_text(encoding="utf-8")
    problems = []
    if lockfiles.COMMAND not in text[:400]:
        problems.append(f"lock/{name} does not say that {lockfiles.COMMAND} writes it")
    if name != "data.toml" and re.search(
        r"://|^-|--(index|find|extra|trusted)| @ |/\w+/\w+/", text, re.MULTILINE
    ):
        problems.append(f"lock/{name} names an index, a host or a local path")
    if name.endswith(".txt"):
        body = [
            line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")
        ]
        for line, following in zip(body, [*body[1:], ""], strict=True):
            if not line.startswith("--hash") and not following.startswith("--hash"):
                problems.append(f"lock/{name}: no hash for {line}")
            if line.startswith("--hash") and not _HASH.search(line.removesuffix("\\").strip()):
                problems.append(f"lock/{name}: not a SHA-256: {line}")
    return problems


def _listed_reasons() -> set[str]:
    """Return the projects for which the table in requirements/README.md gives a reason."""
    text = (paths.REQUIREMENTS / "README.md").read_text(encoding="utf-8")
    return {lockfiles.normalise(name) for name in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)}
