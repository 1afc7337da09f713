"""Find the compiler for an extension, and the target's Python and torch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.core import process
from ascendet.core.stack import Stack
from ascendet.envs import venv
from ascendet.errors import AscendetError
from ascendet.machine import needs

_ABOUT_PYTHON = """
import json, sys, sysconfig
get = sysconfig.get_config_var
shared = f"{get('LIBDIR')}/{get('INSTSONAME')}"
interpreter = shared if get("Py_ENABLE_SHARED") else sys._base_executable
print(json.dumps([sysconfig.get_path("include"), interpreter, get("EXT_SUFFIX")]))
"""


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A GNU C++ compiler: its command, and its version line without the command, which is part of each object's key."""

    command: str
    identity: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """The architecture, torch pair and Python that an extension is built for.

    Attributes
    ----------
    machine
        The architecture, "x86_64" or "aarch64".
    site
        A site-packages folder with torch and torch_npu for that architecture.
    python_include
        The folder of Python.h.
    interpreter
        A file that exports Python's C API: libpython if there is one, else the interpreter.
    suffix
        The suffix of extension modules, for example ".cpython-311-x86_64-linux-gnu.so".
    """

    machine: str
    site: Path
    python_include: Path
    interpreter: Path
    suffix: str


def find(machine: str) -> Compiler:
    """Return the C++ compiler for an architecture: `$CXX` or g++ for this one, else `<architecture>-linux-gnu-g++`.

    Raises
    ------
    AscendetError
        `compiler-missing`, `compiler-too-old`.
    """
    cross = machine != os.uname().machine
    name = f"{machine}-linux-gnu-g++" if cross else needs.compiler()
    command = shutil.which(name)
    package = f"g++-{machine.replace('_', '-')}-linux-gnu" if cross else "g++"
    if command is None:
        raise AscendetError(
            "compiler-missing",
            f"there is no C++ compiler for {machine}",
            expected=name,
            hint=f"install {package} (Debian, Ubuntu), or make doctor",
        )
    shown = process.ask([command, "--version"]) or ""
    version = needs.parse_gcc(process.ask([command, "-dumpfullversion"]) or "")
    if "Free Software Foundation" not in shown or version is None:
        raise AscendetError(
            "compiler-missing",
            f"{command} is not GNU's C++ compiler",
            expected="GCC, with which torch and torch_npu were built",
            found=(shown.splitlines() or ["no output for --version"])[0],
            hint="unset CXX",
        )
    if version < needs.MIN_GCC:
        raise AscendetError(
            "compiler-too-old",
            f"{command} cannot compile torch's headers",
            expected=f"GCC {'.'.join(map(str, needs.MIN_GCC))} or newer",
            found=f"GCC {'.'.join(map(str, version))}",
            hint=f"install a newer {package}, or set CXX to one",
        )
    # Without the path, because the same compiler in another folder makes the same objects.
    return Compiler(command=command, identity=shown.splitlines()[0].partition(" ")[2])


def host_target(stack: Stack) -> Target:
    """Return the target for this machine, with the Python and torch of the stack's environment, which must exist."""
    asked = process.run(
        [venv.stack_python(stack), "-ISc", _ABOUT_PYTHON],
        error="install-failed",
        what="the Python of the stack's environment does not run",
        hint=f"rm -r {paths.shorten(venv.stack_home(stack))} && make env STACK={stack.name}",
    )
    include, interpreter, suffix = json.loads(asked)
    return Target(
        machine=platform.machine(),
        site=venv.stack_home(stack) / "lib" / f"python{stack.python}" / "site-packages",
        python_include=Path(include),
        interpreter=Path(interpreter).resolve(),
        suffix=suffix,
    )


def identify(target: Target, project: str) -> str:
    """Return a hash over the files of an installed project, which is the same wherever it is installed.

    It is computed from the hashes in the wheel's RECORD, without the files that the installer adds. Scripts are among
    those, since they name the interpreter's path: outside of site-packages, but in its bin/ where `--target` was used.
    """
    (record,) = target.site.glob(f"{project}-*.dist-info/RECORD")
    lines = record.read_text(encoding="utf-8").splitlines()
    stated = sorted(
        line
        for line in lines
        if "sha256=" in line and not line.startswith(("../", "bin/")) and f"{record.parent.name}/" not in line
    )
    return hashlib.sha256("\n".join(stated).encode()).hexdigest()
