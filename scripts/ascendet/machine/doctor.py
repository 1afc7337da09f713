"""`make doctor`: report all problems of this machine at once, each with its fix, before a long build starts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ascendet import paths
from ascendet.core import access, files, options
from ascendet.core.stack import Stack
from ascendet.errors import AscendetError
from ascendet.machine import engine, host, needs

Status = Literal["ok", "warning", "blocks", "unused"]
# Runs a program and returns its output (both streams), or None if it is not installed.
Run = Callable[[list[str]], str | None]

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report. The status `unused` means: not needed for the chosen NPUs, shown for information."""

    name: str
    status: Status
    found: str
    fix: str | None = None


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def execute(args: argparse.Namespace) -> None:
    """Print the report; raise `doctor-blocked` if a check blocks the work on the chosen NPUs, real or simulated."""
    stack = Stack.load(args.stack)
    npu = choose_npu()
    checks = list(diagnose(stack, npu))
    if args.json:
        report = {"stack": stack.name, "npu": npu, "checks": [dataclasses.asdict(check) for check in checks]}
        print(json.dumps(report, indent=2))
    else:
        print(f"stack {stack.name}; NPUs: {'real' if npu == 'real' else 'simulated (cann_sim)'}")
        print("\n".join(render(check) for check in checks))
    blocking = [check.name for check in checks if check.status == "blocks"]
    if blocking:
        raise AscendetError(
            "doctor-blocked",
            "this machine is not ready",
            found=f"{len(blocking)} of {len(checks)} checks block: {', '.join(blocking)}",
            hint="apply the fixes above, then: make doctor",
        )


def choose_npu(root: Path = Path("/")) -> host.NpuKind:
    """Return the NPUs that `host.npu_kind` chooses, or "real" for NPU=real even if that cannot work.

    The report then says why it cannot.
    """
    if os.environ.get("NPU") == "real":
        return "real"
    return host.npu_kind(root)


def render(check: Check) -> str:
    """Return a check as text."""
    mark = {"ok": "ok", "warning": "warning", "blocks": "BLOCKS", "unused": "-"}[check.status]
    fix = f"\n{'':24}fix: {check.fix}" if check.fix else ""
    return f"{mark:<8} {check.name:<14} {check.found}{fix}"


def diagnose(
    stack: Stack, npu: host.NpuKind, root: Path = Path("/"), run: Run | None = None
) -> Iterator[Check]:
    """Yield the results of all checks, in the order in which a build would fail; `root` replaces `/` in them."""
    run = run or _run
    yield from _toolchain(stack, run)
    yield _disk("disk build", paths.BUILD, ["runs", "reports", "venv", "venv/tools", f"venv/{stack.name}"])
    yield _disk("disk cache", paths.CACHE, ["uv", "pip", "sdist", "wheelhouse"])
    yield _memory(root)
    yield _docker(run)
    yield from _npu(stack, npu, root, run)
    yield _pair(stack)


# -- needed with any NPUs --


def _toolchain(stack: Stack, run: Run) -> Iterator[Check]:
    found = platform.python_version()
    same = found.startswith(f"{stack.python}.")
    if same or shutil.which(f"python{stack.python}"):
        yield Check(name="python", status="ok", found=f"{found} ({sys.executable})")
    else:
        fix = f"install Python {stack.python} and pass PYTHON=/path/to/python{stack.python}"
        yield Check(name="python", status="blocks", found=f"{found}, no python{stack.python}", fix=fix)
    if same:
        # Debian and Ubuntu package venv and the headers separately from the interpreter.
        if run([sys.executable, "-c", "import ensurepip, venv; print('yes')"]) == "yes\n":
            yield Check(name="python venv", status="ok", found="venv and ensurepip are installed")
        else:
            fix = f"apt-get install python{stack.python}-venv"
            yield Check(name="python venv", status="blocks", found="no ensurepip", fix=fix)
        header = Path(sysconfig.get_path("include"), "Python.h")
        if header.exists():
            yield Check(name="python headers", status="ok", found=str(header))
        else:
            fix = f"apt-get install python{stack.python}-dev"
            yield Check(name="python headers", status="blocks", found=f"no {header}", fix=fix)
    yield _compiler(run)
    for tool in ("make", "git"):
        version = run([tool, "--version"])
        if version:
            yield Check(name=tool, status="ok", found=version.splitlines()[0])
        else:
            yield Check(name=tool, status="blocks", found="none", fix=f"apt-get install {tool}")


