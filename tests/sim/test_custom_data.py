"""A user's own data set from `make data` to pictures with its classes, by the commands that a user types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
import custom  # noqa: E402  # the data sets that test_intake takes in

pytest.importorskip("vitdet", reason="the stack has no vitdet")

NAME = f"roboflow-test-{os.getpid()}"
Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Run make in this clone, with a data folder of its own; its runs go afterwards."""

    def run(*words: str) -> str:
        environ = os.environ | {"ASCENDET_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
        command = ["make", *words, f"DATASET={NAME}", "MODEL=vitdet-tiny", "DEVICES=6", "NPU=sim"]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    yield run
    shutil.rmtree(ROOT / "build" / "runs" / f"vitdet-tiny_{NAME}", ignore_errors=True)


def test_five_classes_of_a_roboflow_export(make: Make, tmp_path: Path) -> None:
    """The other layouts differ in `make data` only: tests/unit/test_intake.py."""
    origin = custom.roboflow(tmp_path / "export")
    make("data", f"FROM={origin}")
    shutil.rmtree(origin)  # nothing depends on it
    make("train", "EPOCHS=1")
    table = make("eval")
    for name in custom.COLOURS:
        assert f"\n{name} " in table
    make("infer", f"IMAGES={tmp_path}/data/{NAME}/test", "SCORE=0.0")
    folder = ROOT / "build" / "runs" / f"vitdet-tiny_{NAME}" / "latest" / "infer"
    results = json.loads((folder / "results.json").read_text())
    assert results["categories"] == list(custom.COLOURS)
    assert {item["category"] for image in results["images"] for item in image["detections"]} <= set(
        custom.COLOURS
    )
    assert [image for image in results["images"] if image["detections"]]
    assert all((folder / image["picture"]).stat().st_size for image in results["images"])
