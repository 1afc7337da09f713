"""Acceptance bands: between which values AP of a model on a data set was measured to lie, from requirements/bands."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ascendet.report.facts import Facts
from ascendet.report.reading import dig, mapping
from ascendet.run.evaluate import BANDS


@dataclass(frozen=True, kw_only=True)
class Band:
    """An acceptance band of a model on a data set: AP by kind as (low, high), and where it comes from.

    `valid` says that it is for the annotations asked about, `simulated` that it was measured on simulated devices.
    """

    limits: Mapping[str, tuple[float, float]]
    source: str
    valid: bool
    simulated: bool


def find(model: str, dataset: str, digest: str | None, folder: Path = BANDS) -> Band | None:
    """Return the acceptance band of a model on a data set, `valid` if it is for annotations with this SHA-256."""
    file = folder / f"{model}_{dataset}.toml"
    if not file.is_file():
        return None
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    limits = {kind: (float(low), float(high)) for kind, (low, high) in content["AP"].items()}
    return Band(
        limits=limits,
        source=str(content["source"]),
        valid=digest == content["annotations"],
        simulated=content["device"] == "simulated",
    )


def changed(facts: Facts) -> str:
    """Return what a training was given that its recipe, which a band is measured with, has otherwise: "EPOCHS=1"."""
    inputs = mapping(dig(facts.run.manifest if facts.run else None, "inputs"))
    given = {"epochs": "EPOCHS", "lr": "LR", "amp": "AMP", "start": "CHECKPOINT"}
    found = {variable: inputs[name] for name, variable in given.items() if inputs.get(name)}
    values = {"AMP": "1", "CHECKPOINT": "…"}
    return " ".join(f"{variable}={values.get(variable, value)}" for variable, value in found.items())