def _compiler(run: Run) -> Check:
    command, least = needs.compiler(), ".".join(map(str, needs.MIN_GCC))
    printed = run([command, "-dumpfullversion", "-dumpversion"])
    found = f"{command} {(printed or 'none').strip()}"
    version = needs.parse_gcc(printed or "")
    gnu = "clang" not in (run([command, "--version"]) or "")
    if gnu and version and version >= needs.MIN_GCC:
        return Check(name="compiler", status="ok", found=found)
    fix = f"apt-get install g++ ({least} or newer: torch's headers are C++17)"
    if "CXX" in os.environ:
        fix = f"unset CXX, or set it to a GNU C++ compiler, {least} or newer"
    return Check(name="compiler", status="blocks", found=found if gnu else f"{found} is not GNU's", fix=fix)


def _disk(name: str, folder: Path, within: Sequence[str]) -> Check:
    """Check that a folder and those `within` it may be used, and that its disk has room."""
    existing = files.existing(folder)
    closed = next(
        (path for path in (folder, *(folder / one for one in within)) if not access.may_use(path)), None
    )
    if closed:
        own = f"sudo chown -R {access.user()} {paths.shorten(folder)}"
        fix = f"{access.denied(closed).hint} for every command, or: {own}"
        found = f"no access to {access.describe(access.blocking(closed))}"
        return Check(name=name, status="blocks", found=found, fix=fix)
    free, needed = shutil.disk_usage(existing).free / _GIB, needs.disk_gib()
    found = f"{free:.0f} GiB free for {paths.shorten(folder)}"
    if free >= needed or (paths.BUILD / "venv").exists():
        return Check(name=name, status="ok", found=found)
    fix = f"{needed} GiB are needed; free some, or set ASCENDET_BUILD and ASCENDET_CACHE to a larger disk"
    return Check(name=name, status="blocks", found=found, fix=fix)


