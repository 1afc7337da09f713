"""Judge the facts line by line, as port reports end: what is shown, what is not met, what nobody has measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ascendet.report import bands
from ascendet.report.facts import Evaluation, Facts
from ascendet.report.reading import dig, number, unread
from ascendet.report.staged import Staged

# `met` and `failed` are judged against something; `measured` is a figure that nothing is there to judge by.
_OFFICIAL = "coco"  # the data set of all official figures; coco-val and coco-val200 are parts of it
# How a training ended that did not finish: before a step was logged, and after.
_ENDED = {
    "failed": ("training.failed-early", "training.failed"),
    "interrupted": ("training.interrupted-early", "training.interrupted"),
    "stopped": ("training.stopped-early", "training.stopped"),
}
State = Literal["met", "failed", "measured", "missing"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the verdict.

    Attributes
    ----------
    subject
        What it is about: `verdict.<subject>` in words.toml.
    state
        Whether that is met.
    reason
        The key in words.toml of the sentence that says why, and `values` for its placeholders.
    section
        The section of the report that shows it.
    command
        What makes it, where it is missing.
    simulated
        Whether it was found on simulated devices.
    """

    subject: str
    state: State
    reason: str
    section: str
    values: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    simulated: bool = False


def judge(facts: Facts) -> list[Line]:
    """Return the lines of the verdict."""
    return [
        *_training(facts),
        *_evaluation(facts),
        *_accuracy(facts),
        *_official(facts),
        _fallbacks(facts),
        _speed(facts),
        *_staged(facts),
        _hardware(facts),
    ]


def outcome(lines: list[Line]) -> Literal["failed", "partial", "met"]:
    """Return the verdict in one word: something is not met, something is not shown, or all is met."""
    states = {line.state for line in lines}
    return "failed" if "failed" in states else "partial" if "missing" in states else "met"


def _training(facts: Facts) -> Iterator[Line]:
    make = facts.subject.make
    if facts.run is None:
        return
    common: dict[str, Any] = {"subject": "training", "section": "training"}
    simulated = bool(facts.trained_simulated)
    known = facts.training
    values: dict[str, Any] = {"step": known.step if known else 0, "of": known.of if known else 0}
    if facts.state == "finished":
        values["seconds"] = number(facts.run.manifest.get("seconds"))
        yield _finished(facts, common | {"values": values, "simulated": simulated})
    elif facts.state == "running":
        reason = "training.running" if values["of"] else "training.starting"
        yield Line(**common, state="missing", reason=reason, values=values, simulated=simulated)
    elif facts.state in _ENDED:
        values["error"] = str(facts.run.manifest.get("error") or facts.state)
        state: State = "failed" if facts.state == "failed" else "missing"
        command = make(
            "train", RUN=facts.name if facts.checkpoint else "", RESUME="1" if facts.checkpoint else ""
        )
        yield Line(
            **common,
            state=state,
            reason=_ENDED[facts.state][bool(values["of"])],
            values=values,
            command=command,
            simulated=simulated,
        )
    else:
        yield Line(**common, state="missing", reason="training.unknown", command=make("train"))


def _finished(facts: Facts, common: dict[str, Any]) -> Line:
    """Return the line of a training whose manifest says that it ended: its steps and its checkpoint must show it."""
    common["command"] = facts.subject.make("train")
    if facts.damaged:
        common["values"] |= {"file": facts.checkpoint}
        return Line(**common, state="failed", reason="training.damaged")
    if facts.checkpoint is None:
        return Line(**common, state="missing", reason="training.no-checkpoint")
    if broken := None if facts.training and facts.training.logged else unread(facts.broken, "training"):
        return Line(**common | {"command": broken.remedy}, state="missing", reason="training.unread")
    if facts.training is None or not facts.training.logged:
        return Line(**common, state="missing", reason="training.unlogged")
    if not facts.training.complete:
        return Line(**common, state="missing", reason="training.cut")
    return Line(**common | {"command": None}, state="met", reason="training.finished")


