"""`make check-repro`: build a wheel twice, in circumstances as different as one machine allows, and compare bytes."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ascendet import paths
from ascendet.core import files, options, process
from ascendet.core.stack import Stack
from ascendet.envs import env
from ascendet.errors import AscendetError
from ascendet.wheels import wheelfile

# A user and group that nobody has: the second build runs as these if this process runs as root.
_OTHER_ID = "61234"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("name", help="a folder below wheels/")
    options.add_stack_option(parser)


def execute(args: argparse.Namespace) -> None:
    """Build a wheel twice from nothing; raise `not-reproducible` if the two files differ."""
    stack = Stack.load(args.stack)
    env.ensure_base(stack)
    with tempfile.TemporaryDirectory(prefix="ascendet-repro-") as folder:
        first = _build(args.name, stack, Path(folder, "first"), [], {"TZ": "UTC", "LANG": "C"}, umask=0o022)
        # With another folder, folder name, home, time zone, language, umask, number of jobs, and user.
        other = {"TZ": "Asia/Shanghai", "LANG": "zh_CN.UTF-8", "USER": "other", "MAX_JOBS": "1"}
        deep = Path(folder, "second", "in", "another folder")
        second = _build(args.name, stack, deep, _as_other_user(), other, umask=0o077)
        compare(first, second)
        print(f"{first.name}: two builds, same sha256 {files.digest(first)}")


def compare(first: Path, second: Path) -> None:
    """Raise `not-reproducible` if two wheels differ; the error names the members that do."""
    if first.name == second.name and files.digest(first) == files.digest(second):
        return
    one, two = wheelfile.read(first).files, wheelfile.read(second).files
    names = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    raise AscendetError(
        "not-reproducible",
        f"two builds of {first.name} differ",
        expected=files.digest(first),
        found=f"{files.digest(second)}, in: {', '.join(names) or 'the archive itself'}",
        hint="compare the two members (diffoscope), then look for a path, a time or an order in them",
    )


def _build(
    name: str, stack: Stack, folder: Path, prefix: Sequence[str], environ: dict[str, str], *, umask: int
) -> Path:
    (folder / "home").mkdir(parents=True)
    command = [*prefix, sys.executable, "-m", "ascendet", "wheel", name, "--stack", stack.name]
    print(f"{folder.name}: {' '.join(prefix[:1])} {environ}".replace("  ", " "), flush=True)
    home = str(folder / "home")
    places = {
        "HOME": home,
        "TMPDIR": home,
        "ASCENDET_BUILD": str(paths.BUILD),
        "ASCENDET_CACHE": str(paths.CACHE),
    }
    process.run(
        [*command, "--into", str(folder / "out")],
        env=os.environ | places | environ,
        cwd=paths.ROOT,
        umask=umask,
        capture=False,
        what=f"the build in {folder.name} failed",
        hint="read its message above",
    )
    (built,) = (folder / "out").glob("*.whl")
    return built


def _as_other_user() -> list[str]:
    """Return a command prefix that runs a program as another user who may read our files; empty if we are not root."""
    tool = shutil.which("setpriv")
    if os.geteuid() != 0 or tool is None:
        print("both builds run as the same user, because this one is not root or setpriv is missing")
        return []
    rights = "+dac_override,+dac_read_search"
    return [
        *(tool, "--reuid", _OTHER_ID, "--regid", _OTHER_ID, "--clear-groups"),
        *("--inh-caps", rights, "--ambient-caps", rights),
    ]