def _memory(root: Path) -> Check:
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return Check(name="memory", status="warning", found="unknown (no /proc/meminfo)")
    kib = {name: int(amount) for name, amount in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    free = kib.get("MemAvailable", kib.get("MemFree", 0)) * 1024 / _GIB
    found = f"{free:.1f} GiB available of {kib.get('MemTotal', 0) * 1024 / _GIB:.1f}"
    if free >= needs.MEMORY_GIB:
        return Check(name="memory", status="ok", found=found)
    fix = f"{needs.MEMORY_GIB} GiB are recommended; with less, build with MAX_JOBS=1 and train on one device"
    return Check(name="memory", status="warning", found=found, fix=fix)


def _docker(run: Run) -> Check:
    version = run([engine.command_name(), "version", "--format", "{{.Server.Version}}"])
    if version is None:
        return Check(
            name="docker", status="unused", found="none; everything here runs in virtual environments"
        )
    answer = (version.strip().splitlines() or ["no answer"])[-1]
    if re.fullmatch(r"[\d.]+\S*", answer):
        return Check(name="docker", status="ok", found=f"engine {answer}")
    return Check(name="docker", status="unused", found=f"no usable engine: {answer[:80]}")


# -- needed with real NPUs --


def _npu(stack: Stack, npu: host.NpuKind, root: Path, run: Run) -> Iterator[Check]:
    blocks: Status = "blocks" if npu == "real" else "unused"
    tree, nodes = host.find_cann(root), host.device_nodes(root)
    if tree is None:
        status: Status = "warning" if nodes and npu == "sim" else blocks
        advice = f"use the image {stack.image}, or install CANN {stack.cann} (toolkit and the chip's ops)"
        yield Check(name="cann", status=status, found="none", fix=None if status == "unused" else advice)
    elif tree.version and _minor(tree.version) != _minor(stack.cann):
        fix = f"use the image {stack.image}; {stack.pair} is for CANN {stack.cann}"
        status = "warning" if npu == "real" else "unused"
        yield Check(name="cann", status=status, found=f"{tree.version} in {tree.home}", fix=fix)
    else:
        yield Check(name="cann", status="ok", found=f"{tree.version or 'unknown version'} in {tree.home}")
    yield _driver(root, blocks)
    if nodes:
        yield Check(name="devices", status="ok", found=f"{len(nodes)}: {nodes[0].name} to {nodes[-1].name}")
    else:
        advice = "start the container with --device /dev/davinciN for each NPU"
        fix_or_none = advice if npu == "real" else None
        yield Check(name="devices", status=blocks, found="no /dev/davinci*", fix=fix_or_none)
    if nodes or npu == "real":
        yield from _access(nodes, root, blocks)
    yield _npu_smi(run, blocks, wanted=bool(nodes) or npu == "real")


def _driver(root: Path, blocks: Status) -> Check:
    info = root / "usr/local/Ascend/driver/version.info"
    if not info.exists():
        fix = "mount the host's /usr/local/Ascend/driver into the container" if blocks == "blocks" else None
        return Check(name="driver", status=blocks, found="none", fix=fix)
    found = re.search(r"^Version=(\S+)", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return Check(name="driver", status="ok", found=found[1] if found else "unknown version")


def _access(nodes: list[Path], root: Path, blocks: Status) -> Iterator[Check]:
    managers = [root / "dev" / name for name in host.MANAGERS]
    missing = [node.name for node in managers if not node.exists()]
    if missing:
        fix = "start the container with " + " ".join(f"--device /dev/{name}" for name in missing)
        yield Check(name="device nodes", status=blocks, found=f"no {', '.join(missing)}", fix=fix)
    closed = [
        node for node in (*nodes, *managers) if node.exists() and not access.can(node, os.R_OK | os.W_OK)
    ]
    if closed:
        gid = closed[0].stat().st_gid
        fix = (
            f"join the group with id {gid}, HwHiAiUser on the host: groupadd --gid {gid} HwHiAiUser; "
            f"usermod --append --groups HwHiAiUser $USER (docker run: --group-add {gid})"
        )
        found = f"no access to {', '.join(node.name for node in closed)} (group {gid})"
        yield Check(name="device group", status=blocks, found=found, fix=fix)
    elif nodes:
        yield Check(name="device group", status="ok", found="all nodes can be read and written")


def _npu_smi(run: Run, blocks: Status, wanted: bool) -> Check:
    text = run(["npu-smi", "info"])
    if text is None:
        fix = (
            "mount the host's npu-smi (/usr/local/bin/npu-smi or /usr/local/sbin/npu-smi)" if wanted else None
        )
        return Check(name="npu-smi", status="warning" if wanted else "unused", found="none", fix=fix)
    code = re.search(r"-80(05|20)\b", text)
    if code:
        fix = (
            "another container uses the device, or a mount is missing: stop that container, or "
            "mount /usr/local/dcmi and the driver, and add --device for davinci_manager, devmm_svm, hisi_hdc"
        )
        return Check(name="npu-smi", status=blocks, found=f"error {code[0]}", fix=fix)
    health = re.findall(r"\b(?:OK|Warning|Alarm|Critical)\b", text)
    bad = [word for word in health if word != "OK"]
    if bad:
        fix = "npu-smi info -t health -i <id>"
        return Check(name="npu-smi", status="warning", found=f"{len(bad)} NPUs are not OK", fix=fix)
    return Check(name="npu-smi", status="ok", found=f"{len(health)} NPUs OK")


def _pair(stack: Stack) -> Check:
    """Compare the torch packages installed in the stack's environment (by their metadata folders) with the stack."""
    home = paths.BUILD / "venv" / stack.name
    installed: dict[str, str] = {}
    for info in home.glob("lib/python*/site-packages/torch*-*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        installed[name] = version.partition("+")[0]
    wanted = {"torch": stack.torch, "torchvision": stack.torchvision, "torch_npu": stack.torch_npu}
    if not installed:
        return Check(name="torch pair", status="ok", found=f"not installed yet; will be {stack.pair}")
    found = ", ".join(f"{name} {installed.get(name, 'none')}" for name in wanted)
    if all(installed.get(name) == version for name, version in wanted.items()):
        return Check(name="torch pair", status="ok", found=found)
    fix = f"rm -r {paths.shorten(home)} && make env STACK={stack.name}"
    return Check(name="torch pair", status="blocks", found=f"{found}; the stack is {stack.pair}", fix=fix)


def _minor(version: str) -> list[str]:
    return version.lower().split(".")[:2]


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False
        )
    except FileNotFoundError:
        return None
    except (subprocess.TimeoutExpired, PermissionError) as error:
        return str(error)
    return done.stdout
