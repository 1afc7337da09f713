"""The programs, as scripts/run.sh starts them: train, stop, go on, in mixed precision; predict; infer."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ascendet_common import progress
from blendmask.config import load
from blendmask.launch import CONFIGS
from blendmask.model import BlendMask

STEPS = 11  # of 4 images: 3 passes over the 15 of 17 that have an object


def environ(data: Path, work: Path, **more: str) -> dict[str, str]:
    work.mkdir(exist_ok=True)
    return os.environ | {
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # on the CPU
        "OMP_NUM_THREADS": "1",
        "MODEL": "blendmask-tiny",
        "DATASET": "shapes",
        "ASCENDET_DATA": str(data),
        "WORK_DIR": str(work),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **more,
    }


def run(
    program: str, data: Path, work: Path, *words: str, code: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", f"blendmask.{program}", *words],
        env=environ(data, work, **more),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def rows(work: Path, phase: str) -> list[dict[str, Any]]:
    return [row for row in progress.read(work) if row["phase"] == phase]


def weights(file: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["model"]
    return found


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a training of 11 steps."""
    work = tmp_path_factory.mktemp("trained")
    run("train", data, work, "--epochs=3")
    return work


def test_a_training_leaves_checkpoints_rows_and_tensorboard(trained: Path) -> None:
    assert (trained / "last_checkpoint").read_text() == str(trained / f"step_{STEPS}.pth")
    assert {file.name for file in trained.glob("*.pth")} == {
        "best.pth",
        *(f"step_{step}.pth" for step in (8, 10, 11)),
    }
    last = rows(trained, "train")[-1]
    assert (last["step"], last["of"]) == (STEPS, STEPS)
    assert last["losses"].keys() == {
        "loss_fcos_cls",
        "loss_fcos_loc",
        "loss_fcos_ctr",
        "loss_mask",
        "loss_basis_sem",
    }
    assert last["loss"] == pytest.approx(sum(last["losses"].values()))
    (measured,) = [row for row in rows(trained, "validate") if "AP" in row]
    assert measured["AP"].keys() == {"bbox", "segm"}
    assert list((trained / "tensorboard").iterdir())
    meta = torch.load(trained / "best.pth", weights_only=True)["meta"]
    assert (meta["step"], len(meta["classes"])) == (STEPS, 3)


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    """SIGTERM somewhere in the middle; then the rest. Every weight is equal, to the last bit."""
    process = subprocess.Popen(
        [sys.executable, "-m", "blendmask.train", "--epochs=3"],
        env=environ(data, tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "step_2.pth").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 25, output
    assert "error[interrupted]: saved interrupted.pth" in output
    assert json.loads((tmp_path / "error.json").read_text())["name"] == "interrupted"
    step = torch.load(tmp_path / "interrupted.pth", weights_only=True)["meta"]["step"]
    assert 2 <= step < STEPS
    run("train", data, tmp_path, "--epochs=3", RESUME="1")
    assert not (tmp_path / "error.json").exists()
    assert {"text": f"resumed after step {step}"}.items() <= rows(tmp_path, "note")[-1].items()
    expected = weights(trained / f"step_{STEPS}.pth")
    found = weights(tmp_path / f"step_{STEPS}.pth")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_mixed_precision_trains(data: Path, trained: Path, tmp_path: Path) -> None:
    run("train", data, tmp_path, "--epochs=3", "--amp")
    half, single = (rows(work, "train")[-1]["loss"] for work in (tmp_path, trained))
    assert half == pytest.approx(single, rel=0.1)
    assert half != single


def test_a_loss_that_is_not_finite_ends_the_training_before_anything_is_saved(
    data: Path, tmp_path: Path
) -> None:
    done = run("train", data, tmp_path, "--epochs=3", "--lr=1e9", code=35)
    assert "error[loss-not-finite]: " in done.stdout
    content = json.loads((tmp_path / "error.json").read_text())
    assert content["advice"] == {"LR": "5e+08"}
    for file in tmp_path.glob("*.pth"):
        assert all(value.isfinite().all() for value in weights(file).values())


def test_predictions_are_of_the_images_that_were_asked_for(data: Path, trained: Path, tmp_path: Path) -> None:
    run("predict", data, tmp_path, "--images=2", CHECKPOINT=str(trained / "best.pth"))
    images = json.loads((tmp_path / "images.json").read_text())
    annotations = json.loads((data / "shapes/annotations/instances_val.json").read_text())
    assert images["annotations"] == str(data / "shapes/annotations/instances_val.json")
    assert images["images"] == [image["id"] for image in annotations["images"][:2]]
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert {result["image_id"] for result in results} <= set(images["images"])
    ids = {category["id"] for category in annotations["categories"]}
    for result in results:
        assert result.keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
        assert result["category_id"] in ids


def test_inference_draws_and_lists(data: Path, trained: Path, tmp_path: Path) -> None:
    pictures = sorted((data / "shapes/val").iterdir())[:2]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    (tmp_path / "list.json").write_text(json.dumps([*map(str, pictures), str(bad)]))
    words = [f"--images={tmp_path / 'list.json'}", "--score=0"]
    run("infer", data, tmp_path, *words, CHECKPOINT=str(trained / "best.pth"))
    content = json.loads((tmp_path / "results.json").read_text())
    assert [image["file"] for image in content["images"]] == list(map(str, pictures))
    assert [one["file"] for one in content["skipped"]] == [str(bad)]
    for image in content["images"]:
        assert (tmp_path / image["picture"]).stat().st_size > 1000
        scores = [one["score"] for one in image["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert {one["category"] for one in image["detections"]} <= set(content["categories"])
    assert content["latency"]["steady"]["calls"] == 2


def test_speed_is_measured_without_an_npu_too(data: Path, trained: Path, tmp_path: Path) -> None:
    run("speed", data, tmp_path, "--images=2", CHECKPOINT=str(trained / "best.pth"))
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["fixed"]["first_call"]["device"] > 0
    assert len(content["pictures"]["calls"]) == 2
    assert content["fixed"]["memory"] is None


OWN = """
_BASE_: "{base}"
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
MODEL: {{CONDINST: {{MASK_OUT_STRIDE: 4}}}}
"""


def test_a_configuration_of_the_users_own_trains_and_infers(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    """It says the same as blendmask-tiny, so it gives the same weights; what it says in vain is told."""
    own = tmp_path / "mine.yaml"
    own.write_text(OWN.format(base=CONFIGS / "blendmask-tiny.yaml"))
    more = {"MODEL": "mine", "CONFIG": str(own)}
    run("train", data, tmp_path / "train", "--epochs=3", **more)
    notes = [row["text"] for row in rows(tmp_path / "train", "note")]
    assert (
        "DATASETS of the configuration (coco_2017_train, coco_2017_val) is not used: DATASET=shapes is"
        in notes
    )
    assert "of other models, and not used: MODEL.CONDINST.MASK_OUT_STRIDE" in notes
    expected, found = (weights(folder / f"step_{STEPS}.pth") for folder in (trained, tmp_path / "train"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    whole, others = load(tmp_path / "train" / "config.yaml")
    assert whole.SOLVER.MAX_ITER == 800, "as it was written, not as it was fitted to the data set"
    assert others == ("MODEL.CONDINST.MASK_OUT_STRIDE",)
    pictures = [str(file) for file in sorted((data / "shapes/val").iterdir())[:1]]
    (tmp_path / "list.json").write_text(json.dumps(pictures))
    words = [f"--images={tmp_path / 'list.json'}"]
    run("infer", data, tmp_path / "infer", *words, CHECKPOINT=str(tmp_path / "train/best.pth"), **more)
    own.write_text(own.read_text() + "SOLVER: {BASE_LRATE: 1}\n")
    run("predict", data, tmp_path / "predict", code=1, CHECKPOINT=str(trained / "best.pth"), **more)
    assert json.loads((tmp_path / "predict" / "error.json").read_text())["name"] == "config-invalid"


def test_a_training_starts_from_a_backbone_in_the_folder_of_weights(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(f'_BASE_: "{CONFIGS / "blendmask-tiny.yaml"}"\nMODEL: {{WEIGHTS: "tiny.pkl"}}\n')
    more = {"CONFIG": str(own)}
    run("train", data, tmp_path / "no", "--epochs=1", code=1, **more)
    assert json.loads((tmp_path / "no" / "error.json").read_text())["name"] == "checkpoint-missing"
    model = BlendMask(load(own)[0])
    prefix = "backbone.bottom_up."
    state = {name: value.numpy() for name, value in model.state_dict().items() if name.startswith(prefix)}
    content = {"model": {name.removeprefix(prefix): value for name, value in state.items()}}
    (data / "weights").mkdir(exist_ok=True)
    (data / "weights" / "tiny.pkl").write_bytes(pickle.dumps(content, 4))
    run("train", data, tmp_path / "yes", "--epochs=1", **more)
    said = "starts from tiny.pkl: no weight is missing, none is unexpected"
    assert any(row["text"].startswith(said) for row in rows(tmp_path / "yes", "note"))
    assert (data / "weights" / "tiny.safetensors").is_file()


def test_a_checkpoint_of_other_classes_is_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "best.pth", weights_only=True)
    content["meta"]["classes"] = ["cat", "dog", "cow"]
    torch.save(content, tmp_path / "other.pth")
    run("predict", data, tmp_path, code=1, CHECKPOINT=str(tmp_path / "other.pth"))
    stated = json.loads((tmp_path / "error.json").read_text())
    assert stated["name"] == "checkpoint-mismatch"
    assert "cat, dog, cow" in stated["what"]