def _evaluation(facts: Facts) -> Iterator[Line]:
    found = facts.evaluation
    common: dict[str, Any] = {"subject": "evaluation", "section": "accuracy"}
    if found is None or not found.numbers:
        broken = unread(facts.broken, "accuracy")
        reason = "evaluation.none" if found is None and broken is None else "evaluation.broken"
        command = broken.remedy if broken else facts.subject.make("eval")
        yield Line(**common, state="missing", reason=reason, command=command)
        return
    if not found.of_checkpoint:
        reason = "evaluation.old" if facts.run else "evaluation.other"
        yield Line(**common, state="missing", reason=reason, command=facts.subject.make("eval"))
        return
    yield Line(
        **common,
        state="met",
        reason="evaluation.done" if found.images is not None else "evaluation.uncounted",
        values={"images": found.images},
        simulated=bool(found.simulated),
    )


def _accuracy(facts: Facts) -> Iterator[Line]:
    found = facts.evaluation
    if found is None or not found.numbers:
        return
    limits = bands.find(facts.model, facts.dataset, found.annotations)
    whole = is_whole(facts, found)
    for kind, numbers in found.numbers.items():
        common: dict[str, Any] = {
            "subject": f"accuracy.{kind}",
            "section": "accuracy",
            "simulated": bool(found.simulated),
            "values": {"ap": numbers["AP"], "images": found.images},
        }
        if numbers["AP"] < 0:
            yield Line(**common, state="measured", reason="accuracy.empty")
        elif limits is None:
            yield Line(**common, state="measured", reason="accuracy.no-band")
        elif not limits.valid:
            yield Line(**common, state="measured", reason="accuracy.other-annotations")
        elif changed := bands.changed(facts):
            common["values"] |= {"changed": changed}
            yield Line(**common, state="measured", reason="accuracy.other-recipe")
        elif not whole:
            line = {
                **common,
                "state": "missing",
                "reason": "accuracy.part",
                "command": facts.subject.make("eval", IMAGES=""),
            }
            yield Line(**line)
        elif kind in limits.limits:
            low, high = limits.limits[kind]
            common["values"] |= {"low": low, "high": high}
            if numbers["AP"] > high:
                yield Line(**common, state="met", reason="accuracy.above")
            elif numbers["AP"] >= low:
                yield Line(**common, state="met", reason="accuracy.inside")
            else:
                yield Line(**common, state="failed", reason="accuracy.below")


def is_whole(facts: Facts, evaluation: Evaluation) -> bool:
    """Return whether an evaluation is of all images of its split.

    `make eval` judges only those, and the folder of a part has its number in its name.
    """
    judged = evaluation.manifest.get("acceptance")
    if isinstance(judged, list):
        return bool(judged)
    stem = f"-{Path(facts.checkpoint).stem}" if facts.checkpoint else ""
    return evaluation.folder.name in ("eval", f"eval{stem}")


def _official(facts: Facts) -> Iterator[Line]:
    official = facts.evaluation.official if facts.evaluation else None
    if not facts.dataset.startswith(_OFFICIAL):
        return  # nothing else can be held to the authors' figures
    if not official or not isinstance(official.get("figures"), dict):
        return
    for kind, row in official["figures"].items():
        difference, published = number(row.get("difference")), number(row.get("official"))
        values = {"official": published, "of": official.get("of"), "difference": difference}
        common: dict[str, Any] = {"subject": f"official.{kind}", "section": "accuracy", "values": values}
        if difference is None:
            yield Line(
                **common,
                state="missing",
                reason="official.other",
                command=facts.subject.make("eval", DATASET=_OFFICIAL, IMAGES=""),
            )
        else:
            yield Line(
                **common,
                # The second port report expects less than 1 % difference on the full set.
                state="met" if difference > -0.01 else "failed",
                reason="official.difference",
                simulated=bool(facts.evaluation and facts.evaluation.simulated),
            )


def fallbacks(facts: Facts) -> list[str]:
    """Return the operators that the programs reported as computed on the CPU, each once."""
    met = [str(one.get("operator")) for result in facts.results for one in result.fallbacks or ()]
    return list(dict.fromkeys(met))


def watched(facts: Facts) -> bool:
    """Return whether any manifest says which operators ran on the CPU; NPU_FALLBACK=allow is not told of any."""
    training = facts.training
    if training and training.settings.get("NPU_FALLBACK") == "allow":
        return False
    # The manifest of a training lists them when it ends, and without a step it had none to report.
    stepped = facts.state in ("failed", "interrupted") and bool(training and training.logged)
    silent = None if facts.state == "finished" or stepped else facts.run
    return any(one.fallbacks is not None for one in facts.results if one is not silent)


