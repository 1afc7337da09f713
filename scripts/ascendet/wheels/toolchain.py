"""What an extension is compiled with and for: GCC, and the Python and torch of a target."""

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
    """A GNU C++ compiler: the command, and what it calls itself (part of every object's name)."""

    command: str
    identity: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an extension is built for.

    Attributes
    ----------
    machine
        "x86_64" or "aarch64".
    site
        A site-packages folder that holds this machine's torch and torch_npu.
    python_include
        Folder of Python.h.
    interpreter
        A file that exports Python's C API: the interpreter, or libpython where there is one.
    suffix
        Of extension modules, for example ".cpython-311-x86_64-linux-gnu.so".
    """

    machine: str
    site: Path
    python_include: Path
    interpreter: Path
    suffix: str


def find(machine: str) -> Compiler:
    """The C++ compiler for a machine: `$CXX`, else `<machine>-linux-gnu-g++`, else (for this machine) `g++`.

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
            expected="GCC, as torch and torch_npu were built with",
            found=(shown.splitlines() or ["no answer to --version"])[0],
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
    # Without the path: the same compiler elsewhere makes the same objects.
    return Compiler(command=command, identity=shown.splitlines()[0].partition(" ")[2])


def host_target(stack: Stack) -> Target:
    """What runs on this machine in the stack's environment, which must be there."""
    asked = process.run(
        [venv.stack_python(stack), "-ISc", _ABOUT_PYTHON],
        error="install-failed",
        what="the stack's Python does not answer",
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
    """A hash over the files that an installed project consists of, the same wherever it is installed.

    Taken from the hashes that its wheel's RECORD states, without what pip adds.
    """
    (record,) = target.site.glob(f"{project}-*.dist-info/RECORD")
    lines = record.read_text(encoding="utf-8").splitlines()
    stated = sorted(
        line
        for line in lines
        if "sha256=" in line and not line.startswith("../") and f"{record.parent.name}/" not in line
    )
    return hashlib.sha256("\n".join(stated).encode()).hexdigest()
