"""What an NPU waits for in BlendMask, counted on cann_sim: exact numbers, equal in every run.

The original asks, at the same sizes, for 44 synchronisations, 1,736 launches and 3 operators on the CPU per training
step of two images, and for 43, 588 and 3 per image in use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: only it counts",
)
JOB = Path(__file__).with_name("waits_job.py")

Counters = dict[str, Any]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counters]:
    out = tmp_path_factory.mktemp("waits") / "counters.json"
    done = subprocess.run(
        [sys.executable, JOB, out],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counters: dict[str, Counters] = json.loads(out.read_text())
    return counters


def waits(counters: Counters) -> dict[str, int]:
    """Host synchronisations by file, all steps together."""
    found: dict[str, int] = {}
    for row in counters["host_syncs"]:
        file = Path(row["line"].rpartition(":")[0]).name
        found[file] = found.get(file, 0) + row["count"]
    return found


@pytest.mark.parametrize(("part", "most", "launches"), [("training", 8, 1736), ("inference", 6, 588)])
def test_a_step_waits_seldom_and_launches_less_than_the_original(
    counted: dict[str, Counters], part: str, most: int, launches: int
) -> None:
    steps = counted[part]["steps"][:-1]
    assert len(steps) == 6
    assert max(step["host_syncs"] for step in steps) <= most
    assert 0 < max(step["launches"] for step in steps) < launches
    assert counted[part]["cpu_fallbacks"] == {}


@pytest.mark.parametrize("part", ["training", "inference"])
def test_nothing_new_is_compiled_after_the_third_step(counted: dict[str, Counters], part: str) -> None:
    """Although the objects are others from step to step, and sometimes there are none."""
    steps = counted[part]["steps"][:-1]
    assert [step["new_signatures"] for step in steps[3:]] == [0] * (len(steps) - 3)


def test_training_waits_for_its_copies_to_the_device_alone(counted: dict[str, Counters]) -> None:
    """The images, three packs of targets, the map of classes; nothing comes back."""
    counters = counted["training"]
    steps = len(counters["steps"]) - 1
    assert waits(counters) == {"model.py": 2 * steps, "targets.py": 3 * steps}
    assert {row["direction"] for row in counters["copies"]} == {"h2d"}
    assert {step["d2h_bytes"] for step in counters["steps"]} == {0}


def test_inference_waits_for_the_image_for_nms_and_for_its_results(counted: dict[str, Counters]) -> None:
    counters = counted["inference"]
    found = waits(counters)
    images = len(counters["steps"]) - 1
    assert found.pop("model.py") == 3 * images
    assert found.pop("grid.py") == 2  # once: locations and their neighbours
    assert list(found.values()) == [images]  # how many boxes remain
