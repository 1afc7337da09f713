"""export_meta.json: the stages of an exported model, and everything that inference needs beside the OM files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

META = "export_meta.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a device stage: its name in the ONNX graph, its data type (numpy's name), its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One ONNX file, that is one OM: static shapes, exactly one opset.

    Attributes
    ----------
    name
        Such as `backbone`, `rpn`, `roi`, `mask`; the files are `<name>.onnx` and `<name>.om`.
    file
        The ONNX file's name beside export_meta.json.
    sha256
        The digest of the ONNX file and of its external data.
    opset
        The version of the one operator set that the graph imports.
    inputs, outputs
        In the graph's order. An input that has the name of an earlier stage's output is that buffer, on the device.
    keep_fp32
        Nodes (names in the graph) that must be computed in float32 in every precision mode, for `--keep_dtype`.
    """

    name: str
    file: str
    sha256: str
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    keep_fp32: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Meta:
    """One exported model at one input size and batch: a folder with its ONNX files and export_meta.json.

    Attributes
    ----------
    family
        The Python package whose `om` module has the host stages.
    model, checkpoint, checkpoint_sha256
        What was exported; the digest is the checkpoint file's.
    height, width, batch
        The input's size in pixels and its number of pictures.
    classes
        The names of the classes, in the order of the labels; `category_ids` are the data set's numbers of them.
    stages
        In the order in which they run.
    host
        What the family's host stages need: normalisation, anchors, thresholds; JSON values.
    export_id
        Digest over all stages' digests: an OM records it, and inference refuses a mixture of builds.
    """

    family: str
    model: str
    checkpoint: str
    checkpoint_sha256: str
    height: int
    width: int
    batch: int
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    stages: tuple[Stage, ...]
    host: dict[str, Any] = field(default_factory=dict)
    export_id: str
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write export_meta.json into a folder."""
        (folder / META).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Meta:
        """Return the content of a folder's export_meta.json."""
        raw = json.loads((folder / META).read_text(encoding="utf-8"))
        raw["stages"] = tuple(
            Stage(
                **{
                    **stage,
                    "inputs": _ports(stage["inputs"]),
                    "outputs": _ports(stage["outputs"]),
                    "keep_fp32": tuple(stage["keep_fp32"]),
                }
            )
            for stage in raw["stages"]
        )
        raw["classes"], raw["category_ids"] = tuple(raw["classes"]), tuple(raw["category_ids"])
        return cls(**raw)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.expanduser().open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _ports(raw: list[dict[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(name=port["name"], dtype=port["dtype"], shape=tuple(port["shape"])) for port in raw)
