"""The next command to type, with the variables that the user gave to make."""

from __future__ import annotations

import os
import re
import shlex


def command(target: str, **changed: str) -> str:
    r"""Return `make <target>` with the variables that the user gave to make, changed by `changed`.

    make passes the variables of its command line to the programs that it starts in MAKEFLAGS, after `--`.

    >>> os.environ["MAKEFLAGS"] = r"w --jobserver -- RUN=x IMAGES=a\ b RESUME=1"
    >>> command("train", RESUME="1", LR="0.5")
    "make train RUN=x IMAGES='a b' RESUME=1 LR=0.5"
    >>> del os.environ["MAKEFLAGS"]
    >>> command("eval")
    'make eval'
    """
    _, _, given = os.environ.get("MAKEFLAGS", "").partition("-- ")
    variables: dict[str, str] = {}
    for word in shlex.split(given.replace("$$", "$")):
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(r"[A-Z_]+", name):
            variables[name] = value
    variables |= changed
    return " ".join(
        ["make", target, *(f"{name}={shlex.quote(value)}" for name, value in variables.items() if value)]
    )
