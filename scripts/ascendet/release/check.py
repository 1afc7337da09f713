"""`make check-release`: verify a release, install each stack from it into an empty environment, and try it.

The environment gets what a user's gets: the files of `constraints/<stack>.txt`, by their hashes, from the release's
index and the user's. No compiler is on the PATH. Another architecture's set is unpacked and tried under emulation.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from securesystemslib.signer import Key

from ascendet import paths
from ascendet.core import files, process
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack
from ascendet.envs import activation, venv
from ascendet.errors import AscendetError
from ascendet.machine import arch
from ascendet.release import index, release, signing, sums
from ascendet.wheels import check_emulated, wheelfile

configure_parser = release.configure_parser

# torch_npu first: it makes the NPU known to torch.
_IMPORT = """
import importlib, sys, torch, torch_npu
for name in sys.argv[1:]:
    importlib.import_module(name)
assert torch.ones(3, device="npu:0").sum().item() == 3
print("computes on", torch.npu.get_device_name(0))
"""
# What a machine without compilers has: the shell's own programs.
_PROGRAMS = ("bash", "sh", "env", "dirname", "basename", "uname", "cat", "ls", "readlink", "sed", "grep")


def execute(args: argparse.Namespace) -> None:
    """Verify the release of this version, then install and try each of its stacks on each of its architectures."""
    folder = release.home()
    key = signing.read_public(args.key) if args.key else None
    verify(folder)
    if key:
        signing.verify(folder, key)
    with files.holding_lock(folder.parent / ".lock", "release"):  # make release must not replace it meanwhile
        print(
            f"{paths.shorten(folder)}: every file, every link of the index is as {sums.NAME} says", flush=True
        )
        print(f"  {_signatures(folder, key)}", flush=True)
        held = sorted(path.stem for path in (folder / "constraints").glob("*.txt"))
        for name in args.stack.split() or held:
            stack = Stack.load(name)
            if name not in held:
                missing = [f"constraints/{name}.txt is missing"]
                raise _damaged(folder, missing, hint=f"make release STACK={name}")
            for machine in [arch.parse(args.machine)] if args.machine else machines_of(folder):
                try_stack(folder, stack, machine)


def verify(folder: Path) -> None:
    """Raise `release-damaged` unless the folder is exactly what its SHA256SUMS and its index say."""
    problems = sums.problems(folder)
    if problems:
        raise _damaged(folder, problems, hint="make release")


def _signatures(folder: Path, key: Key | None) -> str:
    if key:
        return f"{sums.NAME} and the provenance of every wheel are signed by the key {signing.name(key)}"
    if signing.is_signed(folder):
        return "signed, but nobody checked the signatures: make check-release KEY=<the builder's public key>"
    return "not signed"


def machines_of(folder: Path) -> list[str]:
    """Return the architectures that a release has compiled wheels for, this machine's first."""
    wheels = folder / index.WHEELS
    found = [machine for machine in arch.KNOWN if any(wheels.glob(f"*_{machine}.whl"))]
    return sorted(found, key=lambda machine: machine != platform.machine())


def try_stack(folder: Path, stack: Stack, machine: str) -> None:
    """Install a stack's set from the release, import our packages on simulated NPUs, and run the smoke tests."""
    print(f"{stack.name}, {machine}: installing from the release into an empty environment", flush=True)
    with tempfile.TemporaryDirectory(prefix="ascendet-release-") as name, files.disk_errors(paths.BUILD):
        home = Path(name)
        here = machine == platform.machine()
        (_try_here if here else _try_emulated)(folder, stack, machine, home)


def _try_here(folder: Path, stack: Stack, machine: str, home: Path) -> None:
    programs = home / "bin"
    programs.mkdir()
    for program in filter(None, map(shutil.which, _PROGRAMS)):
        (programs / Path(program).name).symlink_to(program)
    environment = home / "venv"
    process.run(
        [venv.interpreter(stack.python), "-m", "venv", "--without-pip", str(environment)],
        error="install-failed",
        what="no empty environment can be made",
        hint="make doctor",
    )
    python = environment / "bin/python"
    venv.uv_install(python, _options(folder, stack), {"PATH": str(programs)})
    tree = environment / f"lib/python{stack.python}/site-packages/cann_sim/tree"
    environ = activation.source_set_env(tree, {"PATH": str(programs), "HOME": str(home)})
    environ |= {"OMP_NUM_THREADS": "1"}
    _run_programs(folder, stack, machine, [str(python)], environ, home)


def _try_emulated(folder: Path, stack: Stack, machine: str, home: Path) -> None:
    root = check_emulated.ensure_root(machine)
    site = home / "site"
    options = [f"--python-platform={machine}-manylinux_2_28", f"--target={site}"]
    venv.uv_install(venv.tools_home() / "bin/python", [*options, *_options(folder, stack)])
    command, environ = check_emulated.emulation(stack, machine, root, [site], site / "cann_sim/tree")
    _run_programs(folder, stack, machine, command, environ, home)


def _options(folder: Path, stack: Stack) -> list[str]:
    """Return uv's options that install a stack's set, as docs/release.md says them for pip."""
    pinned = folder / "constraints" / f"{stack.name}.txt"
    return [
        *("--require-hashes", "--only-binary=:all:"),
        *("--extra-index-url", (folder / index.SIMPLE).as_uri()),
        *("--requirement", str(pinned)),
    ]


def _run_programs(
    folder: Path,
    stack: Stack,
    machine: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    work: Path,
) -> None:
    """Import every package that the release brings, compute on a simulated NPU, run the wheels' smoke tests."""
    modules = _modules(folder, stack, machine)
    print(f"  imports: torch_npu, {', '.join(modules)}", flush=True)
    programs = {"the import": ["-c", _IMPORT, *modules]}
    programs |= {
        f"the smoke test of {spec.name}": [str(spec.home / "smoke.py")]
        for spec in map(Spec.load, stack.wheels)
        if (spec.home / "smoke.py").exists()
    }
    for name, program in programs.items():
        shown = process.run(
            [*command, *program],
            env=environ,
            cwd=work,
            error="smoke-failed",
            what=f"{stack.name} is installed from the release, but {name} fails",
            hint=f"make install STACK={stack.name}, then compare",
        )
        print("".join(f"  {line}\n" for line in shown.splitlines()), end="", flush=True)


def _modules(folder: Path, stack: Stack, machine: str) -> list[str]:
    """Return the packages in the release's wheels that are in a stack's set for an architecture."""
    pinned = (folder / "constraints" / f"{stack.name}.txt").read_text(encoding="utf-8")
    found = set()
    for path in (folder / index.WHEELS).glob("*.whl"):
        if path.name.endswith(("-any.whl", f"_{machine}.whl")) and files.digest(path) in pinned:
            names = wheelfile.read(path).files
            found |= {parts[0] for name in names if (parts := name.split("/"))[1:] == ["__init__.py"]}
    return sorted(found)


def _damaged(folder: Path, problems: Sequence[str], *, hint: str) -> AscendetError:
    return AscendetError(
        "release-damaged",
        f"{paths.shorten(folder)} is not a complete release",
        expected=f"exactly the files of {sums.NAME}, all of them and no other",
        found=sums.listed(problems),
        hint=hint,
    )
