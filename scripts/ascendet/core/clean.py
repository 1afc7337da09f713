"""`make clean`: remove the checkout's build folder; the cache, and a folder that ASCENDET_BUILD names, stay."""

from __future__ import annotations

import argparse

from ascendet import paths
from ascendet.core import access, files


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add no options: there are none."""


def execute(args: argparse.Namespace) -> None:
    """Remove build/, or the link that it is.

    Raises
    ------
    AscendetError
        `permission-denied`.
    """
    build = paths.ROOT / "build"
    try:
        if build.is_symlink():
            build.unlink()
        elif build.exists():
            files.remove_tree(build)
    except OSError as error:
        refused = access.refusal(error)
        if refused is None:
            raise
        # Another build folder, which that error proposes, would leave this one where it is.
        refused.hint = f"sudo rm -r {paths.shorten(build)}"
        raise refused from error
