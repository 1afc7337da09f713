"""Locks: what people wish (`stacks.toml`, `*.in`) turned into facts with hashes (`requirements/lock/`).

`make relock` is the only writer. Four kinds of files come out:

- `<packages>.txt`: pip-tools' resolution of `<packages>.in`, one file for both architectures;
- `<stack>-torch-<machine>.txt`: torch, torchvision, torch_npu and the libraries that torch links, per
  architecture. They are apart because torch_npu's x86_64 wheel asks for `torch==<version>+cpu`, which the
  package index does not have, and because the two architectures need different files;
- `sources.toml`: the source distributions that we build wheels from;
- `images.toml`: the digests of the CANN images that were pulled; those that never were here keep what is locked.

No lock names a host: where files come from is the user's pip configuration, the hash is the authority.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

from ascendet import paths
from ascendet.core import files, process
from ascendet.core.stack import Stack, load_all
from ascendet.errors import AscendetError
from ascendet.machine import arch, engine
from ascendet.supply import assets, index, sources

COMMAND = "make relock"
# Newest first; all of them run on the glibc 2.34/2.35 of the CANN images and on Debian 12's 2.36.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
# torch's x86_64 build links these. triton, which it also asks for, only compiles CUDA kernels; on NPU hosts
# it would shadow triton-ascend.
_LINKED = re.compile(r"nvidia-[a-z0-9-]+")
# Not locked, though packages ask for it: it needs libGL, which a bare machine lacks. opencv-python-headless
# gives the same module.
_REPLACED = "opencv-python"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) \\$", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}$")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where wishes and locks differ"
    )


def execute(args: argparse.Namespace) -> None:
    """Write the locks, then check them; or only check them."""
    if not args.check:
        write_all()
    problems = check()
    if problems:
        raise AscendetError(
            "lock-stale",
            "requirements/lock does not agree with what it is made from",
            found="\n".join(problems),
            hint=COMMAND,
        )
    print(f"{paths.shorten(paths.LOCK)}: {len(lock_names())} locks agree with stacks.toml and the *.in files")


def lock_names() -> list[str]:
    """Every file that `make relock` writes; of data.toml only digests that are unknown so far."""
    names = [
        "sources.toml",
        "data.toml",
        "images.toml",
        *(packages_lock(name).name for name in _package_lists()),
    ]
    for stack in load_all():
        names += [f"{stack}-torch-{machine}.txt" for machine in arch.KNOWN]
    return names


def _package_lists() -> list[str]:
    """The names of all `*.in` files."""
    return list(dict.fromkeys(["tools", *(stack.packages for stack in load_all().values())]))


def packages_lock(packages: str) -> Path:
    """The lock of `<packages>.in`."""
    return paths.LOCK / f"{packages}.txt"


def torch_lock(stack: Stack, machine: str) -> Path:
    """The torch family's lock for an architecture; `error[lock-missing]` where there is none."""
    path = paths.LOCK / f"{stack.name}-torch-{machine}.txt"
    if not path.exists():
        raise AscendetError(
            "lock-missing",
            f"the {stack.name} stack has no torch lock for this machine",
            expected=f"one of {', '.join(arch.KNOWN)}",
            found=machine,
            hint=COMMAND,
        )
    return path


def pins(text: str) -> dict[str, str]:
    r"""The pinned versions of a lock by normalised name.

    >>> pins("Foo.Bar==1.2 \\\n    --hash=sha256:00\n")
    {'foo-bar': '1.2'}
    """
    return {normalise(name): version for name, version in _PIN.findall(text)}


