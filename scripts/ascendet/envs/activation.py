"""Find a stack's CANN tree, and the environment variables for a program that runs in the stack's environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ascendet import paths
from ascendet.core import process
from ascendet.core.stack import Stack
from ascendet.envs import venv
from ascendet.errors import AscendetError
from ascendet.machine import host
from ascendet.machine.host import NpuKind


def find_cann(stack: Stack, npu: NpuKind | None = None) -> host.CannTree:
    """Return the stack's CANN tree: for real NPUs the machine's, for simulated ones that of cann_sim.

    `npu` says which NPUs are used; None means those that `host.npu_kind` chooses.
    """
    if (npu or host.npu_kind()) == "real":
        tree = host.find_cann()
        assert tree is not None, "npu_kind() is real only with a tree"
        return tree
    home = process.run(
        [venv.stack_python(stack), "-m", "cann_sim", "home"],
        error="install-failed",
        what="cann_sim is not installed completely in the stack's environment",
        hint=f"rm -r {paths.shorten(venv.stack_home(stack))} && make env STACK={stack.name}",
    )
    return host.CannTree(home=Path(home.strip()), version=None)


def find_cann_libraries(stack: Stack) -> tuple[str, Path]:
    """Return whose CANN libraries the stack uses ("CANN" or "cann_sim"), and their folder."""
    return "cann_sim" if host.npu_kind() == "sim" else "CANN", find_cann(stack).home / "lib64"


def stack_environ(stack: Stack, npu: NpuKind | None = None) -> dict[str, str]:
    """Return the environment variables for a program that runs in the stack's environment, on the tree of `find_cann`.

    The tree's `set_env.sh` sets them, in the same way for a real and for a simulated tree.
    """
    npu = npu or host.npu_kind()
    home = find_cann(stack, npu).home
    environ = {name: value for name, value in os.environ.items() if name not in venv.FOREIGN}
    if npu == "real":
        # The driver is not part of the toolkit; in images, the Dockerfile adds it, not set_env.sh.
        driver = Path("/usr/local/Ascend/driver/lib64")
        folders = [
            str(folder) for folder in (driver, driver / "common", driver / "driver") if folder.is_dir()
        ]
        _prepend(environ, "LD_LIBRARY_PATH", folders)
    else:
        for name in [
            name for name in environ if name.startswith("ASCEND_") and name.endswith(("PATH", "HOME"))
        ]:
            del environ[name]  # set for another tree
        libraries = environ.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
        own = [part for part in libraries if part and not (Path(part) / "libascendcl.so").exists()]
        if own:
            environ["LD_LIBRARY_PATH"] = os.pathsep.join(own)
    environ = source_set_env(home, environ)
    _prepend(environ, "PATH", [str(venv.stack_home(stack) / "bin")])
    environ["VIRTUAL_ENV"] = str(venv.stack_home(stack))
    return environ


def _prepend(environ: dict[str, str], name: str, folders: list[str]) -> None:
    environ[name] = os.pathsep.join([*folders, *filter(None, [environ.get(name)])])


def source_set_env(home: Path, environ: dict[str, str]) -> dict[str, str]:
    """Source the tree's `set_env.sh` in a shell with the variables `environ`, and return the shell's variables."""
    script = host.set_env_script(home)
    if script is None:
        raise AscendetError(
            "npu-missing",
            f"the CANN tree {home} has no set_env.sh",
            expected=f"{home}/set_env.sh",
            hint="make doctor",
        )
    # CANN's scripts read unset variables, so `set -u` cannot be used; their output must not mix with that of env.
    command = ["bash", "-c", 'source "$1" >&2 && exec env --null', "bash", str(script)]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise AscendetError(
            "npu-missing",
            f"{script} fails",
            found=f"exit code {done.returncode}",
            hint=f"bash -x {script}",
        )
    pairs = (line.partition("=") for line in done.stdout.decode(errors="surrogateescape").split("\0") if line)
    return {name: value for name, _, value in pairs if name not in ("_", "SHLVL")}
