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
    variables = given() | changed
    return " ".join(
        ["make", target, *(f"{name}={quote(value)}" for name, value in variables.items() if value)]
    )


def quote(text: str) -> str:
    r"""Return a value as one word of the shell, with as few quotes as it takes.

    >>> print(quote("a.jpg"), quote("a b"), quote("'a b' *.png"), quote("it's $1"))
    a.jpg 'a b' "'a b' *.png" 'it'"'"'s $1'
    """
    plain = "'" in text and not re.search(r'["$`\\!]', text)
    return f'"{text}"' if plain else shlex.quote(text)


def given() -> dict[str, str]:
    """Return the variables that the user gave to make on its command line."""
    _, _, text = os.environ.get("MAKEFLAGS", "").partition("-- ")
    variables: dict[str, str] = {}
    for word in shlex.split(text.replace("$$", "$")):
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(r"[A-Z_]+", name):
            variables[name] = value
    return variables


def complete(hint: str, target: str) -> str:
    """Return a hint as a command: one that is only a variable is completed, any other is returned as it is.

    >>> complete("SIZES=1024x1024,800x1344", "export"), complete("make train, or CHECKPOINT=<file>", "export")
    ('make export SIZES=1024x1024,800x1344', 'make train, or CHECKPOINT=<file>')
    """
    if not is_variable(hint):
        return hint
    return f"{command(target, **{hint.partition('=')[0]: ''})} {hint}"


def is_variable(hint: str) -> bool:
    """Return whether a hint is only a variable with its value, or several."""
    return re.match(r"[A-Z_]+=", hint) is not None
