"""`make demo`: from nothing to trained, evaluated and exported models in acts, each step a make target of its own.

What a step prints is in build/demo/<act>-<step>.log. Steps that are done are quick, so that a demo that was stopped
continues where it was; a training that was stopped is resumed.
"""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ascendet import paths
from ascendet.core import manifest
from ascendet.core.stack import Stack
from ascendet.data import datasets
from ascendet.dev.jobs import Pool
from ascendet.dev.steps import Runner, Step, clock
from ascendet.errors import AscendetError

_STACKS = ("vitdet", "blendmask")
_DATASET = "shapes"
_PICTURES = 4
_GRACE = 60.0  # seconds for the ranks of a training to end on processors that others use, too


@dataclass(frozen=True, kw_only=True)
class Act:
    """Steps with a title."""

    title: str
    steps: Sequence[Step]


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("--stack", default="", help=f"only this one's acts; empty: {', '.join(_STACKS)}")


def execute(args: argparse.Namespace) -> None:
    """Run the acts and show their results."""
    stacks = [Stack.load(name) for name in ([args.stack] if args.stack else _STACKS)]
    for stack in stacks:
        if not stack.models:
            raise AscendetError(
                "usage",
                "STACK must be a stack with models",
                expected=", ".join(_STACKS),
                found=f"STACK={stack.name}",
                hint="make demo",
            )
    acts = plan(stacks)
    begin = time.monotonic()
    folder = paths.BUILD / "demo"
    with Pool(1, grace=_GRACE) as pool:
        runner = Runner(folder=folder, again=_again(args.stack), pool=pool)
        runner.align([step for act in acts for step in act.steps])
        for number, act in enumerate(acts, 1):
            print(f"Act {number} of {len(acts)}: {act.title}", flush=True)
            for step in act.steps:
                named = replace(step, name=f"{number}-{step.name}")
                if step.target == "train":
                    named = resumed(named, folder / f"{named.name}.log")
                    if number == 1:
                        _look_ahead(runner, stacks[1:])
                runner.run(named)
    print(f"{clock(time.monotonic() - begin)} in all; what each step printed: {paths.shorten(folder)}")


def _look_ahead(runner: Runner, stacks: Sequence[Stack]) -> None:
    """Let the next acts' environments be made in the background: fetching them takes minutes, and few processors."""
    for stack in stacks:
        runner.prepare(Step(name=f"ahead-{stack.name}", text="", target="env", variables=_variables(stack)))


def _again(stack: str) -> str:
    return f"make demo STACK={stack}" if stack else "make demo"


# -- the acts --


def plan(stacks: Sequence[Stack]) -> list[Act]:
    """Return the acts: one for each stack, which trains its first model, and one for the OMs of these models."""
    acts = [Act(title=stack.summary, steps=list(_training(stack, stack is stacks[0]))) for stack in stacks]
    om = [step for stack in stacks for step in _om(stack)]
    return [*acts, Act(title="OM: export, conversion, and what differs from PyTorch", steps=om)]


def _training(stack: Stack, first: bool) -> Iterator[Step]:
    """Yield the steps from nothing to a report; `first` adds pictures half-way through the training."""
    model = stack.models[0]
    common = _variables(stack)
    pair = f"torch {stack.torch}, torch_npu {stack.torch_npu}"
    yield Step(name="doctor", text="check this machine", target="doctor", variables=common)
    yield Step(name="env", text=f"environment: {pair}", target="env", variables=common)
    yield Step(name="install", text=f"wheels: {', '.join(stack.wheels)}", target="install", variables=common)
    yield Step(name="data", text=f"data set {_DATASET}", target="data", variables=common)
    draw = Step(
        name="infer",
        text=f"detect and draw objects in {_PICTURES} validation pictures",
        target="infer",
        variables=common | {"IMAGES": shlex.quote(str(_pictures()))},
        result=drawn,
    )
    train = Step(name="train", text=f"train {model}", target="train", variables=common)
    yield replace(train, beside=functools.partial(_half_way, draw)) if first else train
    yield draw
    yield Step(
        name="eval", text="COCO's numbers", target="eval", variables=common | {"IMAGES": ""}, result=verdicts
    )
    yield _report(stack)