def _fallbacks(facts: Facts) -> Line:
    common: dict[str, Any] = {"subject": "fallbacks", "section": "waits"}
    if not watched(facts):
        return Line(**common, state="missing", reason="fallbacks.unknown", command=facts.subject.make("eval"))
    met = fallbacks(facts)
    simulated = bool(facts.simulated)
    if met:
        values = {"operators": ", ".join(met)}
        return Line(**common, state="failed", reason="fallbacks.some", values=values, simulated=simulated)
    return Line(**common, state="met", reason="fallbacks.none", simulated=simulated)


def _speed(facts: Facts) -> Line:
    common: dict[str, Any] = {"subject": "speed", "section": "inference"}
    speed = facts.speed.manifest.get("speed") if facts.speed else None
    try:
        assert facts.speed
        fixed = speed["fixed"]  # type: ignore[index]  # what is none raises TypeError
        values = {
            "size": f"{fixed['width']} x {fixed['height']}",
            "first": float(fixed["first_call"]["total"]),
            "steady": float(fixed["steady"]["p50"]["total"]),
            "rate": float(fixed["steady"]["images_per_second"]),
        }
    except (AssertionError, KeyError, TypeError, ValueError):
        if broken := unread(facts.broken, "inference"):
            return Line(**common, state="missing", reason="speed.unread", command=broken.remedy)
        return Line(
            **common, state="missing", reason="speed.none", command=facts.subject.make("speed", IMAGES="")
        )
    if dig(facts.speed.manifest, "inputs", "checkpoint") not in (None, facts.digest):
        command = facts.subject.make("speed", IMAGES="")
        return Line(**common, state="missing", reason="speed.old", command=command)
    return Line(
        **common, state="measured", reason="speed.done", values=values, simulated=bool(facts.speed.simulated)
    )


def _staged(facts: Facts) -> Iterator[Line]:
    make = facts.subject.make
    common: dict[str, Any] = {"subject": "om", "section": "om"}
    mine = [one for one in facts.staged if one.of_checkpoint]
    if not mine:
        broken = unread(facts.broken, "om")
        reason, command = ("om.unread", broken.remedy) if broken else ("om.none", make("export"))
        yield Line(**common, state="missing", reason=reason, command=command)
        return
    if any(one.damaged for one in mine):
        yield Line(**common, state="failed", reason="om.damaged", command=make("export"))
        return
    compared = [(one, made) for one in mine for made in one.comparisons]
    if not compared:
        yield _converted(mine, facts)
        return
    for one, made in compared:
        size = f"{one.width} x {one.height}, {made.name}"
        broken = next((rung["rung"] for rung in made.rungs if not rung["holds"]), None)
        values: dict[str, Any] = {
            "size": size,
            "pairs": int(made.pairs["count"]),
            "alone": int(made.pairs["only_om"] + made.pairs["only_pytorch"]),
            "rung": broken,
        }
        difference = (made.ap or {}).get("difference", {})
        values["loss"] = max(0.0, -min(difference.values())) if difference else None
        reason = "om.broken" if broken else "om.same" if difference else "om.pairs"
        if not made.rungs or not made.of_export:
            command = make("om-compare")
            reason = "om.no-rungs" if made.of_export else "om.old"
            yield Line(**common, state="missing", reason=reason, values=values, command=command)
            continue
        yield Line(
            **common,
            state="failed" if broken else "met",
            reason=reason,
            values=values,
            simulated=bool(made.simulated),
        )


def _converted(mine: list[Staged], facts: Facts) -> Line:
    """Return the line of exports that nobody has compared yet."""
    make = facts.subject.make
    common: dict[str, Any] = {"subject": "om", "section": "om", "state": "missing"}
    if not any(one.conversions for one in mine):
        return Line(**common, reason="om.exported", command=make("om"))
    simulated = any(bool(one.simulated) for one in mine)
    return Line(**common, reason="om.converted", command=make("om-compare"), simulated=simulated)


def _hardware(facts: Facts) -> Line:
    common: dict[str, Any] = {"subject": "hardware", "section": "environment"}
    if facts.devices == {False}:
        return Line(**common, state="met", reason="hardware.real")
    target = "train" if facts.run else "eval"
    return Line(
        **common,
        state="missing",
        reason="hardware.mixed" if False in facts.devices else "hardware.simulated",
        command=facts.subject.make(target, NPU="real"),
    )
