"""A hand-made exported model of two device stages and two host steps, and its OM files for the fake pyACL."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_acl import FakeAcl
from staged_om.host import Batch, Detections, DeviceStep, HostStep, Step
from staged_om.meta import Meta, Port, Stage

SIZE = 8
_LIMIT = 300  # seconds; less than the suite's patience, so that the program tells where it hangs, and not only the test


def run_program(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program that can import this folder; standard error is the test's, with stacks if it hangs."""
    head = f"import faulthandler, sys; faulthandler.dump_traceback_later({_LIMIT}, exit=True)\n"
    head += f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    command = [sys.executable, "-c", head + program]
    return subprocess.run(command, env=os.environ | environ, stdout=subprocess.PIPE, text=True, check=False)


def hand_made(batch: int = 1, **changed: Any) -> Meta:
    """Return the metadata of the model: `features` makes two maps of a picture, `head` scores of maps and a box."""
    image = Port(name="image", dtype="float32", shape=(batch, 3, SIZE, SIZE))
    maps = tuple(Port(name=name, dtype="float32", shape=(batch, 4, SIZE, SIZE)) for name in ("p2", "p3"))
    rois = Port(name="rois", dtype="float32", shape=(batch, 5))
    scores = Port(name="scores", dtype="float32", shape=(batch, 1))
    hint = Port(name="hint", dtype="float32", shape=(batch, 2))
    stages = (
        Stage(
            name="features",
            file="features.onnx",
            sha256="0",
            opset=17,
            inputs=(image,),
            outputs=(*maps, hint),
        ),
        Stage(name="head", file="head.onnx", sha256="1", opset=16, inputs=(*maps, rois), outputs=(scores,)),
    )
    values: dict[str, Any] = dict(
        family="handmade",
        model="hand-made",
        checkpoint="none",
        checkpoint_sha256="0",
        height=SIZE,
        width=SIZE,
        batch=batch,
        classes=("thing",),
        category_ids=(1,),
        stages=stages,
        export_id="export-1",
    )
    return Meta(**(values | changed))


def hand_made_steps(meta: Meta) -> tuple[Step, ...]:
    """Return the pipeline: pictures in, the mean of each picture as its one object's score."""

    def preprocess(batch: Batch) -> None:
        image = np.zeros((meta.batch, 3, SIZE, SIZE), np.float32)
        for at, picture in enumerate(batch.pictures):
            image[at] = picture[:SIZE, :SIZE].transpose(2, 0, 1) / 255
        batch.values["image"] = image

    def propose(batch: Batch) -> None:
        batch.values["rois"] = np.tile(batch.values["hint"][:, :1], (1, 5))

    def paste(batch: Batch) -> None:
        for at, picture in enumerate(batch.pictures):
            height, width = picture.shape[:2]
            batch.detections.append(
                Detections(
                    boxes=np.array([[1, 1, width - 1, height - 1]], np.float32),
                    scores=batch.values["scores"][at],  # the lane's memory, which the schedule must copy
                    labels=np.zeros(1, np.int64),
                )
            )

    return (
        HostStep(name="preprocess", run=preprocess, writes=("image",)),
        DeviceStep(stage="features"),
        HostStep(name="propose", run=propose, reads=("hint",), writes=("rois",)),
        DeviceStep(stage="head"),
        HostStep(name="paste", run=paste, reads=("scores",)),
    )


def write_fake_oms(folder: Path, meta: Meta, **changed: Any) -> Path:
    """Write OM files as the fake takes them, and om.json, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = {}
    for stage in meta.stages:
        ports = {
            side: [
                {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}
                for port in getattr(stage, side)
            ]
            for side in ("inputs", "outputs")
        }
        (folder / f"{stage.name}.om").write_text(json.dumps(ports))
        stages[stage.name] = {"om": f"{stage.name}.om", "sha256": digest(folder / f"{stage.name}.om")}
    record = {"export_id": meta.export_id, "soc": "Ascend910B3", "precision": "origin", "stages": stages}
    (folder / "om.json").write_text(json.dumps(record | changed))
    return folder


def digest(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAcl:
    """The labelled fake in the place of pyACL."""
    acl = FakeAcl()
    monkeypatch.setitem(sys.modules, "acl", acl)  # type: ignore[arg-type]
    return acl


@pytest.fixture(scope="session", autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give these tests devices of their own: other processes' memory would be missing from what they find free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANN_SIM_STATE", str(tmp_path_factory.mktemp("state")))
        yield


Picture = Callable[[int], np.ndarray]


@pytest.fixture
def picture() -> Picture:
    """Make a picture of one grey value."""
    return lambda value: np.full((SIZE, SIZE, 3), value, np.uint8)
