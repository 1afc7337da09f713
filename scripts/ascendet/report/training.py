"""The facts of a training, from its progress.jsonl and its log."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from ascendet.report.reading import Json, Reader, number
from ascendet.run import folders

_RECIPE = re.compile(
    r"recipe: (\d+) images per step = (\d+) devices? x (\d+) images? x (\d+) accumulated "
    r"\(recipe: (\d+)\), learning rate ([\d.e+-]+)"
)
_RESUMED = re.compile(r"resumed after step (\d+)$")
_SETTING = re.compile(r"^runtime: ([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)
_HEAD = 20_000  # characters of the log in which the settings stand


@dataclass(kw_only=True)
class Training:
    """What progress.jsonl says of a training.

    Attributes
    ----------
    step, of, epoch
        The last step that was logged, how many there are to be, and the epoch.
    first_loss, last_loss
        The loss of the first and of the last logged steps, means over the logging interval.
    seconds
        The median of seconds per step; None if no step was logged.
    memory
        The largest device memory that was logged, MiB.
    eta
        Seconds that were left at the last logged step.
    aps
        AP by kind at each validation: (step, {"bbox": …, "segm": …}).
    batch
        Images per step, devices, images per device, accumulation, the recipe's images, learning rate; {} if not logged.
    notes, warnings
        What the program noted, and what it warned of, each once.
    settings
        The run-time settings that scripts/run.sh printed.
    logged
        How many rows of training there are.
    gap
        The most steps between two rows: the last ones of a training need not be logged.
    attempts
        How often the training was started or resumed.
    """

    step: int = 0
    of: int = 0
    epoch: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    seconds: float | None = None
    memory: float | None = None
    eta: float | None = None
    aps: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    batch: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    logged: int = 0
    gap: int = 0
    attempts: int = 1

    @property
    def complete(self) -> bool:
        """Whether the rows reach the training's end, as far as they can tell."""
        reached = max(self.step, self.aps[-1][0] if self.aps else 0)
        return 0 < self.of <= reached + self.gap


def gather(run: Path, make: str, reader: Reader, *, finished: bool) -> Training:
    """Return the facts of the training in a run folder; `make` is the command that trains anew."""
    file = run / folders.PROGRESS
    found = Training()
    spent: list[float] = []
    for row in reader.lines("training", file, make, complete=finished):
        with reader.using("training", file, make):
            _add(found, row, spent)
    found.seconds = statistics.median(spent) if spent else None
    try:
        with (run / folders.LOG).open(encoding="utf-8", errors="replace") as log:
            found.settings = dict(_SETTING.findall(log.read(_HEAD)))
    except FileNotFoundError:
        pass
    except OSError as error:
        reader.note("training", run / folders.LOG, error, make)
    return found


def _add(found: Training, row: Json, spent: list[float]) -> None:
    phase, text = row["phase"], str(row.get("text") or "")
    if phase == "train":
        step = int(row["step"])
        found.attempts += step <= found.step
        found.gap = max(found.gap, step - found.step)
        found.step, found.of = step, int(row["of"])
        found.epoch = int(row.get("epoch") or 0)
        found.last_loss = number(row.get("loss"))
        found.first_loss = found.first_loss if found.first_loss is not None else found.last_loss
        found.eta = number(row.get("eta"))
        found.logged += 1
        if (seconds := number(row.get("seconds"))) is not None:
            spent.append(seconds)
        if memory := number(row.get("memory")):
            found.memory = max(found.memory or 0, memory)
    elif phase == "validate" and row.get("AP"):
        aps = {str(kind): float(value) for kind, value in row["AP"].items()}
        found.aps = [
            *((step, known) for step, known in found.aps if step < int(row["step"])),
            (int(row["step"]), aps),
        ]
    elif phase == "warning" and text and text not in found.warnings:
        found.warnings.append(text)
    elif phase == "note" and text:
        if recipe := _RECIPE.match(text):
            names = ("images", "devices", "per_device", "accumulated", "recipe", "lr")
            found.batch = dict(zip(names, map(float, recipe.groups()), strict=True))
        elif resumed := _RESUMED.match(text):
            found.attempts += 1
            found.step = min(found.step, int(resumed[1]))
        elif text not in found.notes:
            found.notes.append(text)
