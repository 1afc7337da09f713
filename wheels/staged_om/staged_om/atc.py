"""Converting a stage again with other settings, from the command that `make om` recorded in om.json."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascendet_common.errors import RunError

from staged_om.meta import Meta, Stage

RECORD = "om.json"
# Modes of --precision_mode_v2; the others are of --precision_mode, and atc refuses both at once.
_V2 = ("origin", "fp16", "mixed_float16", "mixed_bfloat16", "cube_fp16in_fp32out")
# Modes that keep the data types of the graph.
KEEP_ALL = ("origin", "must_keep_origin_dtype", "force_fp32")
# All passes off, for --fusion_switch_file.
FUSION_OFF = {"Switch": {"GraphFusion": {"ALL": "off"}, "UBFusion": {"ALL": "off"}}}


class AtcFailed(RunError):
    """`atc` ended without an OM; `found` has its text.

    `refused` says that it gave a code, so it would refuse the model again; else it was killed, or the disk was full.
    """

    default_name = "atc-failed"

    def __init__(self, what: str, *, found: str, refused: bool) -> None:
        super().__init__(what, found=found)
        self.refused = refused


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A folder of OMs with its om.json, and the exported model that it belongs to."""

    folder: Path
    meta: Meta
    record: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Converted:
        """Return a folder that `make om` made."""
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return cls(folder=folder, meta=Meta.read(folder.parent), record=record)

    @property
    def files(self) -> dict[str, Path]:
        """The OM of each stage."""
        return {name: self.folder / entry["om"] for name, entry in self.record["stages"].items()}

    @property
    def soc(self) -> str:
        """The SoC that it was converted for."""
        return str(self.record["soc"])

    @property
    def precision(self) -> str:
        """The precision mode."""
        return str(self.record["precision"])

    def keep(self, stage: Stage) -> list[str]:
        """Return the nodes of a stage that kept their data type: the export's, and those of KEEP_DTYPE."""
        given = [
            word.partition("=")[2]
            for word in self.record["stages"][stage.name].get("command", ())
            if word.startswith("--keep_dtype=")
        ]
        return (self.folder / given[0]).read_text(encoding="utf-8").split() if given else []

    def aipp(self, stage: Stage) -> list[Path]:
        """Return the file for `--insert_op_conf` of a stage that takes pictures as bytes; else nothing."""
        facts = self.meta.host.get("aipp", {})
        return [
            self.folder.parent / facts[port.name]["config"] for port in stage.inputs if port.name in facts
        ]


def convert(
    stage: Stage,
    onnx: Path,
    output: Path,
    *,
    soc: str,
    precision: str,
    keep: Sequence[str] = (),
    aipp: Sequence[Path] = (),
    out_nodes: Sequence[str] = (),
    fusion: bool = True,
) -> Path:
    """Convert an ONNX file and return the OM; what atc drops beside it stays in that folder.

    Parameters
    ----------
    stage
        The stage that the ONNX file is, or a part of it: the inputs' shapes.
    onnx, output
        The file to convert, and the OM, whose name ends in .om.
    soc, precision
        As in om.json.
    keep
        Nodes that keep their data type (`--keep_dtype`).
    aipp
        `Converted.aipp` of the stage.
    out_nodes
        Outputs instead of the graph's: `node:index`.
    fusion
        False switches all fusion passes off that can be.

    Raises
    ------
    AtcFailed
        `atc` ended with an error, or without an OM.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    option = "precision_mode_v2" if precision in _V2 else "precision_mode"
    shapes = ";".join(f"{port.name}:{','.join(map(str, port.shape))}" for port in stage.inputs)
    command = [
        "atc",
        "--framework=5",
        f"--model={onnx.resolve()}",
        f"--output={output.resolve().with_suffix('')}",
        f"--soc_version={soc}",
        f"--input_shape={shapes}",
        f"--{option}={precision}",
    ]
    if keep:
        file = output.with_suffix(".keep_dtype.cfg")
        file.write_text("".join(f"{name}\n" for name in keep), encoding="utf-8")
        command.append(f"--keep_dtype={file.resolve()}")
    command += [f"--insert_op_conf={file.resolve()}" for file in aipp]
    if out_nodes:
        command.append(f"--out_nodes={';'.join(out_nodes)}")
    if not fusion:
        file = output.with_suffix(".fusion.cfg")
        file.write_text(json.dumps(FUSION_OFF), encoding="utf-8")
        command.append(f"--fusion_switch_file={file.resolve()}")
    output.unlink(missing_ok=True)
    done = subprocess.run(
        command, cwd=output.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode or not output.is_file():
        text = done.stdout.strip()
        found = re.search(r"\b(E[A-Z]?\d{4,5}|SIM\d{3})\b", text)
        raise AtcFailed(
            f"atc cannot convert the stage {stage.name}",
            found="\n".join(text[found.start() if found else 0 :].splitlines()[:8])
            or f"exit code {done.returncode}",
            refused=done.returncode > 0 and found is not None and "No space left on device" not in text,
        )
    return output