def normalise(name: str) -> str:
    """A project name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wishes(text: str) -> list[str]:
    """The requirement lines of an `*.in` file."""
    return [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]


# -- writing --


def write_all() -> None:
    """Write every lock; a file is replaced only when its new content is complete."""
    paths.LOCK.mkdir(parents=True, exist_ok=True)
    for name in _package_lists():
        _say(f"{name}.txt")
        _compile(name)
    for stack in load_all().values():
        for machine in arch.KNOWN:
            name = f"{stack.name}-torch-{machine}.txt"
            _say(name)
            files.write_text(paths.LOCK / name, _torch_family(stack, machine))
    _say("sources.toml")
    files.write_text(paths.LOCK / "sources.toml", _sources())
    _say("data.toml")
    _record_hub_digests()
    _say("images.toml")
    files.write_text(paths.LOCK / "images.toml", _images())


def _compile(name: str) -> None:
    """Resolve `<name>.in` with pip-tools, starting from the versions that are locked now."""
    target = packages_lock(name)
    with tempfile.TemporaryDirectory(dir=paths.LOCK, prefix=".tmp-") as folder:
        output = Path(folder, target.name)
        if target.exists():
            output.write_bytes(target.read_bytes())
        command = [sys.executable, "-m", "piptools", "compile", f"requirements/{name}.in"]
        command += ["--quiet", "--generate-hashes", "--strip-extras", "--no-config", "--no-emit-options"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
        # Replaces pip-tools' own list of unlocked packages (pip, setuptools): those two are locked as well.
        command += ["--unsafe-package", _REPLACED, "--output-file", str(output)]
        process.run(
            command,
            cwd=paths.ROOT,
            env=_environ(),
            capture=False,
            error="lock-failed",
            what=f"pip-tools cannot resolve requirements/{name}.in",
            hint="read its message above",
        )
        files.publish(output, target)


def _torch_family(stack: Stack, machine: str) -> str:
    """The text of `<stack>-torch-<machine>.txt`."""
    npu = f"torch_npu=={stack.torch_npu}"
    plain = [f"torch=={stack.torch}", f"torchvision=={stack.torchvision}"]
    # PyTorch's own CPU index has smaller x86_64 builds. Its address is the user's to give, as every index is.
    cpu_index = os.environ.get("TORCH_INDEX_URL")
    found = None
    if machine == "x86_64" and cpu_index:
        found = _report([*(f"{wish}+cpu" for wish in plain), npu], stack, machine, cpu_index)
        if found is None:
            print(
                "  TORCH_INDEX_URL has no such CPU build; locking the package index's build", file=sys.stderr
            )
    if found is None:
        found = _report([*plain, npu], stack, machine)
    if found is None:
        raise AscendetError(
            "lock-failed", f"{stack.pair} has no wheels for {machine}", hint="read pip's message above"
        )
    linked = [wish for wish in _requirements(found["torch"], machine) if _LINKED.match(wish)]
    if linked:
        libraries = _report(linked, stack, machine)
        if libraries is None:
            raise AscendetError(
                "lock-failed", "libraries of torch cannot be locked", hint="read pip's message above"
            )
        found |= libraries
    lines = [
        f"# {stack.pair}, torchvision {stack.torchvision} for {machine} (Python {stack.python}).",
        f"# Written by `{COMMAND}` from requirements/stacks.toml. Install with --no-deps --require-hashes.",
    ]
    for name in sorted(found):
        item = found[name]
        lines += [f"{name}=={item['metadata']['version']} \\", f"    --hash=sha256:{_sha256(item)}"]
    return "\n".join(lines) + "\n"


def _report(
    wanted: list[str], stack: Stack, machine: str, extra_index: str | None = None
) -> dict[str, dict] | None:  # type: ignore[type-arg]
    """What pip would install on `machine` for exactly these requirements, by name; None where it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
        ]
        command += ["--only-binary=:all:", "--python-version", stack.python, "--target", folder]
        command += [option for name in _PLATFORMS for option in ("--platform", f"{name}_{machine}")]
        command += ["--extra-index-url", extra_index] if extra_index else []
        command += ["--report", str(report), *wanted]
        if subprocess.run(command, cwd=paths.ROOT, env=_environ(), check=False).returncode:
            return None
        content = json.loads(report.read_text(encoding="utf-8"))
    return {normalise(item["metadata"]["name"]): item for item in content["install"]}


