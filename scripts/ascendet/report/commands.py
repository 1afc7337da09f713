"""The make commands of a report: those that made a result, from manifests, and those that make what is missing.

Which variable of make an option of a stage comes from is read from the Makefile, so that there is one table of them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ascendet import paths
from ascendet.core import again
from ascendet.data import datasets

_TARGETS = {"evaluate": "eval"}  # stages that are called differently than their make target
_SHOWN = ("MODEL", "DATASET")  # whatever their defaults are: a report is read elsewhere
_LEFT_OUT = ("JSON", "RESUME")  # who trains anew resumes nothing


@functools.cache
def makefile() -> tuple[Mapping[str, str], Mapping[str, str], Mapping[str, str]]:
    """Return the variable of each option with a value, that of each switch, and the variables' defaults."""
    text = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    values = {
        found[1]: found[2] or found[3]
        for found in re.finditer(r"--([a-z-]+) (?:'\$\(([A-Z_]+)\)'|\$\(call quoted,([A-Z_]+)\))", text)
    }
    switches = {found[2]: found[1] for found in re.finditer(r"\$\(if \$\(([A-Z_]+)\),--([a-z-]+)\)", text)}
    defaults = {found[1]: found[2] for found in re.finditer(r"^([A-Z_]+) \?=[ ]*(.*)$", text, re.MULTILINE)}
    return values, switches, defaults


def of_stage(argv: Sequence[str]) -> str | None:
    """Return the make command that started a stage with this command line, or None if it is none.

    >>> argv = ["__main__.py", "evaluate", "--stack", "blendmask", "--model", "blendmask-tiny", "--devices", "0,1",
    ...         "--dataset", "shapes", "--dataset-by-default", "--checkpoint", "", "--images", "20"]
    >>> of_stage(argv)
    'make eval STACK=blendmask MODEL=blendmask-tiny DATASET=shapes IMAGES=20'
    >>> of_stage([]) is None
    True
    """
    if len(argv) < 2 or not all(isinstance(word, str) for word in argv):
        return None
    values, switches, defaults = makefile()
    words, given = list(argv[2:]), []
    while words:
        option, equals, value = words.pop(0).removeprefix("--").partition("=")
        if option in values and option not in switches:
            name = values[option]
            value = value if equals else words.pop(0) if words else ""
        elif option in switches:
            name, value = switches[option], "1"
        else:
            continue
        if name not in _LEFT_OUT and value and (name in _SHOWN or value != defaults.get(name)):
            given.append(f"{name}={again.quote(value)}")
    return " ".join(["make", _TARGETS.get(argv[1], argv[1]), *dict.fromkeys(given)])


def of_manifest(content: Mapping[str, Any] | None) -> str | None:
    """Return the make command that made what a manifest is of, or None if it does not say.

    >>> of_manifest({"command": ["__main__.py", "data", "--dataset", "shapes"]}), of_manifest({"command": 1})
    ('make data DATASET=shapes', None)
    """
    argv = (content or {}).get("command")
    return of_stage(argv) if isinstance(argv, list) else None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a report is about, as make's variables.

    `model` may be a configuration file; `checkpoint` is "" for the latest training's.
    """

    stack: str
    model: str
    dataset: str
    checkpoint: str = ""

    def make(self, target: str, **more: str) -> str:
        """Return the command for a target about this subject, with `more` variables ("" leaves one out).

        It has the variables that the user gave to make, such as DEVICES, without those of the report alone; a training
        starts from no checkpoint.
        """
        stack = self.stack if self.stack != makefile()[2]["STACK"] else ""
        about = {"MODEL": self.model, "DATASET": self.dataset, "STACK": stack}
        checkpoint = "" if target == "train" else self.checkpoint
        reports = {"RUN": "", "REPORT_LANG": "", "SCORE": "", "CHECKPOINT": checkpoint}
        return again.command(target, **about | reports | more)

    def make_data(self, target: str = "data") -> str:
        """Return the command that makes the data set; one of the user's own is taken in from somewhere."""
        own = target == "data" and self.dataset not in datasets.load()
        given = {"FROM": "<folder or zip>"} if own else {}
        return self.make(target, MODEL="", CHECKPOINT="", IMAGES="", **given)
