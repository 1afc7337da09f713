"""Build wheels of the locked packages that the package index has as source only, so that they are built once.

A release has them in its index, and another architecture's site-packages, which take wheels only, are made with them.
"""

from __future__ import annotations

import platform
import tempfile
import zlib
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest, process
from ascendet.core.stack import Stack
from ascendet.envs import venv
from ascendet.supply import lockfiles
from ascendet.wheels import wheelfile


def build(stack: Stack) -> list[Path]:
    """Return wheels of a stack's locked packages that the package index has as source only; build them if needed.

    Such a package has one locked file. pip builds what is no wheel with the locked setuptools of the stack's
    environment; the result is packed again, to the same bytes every time.
    """
    text = lockfiles.packages_lock(stack.packages).read_text(encoding="utf-8")
    single = {name for (name, _), hashes in lockfiles.hashes(text).items() if len(hashes) == 1}
    wanted = lockfiles.part(text, single)
    inputs = {"lock": wanted, "python": stack.python, "zlib": zlib.ZLIB_RUNTIME_VERSION}
    with manifest.stage("wheelhouse/locked", inputs, cached=True) as stage:
        if not stage.fresh:
            with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
                lock, output = Path(folder, "lock.txt"), Path(folder, "out")
                lock.write_text(wanted, encoding="utf-8")
                command = [*venv.tools_pip(), f"--python={venv.stack_python(stack)}", "wheel", "--quiet"]
                command += ["--no-build-isolation", "--no-deps", "--require-hashes"]
                process.run(
                    [*command, f"--wheel-dir={output}", f"--requirement={lock}"],
                    disks=[output, paths.BUILD],
                    what=f"the packages of {stack.packages}.txt that have no wheel cannot be built",
                    hint="check the network and pip's index (pip config list), then run the command again",
                )
                for built in sorted(output.glob("*.whl")):
                    if files.digest(built) not in wanted:
                        plain = wheelfile.read(built)
                        wheelfile.write(
                            stage.path, plain.name, plain.version, "-".join(plain.tags), plain.files
                        )
            stage.record(stack=stack.name, versions={"python": platform.python_version()})
    return sorted(stage.final.glob("*.whl"))
