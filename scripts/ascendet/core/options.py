"""The parser of the command line, whose errors are Ascendet's `usage` errors."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from ascendet.core.stack import load_all
from ascendet.errors import AscendetError


class Parser(argparse.ArgumentParser):
    """A parser of a stage's options that raises `usage` instead of exiting with code 2, as argparse does."""

    def error(self, message: str) -> NoReturn:
        """Raise `usage` with argparse's message."""
        usage = " ".join(self.format_usage().split())
        raise AscendetError(
            "usage", message, expected=usage.removeprefix("usage: "), hint=f"make help, or {self.prog} --help"
        )


def add_stack_option(
    parser: argparse.ArgumentParser, text: str = "a stack of requirements/stacks.toml"
) -> None:
    """Add `--stack` with this text of help; where it is not given, it is the first one of stacks.toml."""
    parser.add_argument("--stack", default=next(iter(load_all())), help=text)


def number(variable: str, least: int) -> Callable[[str], int]:
    """Return a function for `type=` that reads a whole number of at least `least`, or raises `usage` for the variable.

    >>> number("NNODES", 2)("2")
    2
    """

    def read(text: str) -> int:
        # isdecimal() also accepts digits of other scripts; int() also accepts "+1", "1_0" and blanks.
        if not (text.isascii() and text.isdecimal() and int(text) >= least):
            raise AscendetError(
                "usage",
                f"{variable} must be a number",
                expected=f"{least} or more",
                found=text,
                hint=f"{variable}={max(least, 1)}",
            )
        return int(text)

    return read
