"""The facts of staged OM: exports of a checkpoint, their conversions, comparisons, precision sweeps, and latency."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascendet.core import manifest
from ascendet.om import exported, precision, proof
from ascendet.om.compare import COMPARISON
from ascendet.report.commands import Subject, of_manifest
from ascendet.report.reading import Json, Reader, dig, number

_PAIRS = ("count", "only_om", "only_pytorch", "box", "score", "mask")
_CHECK = "export_check.json"  # written by the family's export program


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """OMs of an export for a SoC in a precision mode.

    `of_export` is False where the export has been made anew since.
    """

    name: str
    soc: str
    source: str
    precision: str
    atc: str
    simulated: bool
    of_export: bool
    stages: list[Json]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `make om-compare` stored for a conversion: the port report's counts, pairs, AP."""

    name: str
    simulated: bool | None
    of_export: bool
    counts: Json
    score: float
    pairs: Json
    ap: Json | None
    pictures: int
    rungs: list[Json]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `make om-precision` stored: the modes with their AP, and what its search found."""

    name: str
    simulated: bool | None
    pictures: int | None
    reference: Json
    modes: list[Json]
    mode: str
    bound: float
    search: Json | None


@dataclass(kw_only=True)
class Staged:
    """An exported model with all that was made of it; `damaged` says that an ONNX or OM file is not as it was made."""

    folder: Path
    height: int
    width: int
    batch: int
    of_checkpoint: bool
    stages: list[Json]
    checks: list[Json]
    conversions: list[Conversion] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    latency: list[Json] = field(default_factory=list)
    damaged: bool = False
    commands: list[str] = field(default_factory=list)

    @property
    def simulated(self) -> bool | None:
        """Whether any of its OMs is a simulated one; None where there is none."""
        return any(one.simulated for one in self.conversions) if self.conversions else None


def gather(subject: Subject, model: str, digest: str | None, reader: Reader) -> list[Staged]:
    """Return the exports of a model on a data set, those of the checkpoint with this SHA-256 first."""
    found = []
    make = subject.make("export")
    for file in reader.files(
        "om", exported.home(), f"{model}-{subject.dataset}-*x*-b*/{exported.META}", make
    ):
        content = reader.table("om", file, make)
        if content is None:
            continue
        with reader.using("om", file, make):
            one = _export(file.parent, content, digest, make, reader)
            _read_conversions(one, content, subject, reader)
            _read_proofs(one, subject, reader)
            _read_latency(one, content, subject, model, reader)
            found.append(one)
    return sorted(found, key=lambda one: not one.of_checkpoint)


def _export(folder: Path, meta: Json, digest: str | None, make: str, reader: Reader) -> Staged:
    stages, damaged = [], False
    for stage in meta["stages"]:
        file = folder / str(stage["file"])
        size = file.stat().st_size if file.is_file() else None
        damaged |= reader.unlike("om", file, stage.get("sha256"), make) is not None
        stages.append(
            {
                "name": str(stage["name"]),
                "opset": stage["opset"],
                "bytes": size,
                "kept": len(stage["keep_fp32"]),
            }
        )
    checks = []
    file = folder / _CHECK
    check = reader.table("om", file, make)
    if check is not None:
        with reader.using("om", file, make):
            checks = [
                {
                    "stage": str(name),
                    "compared": bool(entry["compared"]),
                    "tolerance": number(entry.get("tolerance")),
                    "difference": max(
                        (float(row["difference"]) for row in entry["outputs"].values()), default=0.0
                    ),
                }
                for name, entry in check.items()
            ]
    command = of_manifest(reader.table("om", folder / manifest.MANIFEST, make))
    return Staged(
        folder=folder,
        height=int(meta["height"]),
        width=int(meta["width"]),
        batch=int(meta["batch"]),
        of_checkpoint=digest is not None and meta["checkpoint_sha256"] == digest,
        stages=stages,
        checks=checks,
        damaged=damaged,
        commands=[command] if command else [],
    )


def _read_conversions(one: Staged, meta: Json, subject: Subject, reader: Reader) -> None:
    make = subject.make("om")
    for file in reader.files("om", one.folder, f"[!.]*/{exported.RECORD}", make):
        record = reader.table("om", file, make)
        if record is None:
            continue
        with reader.using("om", file, make):
            stages = []
            for name, entry in record["stages"].items():
                om = file.parent / str(entry["om"])
                size = om.stat().st_size if om.is_file() else None
                one.damaged |= reader.unlike("om", om, entry.get("sha256"), make) is not None
                stages.append({"name": str(name), "bytes": size, "seconds": number(entry.get("seconds"))})
            one.conversions.append(
                Conversion(
                    name=file.parent.name,
                    soc=str(record["soc"]),
                    source=str(record["soc_source"]),
                    precision=str(record["precision"]),
                    atc=str(record["atc_version"]),
                    simulated=bool(record["simulated"]),
                    of_export=record["export_id"] == meta["export_id"],
                    stages=stages,
                )
            )
            one.commands.append(subject.make("om", PRECISION=_mode(str(record["precision"]))))


def _mode(precision: str) -> str:
    """Return PRECISION as the user must type it: nothing for the default."""
    return "" if precision == "origin" else precision


def _read_proofs(one: Staged, subject: Subject, reader: Reader) -> None:
    for file in reader.files("om", one.folder, f"compare-*/{COMPARISON}", subject.make("om-compare")):
        name = file.parent.name.removeprefix("compare-")
        made = next((known for known in one.conversions if known.name == name), None)
        make = subject.make("om-compare", PRECISION=_mode(made.precision) if made else "")
        content = reader.table("om", file, make)
        if content is None:
            continue
        with reader.using("om", file, make):
            sides = content["compare_with_pytorch"]
            one.comparisons.append(
                Comparison(
                    name=name,
                    simulated=made.simulated if made else None,
                    of_export=made is not None and made.of_export,
                    counts={
                        side: {
                            key: int(sides[side][key])
                            for key in ("raw_count", "after_dedup", "after_score_thr")
                        }
                        for side in ("om", "pytorch", "delta")
                    },
                    score=float(sides["score_thr"]),
                    pairs={key: float(content["pairs"]["from_score_thr"][key]) for key in _PAIRS},
                    ap=_ap(content.get("AP")),
                    pictures=len(content["pictures"]),
                    rungs=[
                        {
                            "rung": str(rung["rung"]),
                            "against": str(rung["against"]),
                            "holds": bool(rung["holds"]),
                            "broken": {
                                str(name): list(map(float, pair)) for name, pair in rung["broken"].items()
                            },
                        }
                        for rung in content.get("ladder", ())
                    ],
                )
            )
            one.commands.append(make)
    make = subject.make("om-precision")
    for file in reader.files("om", one.folder, f"precision-*/{precision.RESULT}", make):
        content = reader.table("om", file, make)
        if content is None:
            continue
        with reader.using("om", file, make):
            one.sweeps.append(
                Sweep(
                    name=file.parent.name.removeprefix("precision-"),
                    simulated=one.simulated,
                    pictures=content.get("pictures"),
                    reference={str(kind): float(value) for kind, value in content["reference"].items()},
                    modes=[
                        {"mode": str(row["mode"]), "AP": _aps(row["AP"]), "loss": number(row.get("loss"))}
                        for row in content["modes"]
                    ],
                    mode=str(content["mode"]),
                    bound=float(content["bound"]),
                    search=_search(content.get("search")),
                )
            )
            bound = "" if content["bound"] == precision.BOUND else f"{content['bound']:g}"
            mode = "" if content["mode"] == "fp16" else str(content["mode"])
            one.commands.append(
                subject.make(
                    "om-precision", PRECISION=mode, BOUND=bound, IMAGES=_count(content.get("pictures"))
                )
            )


def _count(pictures: int | None) -> str:
    """Return IMAGES of a proof, as the user must type it: nothing for the default."""
    return "" if pictures in (None, proof.PICTURES) else str(pictures)


def _ap(content: Any) -> Json | None:
    if not isinstance(content, dict) or not content.get("difference"):
        return None
    return {
        side: {kind: float(content[side][kind]) for kind in content["difference"]}
        for side in ("om", "pytorch", "difference")
    }


def _aps(content: Json | None) -> Json | None:
    """Return AP by kind, or None for a mode that atc refused."""
    return {str(kind): float(value) for kind, value in content.items()} if content is not None else None


def _search(content: Any) -> Json | None:
    if not isinstance(content, dict):
        return None
    cost = content["cost"]
    return {
        "loss": float(content["loss"]),
        "nodes": int(cost["nodes"]),
        "of": int(cost["of"]),
        "multiply_adds": float(cost["multiply_adds"]),
        "bytes": float(cost["bytes"]),
        "groups": [f"{group['stage']} {group['name']}" for group in content["groups"]],
    }


def _read_latency(one: Staged, meta: Json, subject: Subject, model: str, reader: Reader) -> None:
    """Read the manifests of `make infer-om` with this export; it is one folder for all sizes, shown with the first."""
    make = subject.make("infer-om", IMAGES="<pictures>")
    for file in reader.files(
        "om", exported.home(), f"{model}-{subject.dataset}-infer-*/{manifest.MANIFEST}", make
    ):
        content = reader.table("om", file, make)
        if content is None or meta["export_id"] not in (dig(content, "inputs", "export_ids") or ()):
            continue
        with reader.using("om", file, make):
            label = f"{one.width} x {one.height}"
            steady = {
                name: calls
                for name, calls in content["latency"]["steady"].items()
                if name.startswith(f"{one.height}x{one.width}, batch {one.batch}")
            }
            one.latency.append(
                {
                    "size": label,
                    "first_call": {str(k): float(v) for k, v in content["latency"]["first_call"].items()},
                    "steady": steady,
                    "simulated": content.get("simulated"),
                    "precision": str(content["precision"]),
                }
            )
            if command := of_manifest(content):
                one.commands.append(command)
