"""What `make train`, `make eval` and `make infer` start, through their scripts, on simulated devices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ascendet.run import score
from conftest import MakeShapes, script_environ

pytest.importorskip("vitdet", reason="the stack has no vitdet")
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"
Environ = dict[str, str]
SIMULATED = Path(os.environ.get("ASCEND_HOME_PATH", ""), "lib64/libcann_sim_compute.so").exists()

if "ASCEND_HOME_PATH" not in os.environ:
    pytest.skip("no CANN tree: run it by `make test-sim`", allow_module_level=True)


@pytest.fixture(scope="module")
def environ(make_shapes: MakeShapes) -> Environ:
    return script_environ(make_shapes(8, 6))


@pytest.fixture(scope="module")
def random_weights(environ: Environ, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ViTDet-tiny as it is before training."""
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    code = """
import sys, torch, vitdet.data
from pathlib import Path
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
init_default_scope("mmdet")
torch.manual_seed(0)
cfg = Config.fromfile(Path(vitdet.__file__).parent / "configs/vitdet-tiny.py")
vitdet.data.set_classes(cfg, ("triangle", "rectangle", "star"))
model = MODELS.build(cfg.model)
model.init_weights()
torch.save({"state_dict": model.state_dict()}, sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, file], env=environ, check=True, capture_output=True)
    return file


def run(script: str, environ: Environ, *arguments: str) -> str:
    done = subprocess.run(
        ["bash", SCRIPTS / script, *arguments], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_several_devices_evaluate_as_one(environ: Environ, random_weights: Path, tmp_path: Path) -> None:
    found = {}
    for devices in ("0", "2,5"):
        work = tmp_path / f"on {devices}"
        given = {"WORK_DIR": str(work), "CHECKPOINT": str(random_weights)}
        run("eval.sh", environ | given | {"DEVICES": devices}, "--images=3")
        images = json.loads((work / "images.json").read_text())
        assert images["annotations"] == f"{environ['ASCENDET_DATA']}/shapes/annotations/instances_val.json"
        assert len(images["images"]) == 3
        found[devices] = json.loads((work / "predictions.json").read_text())
    one, two = found.values()
    assert len(one) == len(two) > 0
    assert [item["image_id"] for item in one] == [item["image_id"] for item in two]
    assert [item["score"] for item in one] == pytest.approx([item["score"] for item in two], abs=1e-5)
    truth = json.loads(Path(images["annotations"]).read_text())
    part = score.restrict(truth, images["images"])
    assert 0 <= score.score(part, one, "segm")["AP"] < 0.05, "a model that has learned nothing finds nothing"


def test_a_perfect_detector_has_ap_1(environ: Environ) -> None:
    """The truth of the generated data set as predictions, crowds among it."""
    from pycocotools.coco import COCO
    from pycocotools.mask import encode

    file = Path(environ["ASCENDET_DATA"], "shapes", "annotations", "instances_train.json")
    coco = COCO(file)
    found = [
        {key: item[key] for key in ("image_id", "category_id", "bbox")}
        | {"score": 1.0, "segmentation": {**rle, "counts": rle["counts"].decode()}}
        for item in coco.dataset["annotations"]
        if not item["iscrowd"]
        for rle in [encode(coco.annToMask(item))]  # whichever form the annotation has
    ]
    truth = json.loads(file.read_text())
    for kind in ("bbox", "segm"):
        numbers, classes = score.evaluate(truth, found, kind)  # type: ignore[arg-type]
        assert (numbers["AP"], numbers["AR100"]) == (1.0, 1.0)
        assert set(classes.values()) == {1.0}


def test_pictures_of_all_kinds(environ: Environ, random_weights: Path, tmp_path: Path) -> None:
    photo = Image.effect_noise((90, 60), 80).convert("RGB")
    names = {}
    for name, image in {
        "rgb.jpg": photo,
        "grey.jpg": photo.convert("L"),
        "cmyk.jpg": photo.convert("CMYK"),
        os.fsdecode("中.jpg".encode("gbk")): photo,  # as a zip from a Chinese Windows is unpacked
    }.items():
        image.save(tmp_path / name)
        names[name] = (90, 60)
    exif = Image.Exif()
    exif[0x0112] = 8
    photo.save(tmp_path / "turned.jpg", exif=exif)
    photo.resize((1, 1)).save(tmp_path / "dot.png")
    names |= {"turned.jpg": (60, 90), "dot.png": (1, 1)}
    (tmp_path / "half.jpg").write_bytes((tmp_path / "rgb.jpg").read_bytes()[:900])
    files = [str(tmp_path / name) for name in ("half.jpg", *names)]
    (tmp_path / "list.json").write_text(json.dumps(files))
    given = {"CHECKPOINT": str(random_weights), "WORK_DIR": str(tmp_path / "out"), "DEVICES": "3,4"}
    arguments = [f"--images={tmp_path / 'list.json'}", "--score=0"]
    shown = run("infer.sh", environ | given, *arguments)
    assert "runtime: ASCEND_RT_VISIBLE_DEVICES=3\n" in shown
    rows = [json.loads(line) for line in (tmp_path / "out" / "progress.jsonl").read_text().splitlines()]
    assert any(row.get("text", "").startswith(f"{tmp_path}/\\xd6\\xd0.jpg: ") for row in rows)
    assert [row["step"] for row in rows if row["phase"] == "infer"] == list(range(2, 2 + len(names)))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(Path(item["file"]).name, "truncated" in item["reason"]) for item in results["skipped"]] == [
        ("half.jpg", True)
    ]
    for item in results["images"]:
        size = names[Path(item["file"]).name]
        assert (item["width"], item["height"]) == size
        assert Image.open(tmp_path / "out" / item["picture"]).size == size
        for found in item["detections"]:
            assert found["segmentation"]["size"] == [size[1], size[0]]
            assert found["category"] in ("triangle", "rectangle", "star")
    assert len(results["images"]) == len(names)
    latency = results["latency"]
    assert latency["steady"]["calls"] == len(names)
    stages = ("read", "preprocess", "device", "postprocess")
    assert latency["first_call"]["total"] == pytest.approx(
        sum(latency["first_call"][name] for name in stages)
    )
    assert 0 < latency["steady"]["p50"]["total"] <= latency["steady"]["p90"]["total"]
    refused = subprocess.run(
        ["bash", SCRIPTS / "infer.sh", *arguments, "--bad=refuse"],
        env=environ | given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    error = json.loads((tmp_path / "out" / "error.json").read_text())
    assert error["name"] == "image-damaged"
    assert error["what"].startswith(f"{tmp_path}/half.jpg: image file is truncated")


def test_speed_is_measured_on_one_device(environ: Environ, random_weights: Path, tmp_path: Path) -> None:
    given = {"WORK_DIR": str(tmp_path), "CHECKPOINT": str(random_weights), "DEVICES": "3,4"}
    done = run("run.sh", environ | given, "speed", "--images=2")
    assert "runtime: ASCEND_RT_VISIBLE_DEVICES=3\n" in done
    if SIMULATED:
        assert "runtime: OMP_WAIT_POLICY=passive\n" in done, (
            "threads that spin stop each other on a busy machine"
        )
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["fixed"]["steady"]["calls"] >= 10
    assert [call["width"] for call in content["pictures"]["calls"]] == [
        image["width"] for image in _images(environ)[:2]
    ]
    assert content["fixed"]["memory"]["reserved"] >= content["fixed"]["memory"]["allocated"] > 0


def _images(environ: Environ) -> list[dict[str, int]]:
    file = Path(environ["ASCENDET_DATA"], "shapes", "annotations", "instances_val.json")
    images: list[dict[str, int]] = json.loads(file.read_text())["images"]
    return images


def test_a_signal_to_one_rank_stops_all_and_torchrun_goes_on(environ: Environ, tmp_path: Path) -> None:
    """All ranks end after the same step, saved; restarted by torchrun they go on there, to the end."""
    short = [
        "--cfg-options",
        "train_cfg.max_epochs=4",
        "train_cfg.val_begin=9",
        "default_hooks.logger.interval=1",
    ]
    log = tmp_path / "log"
    given = {"WORK_DIR": str(tmp_path), "DEVICES": "0,1", "MAX_RESTARTS": "1"}
    with log.open("w") as file:
        torchrun = subprocess.Popen(
            ["bash", SCRIPTS / "train.sh", *short], env=environ | given, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 200
        while "Epoch(train)" not in log.read_text():
            assert torchrun.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        os.kill(int(ranks[1]), signal.SIGTERM)
        assert torchrun.wait(timeout=200) == 0, log.read_text()[-4000:]
    finally:
        torchrun.kill()
    text = log.read_text()
    rows = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    notes = [row["text"] for row in rows if row["phase"] == "note"]
    recipe = (
        "recipe: 4 images per step = 2 devices x 2 images x 1 accumulated (recipe: 4), learning rate 0.001"
    )
    assert notes.count(recipe) == 2, "each attempt says it"
    saved = torch.load(tmp_path / "interrupted.pth", weights_only=True)["meta"]["iter"]
    assert text.count(f"error[interrupted]: saved interrupted.pth after iteration {saved}") == 1
    assert f"iter: {saved}" in text.partition("resumed epoch")[2].partition("\n")[0]
    assert f"resumed after step {saved}" in notes
    assert [row["step"] for row in rows if row["phase"] == "train"] == list(range(1, 9))
    assert not (tmp_path / "error.json").exists(), "the second attempt does not tell the first one's"
    assert torch.load(tmp_path / "epoch_4.pth", weights_only=True)["meta"]["iter"] == 8
