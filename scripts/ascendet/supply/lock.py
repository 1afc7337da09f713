"""`make relock`: resolve the requirements in `stacks.toml` and `*.in` and write `requirements/lock/`, with hashes.

Nothing else writes these files. There are four kinds:

- `<packages>.txt`: pip-tools' resolution of `<packages>.in`, one file for both architectures;
- `<stack>-torch-<architecture>.txt`: torch, torchvision, torch_npu and the libraries that torch links, for one
  architecture. They are separate because torch_npu's x86_64 wheel requires `torch==<version>+cpu`, which the package
  index does not have, and because the two architectures need different files;
- `sources.toml`: the source distributions that we build wheels from;
- `images.toml`: the digests of the CANN images that were pulled; an image that is not here keeps its locked digest.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import files, process
from ascendet.core.stack import Stack, load_all
from ascendet.errors import AscendetError
from ascendet.machine import arch, engine
from ascendet.supply import assets, index, lock_check, lockfiles, sources

# The newest first; all of them run with the glibc 2.34 or 2.35 of the CANN images and with Debian 12's 2.36.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


# Libraries that torch's x86_64 build links. It also requires triton, which only compiles CUDA kernels and would hide
# triton-ascend on machines with NPUs; it is not locked.
_LINKED = re.compile(r"nvidia-[a-z0-9-]+")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if requirements and locks differ"
    )


def execute(args: argparse.Namespace) -> None:
    """Write the locks, then check them; or only check them."""
    if not args.check:
        write_all()
    problems = lock_check.check()
    if problems:
        raise AscendetError(
            "lock-stale",
            "requirements/lock does not agree with stacks.toml and the *.in files",
            found="\n".join(problems),
            hint=lockfiles.COMMAND,
        )
    print(
        f"{paths.shorten(paths.LOCK)}: {len(lockfiles.lock_names())} locks agree with stacks.toml and the *.in files"
    )


# -- writing --


def write_all() -> None:
    """Write all locks; each file is replaced only when its new content is complete."""
    paths.LOCK.mkdir(parents=True, exist_ok=True)
    for name in lockfiles.package_lists():
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
    """Resolve `<name>.in` with pip-tools, keeping the versions that are locked now where possible."""
    target = lockfiles.packages_lock(name)
    with tempfile.TemporaryDirectory(dir=paths.LOCK, prefix=".tmp-") as folder:
        output = Path(folder, target.name)
        if target.exists():
            output.write_bytes(target.read_bytes())
        command = [sys.executable, "-m", "piptools", "compile", f"requirements/{name}.in"]
        command += ["--quiet", "--generate-hashes", "--strip-extras", "--no-config", "--no-emit-options"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
        # This replaces pip-tools' own list of packages not to lock (pip, setuptools), so these are locked, too.
        command += ["--unsafe-package", lockfiles.REPLACED, "--output-file", str(output)]
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
    """Return the text of `<stack>-torch-<architecture>.txt`."""
    npu = f"torch_npu=={stack.torch_npu}"
    plain = [f"torch=={stack.torch}", f"torchvision=={stack.torchvision}"]
    # PyTorch's own CPU index has smaller x86_64 builds. The user gives its address, as for every index.
    cpu_index = os.environ.get("TORCH_INDEX_URL")
    found = None
    if machine == "x86_64" and cpu_index:
        found = _report([*(f"{wish}+cpu" for wish in plain), npu], stack, machine, cpu_index)
        if found is None:
            print(
                "  TORCH_INDEX_URL has no CPU build of this version; locking the package index's build",
                file=sys.stderr,
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
        f"# Written by `{lockfiles.COMMAND}` from requirements/stacks.toml. Install with --no-deps --require-hashes.",
    ]
    for name in sorted(found):
        item = found[name]
        lines += [f"{name}=={item['metadata']['version']} \\", f"    --hash=sha256:{_sha256(item)}"]
    return "\n".join(lines) + "\n"


def _report(
    wanted: list[str], stack: Stack, machine: str, extra_index: str | None = None
) -> dict[str, dict[str, Any]] | None:
    """Return what pip would install on an architecture for exactly these requirements, by name; None if it cannot."""
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
    return {lockfiles.normalise(item["metadata"]["name"]): item for item in content["install"]}


def _requirements(item: Mapping[str, Mapping[str, list[str]]], machine: str) -> list[str]:
    """Return the requirements in a wheel's metadata for Linux on an architecture, without extras."""
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
    """Return the text of `sources.toml`: each source distribution's SHA-256, as the package index states it."""
    lines = [f"# What we build wheels from. Written by `{lockfiles.COMMAND}` from requirements/stacks.toml."]
    for sdist in lockfiles.sdists():
        lines += ["", f'["{sdist}"]', f'sha256 = "{_index_hash(sources.project(sdist), sdist)}"']
    return "\n".join(lines) + "\n"


def _images() -> str:
    """Return the text of `images.toml`: each CANN image's digest, which the registry stated when it was pulled here."""
    path = paths.LOCK / "images.toml"
    locked = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = [
        "# Digests of the CANN images that were pulled. Written by "
        f"`{lockfiles.COMMAND}` from requirements/stacks.toml."
    ]
    for name in lockfiles.image_names():
        digest = _pulled_digest(name) or locked.get(name)
        lines += [f'"{name}" = "{digest}"'] if digest else []
    return "\n".join(lines) + "\n"


def _pulled_digest(name: str) -> str | None:
    """Return the registry's digest of a pulled image; None if there is no engine or it does not have the image."""
    try:
        images = engine.inspect("image", [name])
    except AscendetError:
        return None
    return next(
        (str(known).partition("@")[2] for image in images for known in image["RepoDigests"] or []), None
    )


def _index_hash(project: str, file_name: str) -> str:
    """Return the SHA-256 that pip's configured package index states for a file (PEP 503: in the link's fragment)."""
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
    """Record digests that are unknown so far from the model hub, whose pointer to a large file states the SHA-256."""
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
    """Return the address of the package index that pip uses here."""
    asked = process.ask([sys.executable, "-m", "pip", "config", "get", "global.index-url"], env=_environ())
    if asked is not None:
        return asked.strip()
    if "PIP_INDEX_URL" in os.environ:
        return os.environ["PIP_INDEX_URL"]
    return index.default()


def _environ() -> dict[str, str]:
    """Return the environment variables for pip while locking: one index, no folder of wheels, no configuration file.

    A lock must hold the hashes of the public files, whatever else a developer's pip is configured to prefer. To ask a
    source distribution what it requires, pip runs its build: with packages of the tools' lock only, by their hashes.
    """
    extra = {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONSTRAINT"}
    environ = {name: value for name, value in os.environ.items() if name not in extra}
    return environ | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_BUILD_CONSTRAINT": str(lockfiles.packages_lock("tools")),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "CUSTOM_COMPILE_COMMAND": lockfiles.COMMAND,
    }


def _say(name: str) -> None:
    print(f"locking {name}", flush=True)
