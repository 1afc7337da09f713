"""Measure a choice of float32 operators: convert the stages, run all pictures, score. For `staged_om.precision`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ascendet_common import results

from staged_om.ap import Truth
from staged_om.atc import RECORD, AtcFailed, Converted, convert
from staged_om.device import Device
from staged_om.host import Batch, Detections, Step
from staged_om.inputs import Inputs
from staged_om.memory import Memory, digest_of
from staged_om.meta import Meta, file_digest
from staged_om.schedule import run_batch
from staged_om.session import Session

Choice = Mapping[str, frozenset[str]]


@dataclass(kw_only=True)
class Evaluator:
    """Converts and scores choices, and remembers both.

    Attributes
    ----------
    device
        Where OMs run.
    converted, steps
        What `make om` made, which tells the SoC and the versions, and the family's pipeline.
    inputs, truth
        The pictures, and what AP is measured against: their annotations, or `detections_as_truth`.
    reference
        The AP that a loss is measured from.
    memory
        The measurements so far.
    work
        Gets the OMs of each stage by digest, so that a choice converts only the stages that it changes.
    """

    device: Device
    converted: Converted
    steps: tuple[Step, ...]
    inputs: Inputs
    truth: Truth
    reference: Mapping[str, float]
    memory: Memory
    work: Path
    seconds: list[float] = field(default_factory=list)

    @property
    def meta(self) -> Meta:
        """The exported model."""
        return self.converted.meta

    def measure(self, precision: str, choice: Choice) -> dict[str, Any]:
        """Return `AP` and `loss` of a precision mode in which these nodes keep their data types.

        The loss is that of boxes or of masks, whichever is larger; 0 if neither loses. A choice that atc refuses has an
        infinite loss, and its text as `refused`.
        """
        what = {
            "export_id": self.meta.export_id,
            "soc": self.converted.soc,
            "atc": self.converted.record["atc_version"],
            "pictures": self.inputs.digest,
            "precision": precision,
            "keep": {stage: sorted(nodes) for stage, nodes in self._with_always(choice).items()},
        }
        fresh = digest_of(what) not in self.memory.known
        row = self.memory.recall(what, lambda: self._measure(precision, choice))
        if fresh:
            self.seconds.append(row["seconds"])
        loss = (
            math.inf
            if row["AP"] is None
            else max(
                [
                    0.0,
                    *(
                        self.reference[kind] - value
                        for kind, value in row["AP"].items()
                        if kind in self.reference
                    ),
                ]
            )
        )
        return {**row, "loss": loss}

    def _with_always(self, choice: Choice) -> dict[str, frozenset[str]]:
        """Add the nodes that the export keeps in every mode."""
        return {
            stage.name: frozenset(stage.keep_fp32) | choice.get(stage.name, frozenset())
            for stage in self.meta.stages
        }

    def _measure(self, precision: str, choice: Choice) -> dict[str, Any]:
        try:
            folder = self._convert(precision, self._with_always(choice))
        except AtcFailed as error:
            if not error.refused:  # not a property of the choice, so nothing to remember
                raise
            return {"AP": None, "refused": error.found}
        found: list[Detections] = []
        with Session(self.device, self.meta, self.steps, folder) as session:
            for pictures in self.inputs.batches(self.meta.batch):
                found += run_batch(session, session.lanes[0], Batch(pictures=pictures)).batch.detections
        return {"AP": self.truth.score(found, self.meta), "detections": sum(len(one.scores) for one in found)}

    def _convert(self, precision: str, keep: Mapping[str, frozenset[str]]) -> Path:
        """Return a folder with an om.json that points to the OMs of this choice."""
        stages = {}
        for stage in self.meta.stages:
            nodes = sorted(keep[stage.name])
            key = digest_of(
                {
                    "onnx": stage.sha256,
                    "soc": self.converted.soc,
                    "atc": self.converted.record["atc_version"],
                    "mode": precision,
                    "keep": nodes,
                }
            )[:16]
            folder = self.work / "stages" / f"{stage.name}-{key}"
            done = folder / "done.json"
            if not done.is_file():
                om = convert(
                    stage,
                    self.converted.folder.parent / stage.file,
                    folder / f"{stage.name}.om",
                    soc=self.converted.soc,
                    precision=precision,
                    keep=nodes,
                    aipp=self.converted.aipp(stage),
                )
                results.write(
                    done, {"om": f"../../stages/{folder.name}/{om.name}", "sha256": file_digest(om)}
                )
            stages[stage.name] = json.loads(done.read_text(encoding="utf-8"))
        made = self.work / "choices" / digest_of({"stages": stages})[:16]
        made.mkdir(parents=True, exist_ok=True)
        results.write(made / RECORD, {**self.converted.record, "precision": precision, "stages": stages})
        return made


def detections_as_truth(found: list[Detections], inputs: Inputs, meta: Meta, score_thr: float) -> Truth:
    """Return detections from a score on as annotations, for pictures that have none.

    The AP of the detections themselves is 1 then, and what another path loses of it is its difference to them.
    """
    images = [
        {"id": number, "height": picture.shape[0], "width": picture.shape[1], "file_name": name}
        for number, (picture, name) in enumerate(zip(inputs.pictures, inputs.names, strict=True), 1)
    ]
    objects: list[dict[str, Any]] = []
    for number, one in enumerate(found, 1):
        for index in np.flatnonzero(one.scores >= score_thr):
            x0, y0, x1, y1 = (float(value) for value in one.boxes[index])
            row = {
                "id": len(objects) + 1,
                "image_id": number,
                "category_id": meta.category_ids[int(one.labels[index])],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            if one.masks:
                mask = one.masks[index]
                row["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
            objects.append(row)
    categories = [
        {"id": number, "name": name} for number, name in zip(meta.category_ids, meta.classes, strict=True)
    ]
    content = {"images": images, "annotations": objects, "categories": categories}
    return Truth(annotations=content, image_ids=[one["id"] for one in images])
