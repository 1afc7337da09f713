"""Two simulated devices train where the images of one, or of both, have no objects."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeShapes

pytest.importorskip("vitdet", reason="the stack has no vitdet")
from empty_ranks_job import TRAININGS

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: its devices are as many as one likes",
)
JOB = Path(__file__).with_name("empty_ranks_job.py")
STEPS = 5
# Of 20 pictures, in five steps of two devices with two images each, in turn: the first device's of step 0, all of
# step 2, one of the second device's of step 4.
WITHOUT_OBJECTS = {0, 2, 8, 9, 10, 11, 17}


def remove_objects(file: Path) -> None:
    """Take the annotations of WITHOUT_OBJECTS out of the data set, a good third."""
    content = json.loads(file.read_text())
    empty = {image["id"] for index, image in enumerate(content["images"]) if index % 20 in WITHOUT_OBJECTS}
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] not in empty]
    file.write_text(json.dumps(content))


def train(data: Path, folder: Path, steps: int) -> dict[str, list[dict[str, Any]]]:
    """What each rank recorded, by training."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launch, JOB, str(steps), folder],
        # As runtime.sh says on cann_sim: the queue's threads would poll. test_hccl_torch.py has both ways.
        env={**os.environ, "ASCENDET_DATA": str(data), "OMP_NUM_THREADS": "1", "TASK_QUEUE_ENABLE": "0"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return {
        name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
        for name in TRAININGS
    }


@pytest.fixture(scope="module")
def recorded(
    make_shapes: MakeShapes, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    data = make_shapes(20, 1)
    remove_objects(data / "shapes" / "annotations" / "instances_train.json")
    return train(data, tmp_path_factory.mktemp("trainings"), STEPS)


@pytest.mark.parametrize("training", TRAININGS)
def test_devices_without_objects_train(recorded: dict[str, list[dict[str, Any]]], training: str) -> None:
    ranks = recorded[training]
    steps = [tuple(map(sum, objects)) for objects in zip(*(rank["objects"] for rank in ranks), strict=True)]
    assert len(steps) == STEPS
    assert steps[0][0] == 0 < steps[0][1], "one device has no objects"
    assert steps[2] == (0, 0), "no device has objects"
    assert all(steps[1]), "both have"
    for rank in ranks:
        for losses, objects in zip(rank["losses"], rank["objects"], strict=True):
            assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"} < losses.keys()
            assert all(math.isfinite(value) for value in losses.values())
            assert any(objects) or losses["loss_mask"] == losses["loss_bbox"] == 0
    assert ranks[0]["weights"] == ranks[1]["weights"]