def _requirements(item: Mapping[str, Mapping[str, list[str]]], machine: str) -> list[str]:
    """The requirements that a wheel's metadata states for Linux on `machine`, without extras."""
    from packaging.requirements import Requirement

    found = []
    for text in item["metadata"].get("requires_dist", []):
        requirement = Requirement(text)
        environment = {"platform_machine": machine, "platform_system": "Linux", "extra": ""}
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def _sha256(item: Mapping[str, Mapping[str, Mapping[str, Mapping[str, str]]]]) -> str:
    return item["download_info"]["archive_info"]["hashes"]["sha256"]


def _sources() -> str:
    """The text of `sources.toml`: each source distribution's SHA-256, as the package index states it."""
    lines = [f"# What we build wheels from. Written by `{COMMAND}` from requirements/stacks.toml."]
    for sdist in _sdists():
        lines += ["", f'["{sdist}"]', f'sha256 = "{_index_hash(sources.project(sdist), sdist)}"']
    return "\n".join(lines) + "\n"


def _images() -> str:
    """The text of `images.toml`: each CANN image's digest, as the registry stated it when the engine here pulled it."""
    path = paths.LOCK / "images.toml"
    locked = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = [
        f"# Digests of the CANN images that were pulled. Written by `{COMMAND}` from requirements/stacks.toml."
    ]
    for name in image_names():
        digest = _pulled_digest(name) or locked.get(name)
        lines += [f'"{name}" = "{digest}"'] if digest else []
    return "\n".join(lines) + "\n"


def image_names() -> list[str]:
    """The CANN images of all stacks, by name and tag."""
    return sorted({stack.base_image(soc) for stack in load_all().values() for soc in stack.soc})


def _pulled_digest(name: str) -> str | None:
    """The registry's digest of an image that a Docker engine here has; None without an engine or the image."""
    try:
        images = engine.inspect("image", [name])
    except AscendetError:
        return None
    return next(
        (str(known).partition("@")[2] for image in images for known in image["RepoDigests"] or []), None
    )


def _sdists() -> list[str]:
    pins = [pin for stack in load_all().values() for pin in stack.upstreams.values()]
    return sorted({pin.sdist for pin in pins if pin.sdist is not None})


def _index_hash(project: str, file_name: str) -> str:
    """The SHA-256 that pip's configured package index states for a file (PEP 503: in the link's fragment)."""
    for link in index.links(_pip_index(), project):
        url = urllib.parse.urlsplit(link)
        if url.path.rpartition("/")[2] == file_name and url.fragment.startswith("sha256="):
            return url.fragment.removeprefix("sha256=")
    raise AscendetError(
        "lock-failed",
        f"the package index states no SHA-256 for {file_name}",
        hint="choose a version that it has, in requirements/stacks.toml",
    )


def _record_hub_digests() -> None:
    """Ask the model hub for digests that are unknown so far: its pointer to a large file states the SHA-256."""
    import requests

    for asset in assets.load().values():
        hubs = [url for url in (*asset.urls, *asset.cn) if "/resolve/" in url]
        for url in hubs if asset.sha256 == assets.UNKNOWN else []:
            try:
                pointer = requests.get(url.replace("/resolve/", "/raw/", 1), timeout=30).text
            except requests.RequestException as error:
                print(
                    f"  {asset.name}: {url.split('/')[2]} does not answer ({type(error).__name__})",
                    file=sys.stderr,
                )
                continue
            stated = re.search(r"^oid sha256:([0-9a-f]{64})$", pointer, re.MULTILINE)
            if stated:
                assets.record(asset.name, stated[1])
                break


def _pip_index() -> str:
    """The address of the package index that pip uses here."""
    asked = process.ask([sys.executable, "-m", "pip", "config", "get", "global.index-url"], env=_environ())
    if asked is not None:
        return asked.strip()
    if "PIP_INDEX_URL" in os.environ:
        return os.environ["PIP_INDEX_URL"]
    return index.default()