def _report(stack: Stack) -> Step:
    variables = _variables(stack)
    del variables["NPU_FALLBACK"]  # the report quotes commands with the variables that it was given
    return Step(
        name=f"report-{stack.name}",
        text=f"report of {stack.models[0]}",
        target="report",
        variables=variables,
        result=report,
    )


def _om(stack: Stack) -> Iterator[Step]:
    model = stack.models[0]
    common = _variables(stack)
    for target, text in (
        ("export", f"{model} as ONNX, stage by stage"),
        ("om", f"{model} as OMs"),
        ("om-compare", f"{model}: PyTorch, ONNX and OMs on the same pictures"),
    ):
        yield Step(
            name=f"{target}-{stack.name}",
            text=text,
            target=target,
            variables=common,
            result=differences if target == "om-compare" else lambda log: (),
        )
    yield _report(stack)


def _variables(stack: Stack) -> dict[str, str]:
    """Return what every target is told: an operator without a kernel on the NPU must not pass unseen."""
    return {
        "STACK": stack.name,
        "MODEL": stack.models[0],
        "DATASET": _DATASET,
        "NPU_FALLBACK": "error",
    }


def _pictures() -> Path:
    """Return the pattern of the first pictures of the validation split."""
    found = datasets.find(_DATASET)
    (split,) = found.named(("val",))
    return found.folder / split / f"00000[1-{_PICTURES}].*"


def _half_way(draw: Step, log: Path) -> Step | None:
    """Return the step that draws with the first checkpoint after half of the training whose log this is."""
    text = log.read_text(encoding="utf-8", errors="replace")
    # The last row: where the training validates already, the pictures of its end are near.
    rows = re.findall(r"^[\d:]{8} (\w+) (\d+)/(\d+)\b", text, re.MULTILINE)
    phase, step, of = rows[-1] if rows else ("", "0", "1")
    run = _run(draw, log)
    if phase != "train" or 2 * int(step) < int(of) or not run or not (run / "last_checkpoint").is_file():
        return None
    checkpoint = run / Path((run / "last_checkpoint").read_text(encoding="utf-8").strip()).name
    return replace(
        draw,
        name="half-way",
        text="half-way pictures, while it trains",
        variables={**draw.variables, "CHECKPOINT": str(checkpoint)},
    )


def _run(step: Step, log: Path) -> Path | None:
    """Return the run folder that a training's log names last, or None."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    # The command names it where that attempt was one to resume it, even if it did not come to that.
    named = re.findall(r"^(?:run folder: (?:.*/)?|\$ make train .*\bRUN=)(\S+)$", text, re.MULTILINE)
    return (
        paths.BUILD / "runs" / "{MODEL}_{DATASET}".format_map(step.variables) / named[-1] if named else None
    )


def resumed(step: Step, log: Path) -> Step:
    """Return the step of a training, continuing the run of its last log if that was stopped half-way."""
    run = _run(step, log)
    content = manifest.read(run) if run else None
    state = content.get("state") if content else None
    if not run or state in (None, "finished") or not (run / "last_checkpoint").is_file():
        return step
    return replace(
        step,
        text=f"{step.text}, continuing {run.name}",
        variables={**step.variables, "RESUME": "1", "RUN": run.name},
    )


# -- what is shown of a step --


def drawn(log: str) -> list[str]:
    """Return the pictures that `make infer` drew."""
    found = re.search(r"^stored in (.+): \d+ pictures", log, re.MULTILINE)
    folder = paths.ROOT / found[1] / "pictures" if found else None
    return [paths.shorten(file) for file in sorted(folder.iterdir())] if folder else []


def verdicts(log: str) -> list[str]:
    """Return the lines of `make eval` that say whether AP is inside the acceptance band."""
    return re.findall(r"^(?:boxes: |masks: |no acceptance band).*$", log, re.MULTILINE)


def differences(log: str) -> list[str]:
    """Return the lines of `make om-compare` that say what of OMs differs from PyTorch."""
    return re.findall(r"^(?:pairs from |AP of ).*$", log, re.MULTILINE)


def report(log: str) -> list[str]:
    """Return what `make report` prints at its end: where the report is, and its verdict."""
    found = re.search(r"^.*report\.html\n(?:.*\n?)*", log, re.MULTILINE)
    return found[0].splitlines() if found else []