def _environ() -> dict[str, str]:
    """The environment for pip while locking: one index, no local folder of wheels, no configuration file.

    A lock must hold the public files' hashes, whatever else a developer's pip is set up to prefer.
    """
    extra = {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONSTRAINT"}
    environ = {name: value for name, value in os.environ.items() if name not in extra}
    return environ | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "CUSTOM_COMPILE_COMMAND": COMMAND,
    }


def _say(name: str) -> None:
    print(f"locking {name}", flush=True)


# -- checking --


def check() -> list[str]:
    """Every disagreement between stacks.toml, the *.in files, the locks and README.md, as sentences."""
    missing = [name for name in lock_names() if not (paths.LOCK / name).exists()]
    if missing:
        return [f"lock/{name} is missing" for name in missing]
    problems: list[str] = []
    listed = _listed_reasons()
    wished: set[str] = set()
    for name in _package_lists():
        lines = wishes((paths.REQUIREMENTS / f"{name}.in").read_text(encoding="utf-8"))
        wished |= {normalise(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in lines}
        problems += _check_pins(name, lines)
    problems += [f"README.md gives no reason for {name}" for name in sorted(wished - listed)]
    problems += [
        f"README.md gives a reason for {name}, which nothing asks for" for name in sorted(listed - wished)
    ]
    for stack in load_all().values():
        problems += _check_stack(stack)
    for name in lock_names():
        problems += _check_text(name)
    problems += _check_data()
    sources = tomllib.loads((paths.LOCK / "sources.toml").read_text(encoding="utf-8"))
    expected = set(_sdists())
    problems += [
        f"lock/sources.toml: {name} is not what stacks.toml says" for name in sorted(expected ^ set(sources))
    ]
    images = tomllib.loads((paths.LOCK / "images.toml").read_text(encoding="utf-8"))
    problems += [
        f"lock/images.toml: no stack uses {name}" for name in sorted(images.keys() - set(image_names()))
    ]
    known = {path.name for path in paths.LOCK.iterdir()}
    problems += [f"lock/{name} is not written by {COMMAND}" for name in sorted(known - set(lock_names()))]
    return problems


def _check_pins(name: str, lines: Iterable[str]) -> list[str]:
    from packaging.requirements import Requirement

    locked = pins(packages_lock(name).read_text(encoding="utf-8"))
    problems = []
    for line in lines:
        wish = Requirement(line)
        version = locked.get(normalise(wish.name))
        if version is None:
            problems.append(f"lock/{name}.txt lacks {wish.name}")
        elif not wish.specifier.contains(version, prereleases=True):
            problems.append(f"lock/{name}.txt has {wish.name} {version}, {name}.in says {line}")
    if _REPLACED in locked:
        problems.append(f"lock/{name}.txt has {_REPLACED}, which needs libGL; use {_REPLACED}-headless")
    return problems


def _check_stack(stack: Stack) -> list[str]:
    problems = []
    shared = packages_lock(stack.packages)
    locked = pins(shared.read_text(encoding="utf-8"))
    for upstream, pin in stack.upstreams.items():
        if pin.packaged and locked.get(upstream) != pin.version:
            found = locked.get(upstream)
            problems.append(f"lock/{shared.name} has {upstream} {found}, stacks.toml says {pin.version}")
    for machine in arch.KNOWN:
        name = f"{stack.name}-torch-{machine}.txt"
        family = pins((paths.LOCK / name).read_text(encoding="utf-8"))
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
    return [f"lock/data.toml: {name} is not what stacks.toml says" for name in sorted(wished ^ listed)]


def _check_text(name: str) -> list[str]:
    """A lock names no host and no local file, and every pin has a hash."""
    text = (paths.LOCK / name).read_text(encoding="utf-8")
    problems = []
    if COMMAND not in text[:400]:
        problems.append(f"lock/{name} does not say how to remake it")
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
    """The projects that requirements/README.md's table gives a reason for."""
    text = (paths.REQUIREMENTS / "README.md").read_text(encoding="utf-8")
    return {normalise(name) for name in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)}
