"""Running the image on chosen devices: what it is given, what a busy card looks like, and a real training."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.containers import container, image
from ascendet.core import manifest
from ascendet.data import data, datasets
from ascendet.errors import AscendetError
from ascendet.machine import engine
from ascendet.om import bisect, compare, convert, export, infer_om
from ascendet.run import evaluate, family, infer, train
from conftest import STACK
from test_image import make_node

DRIVER = ("usr/local/Ascend/driver/lib64", "usr/local/dcmi")


@pytest.fixture
def machine(tmp_path: Path) -> container.Host:
    """A host with cards 2, 6 and 7, of which the driver has the numbers 2, 6, 7 and the runtime 0, 1, 2."""
    (tmp_path / "dev").mkdir()
    for name in ("davinci2", "davinci6", "davinci7", "davinci_manager", "devmm_svm", "hisi_hdc"):
        make_node(tmp_path / "dev" / name)
    for name in DRIVER:
        (tmp_path / name).mkdir(parents=True)
    return container.look_at_host(runtime=False, root=tmp_path)


def run(docker: str, place: container.Container, work_dir: Path, code: str, name: str) -> list[str]:
    place.prepare(work_dir)
    command = place.command((1, 2), ["bash", "-c", code], name=name, work_dir=work_dir)
    done = subprocess.run([docker, *command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_only_the_chosen_cards_are_inside_and_count_from_0(
    docker: str, built: image.Image, machine: container.Host, tmp_path: Path
) -> None:
    place = container.make(built, machine)
    code = """
        ls -d /dev/davinci* | xargs; echo $DEVICES
        ASCEND_RT_VISIBLE_DEVICES=$DEVICES python -c 'import torch; print(torch.npu.device_count())'
        grep -E '^(CapEff|CapPrm|NoNewPrivs|Groups)' /proc/self/status | xargs
        id -u; touch result; ls -d /usr/local/dcmi; whoami
        """
    nodes, ids, count, status, user, dcmi, name = run(
        docker, place, tmp_path / "work", code, "ascendet-test-map"
    )
    assert nodes == "/dev/davinci6 /dev/davinci7 /dev/davinci_manager"
    assert (ids, count) == ("0,1", "2")
    assert "CapPrm: 0000000000000000 CapEff: 0000000000000000 NoNewPrivs: 1" in status
    assert "4242" in status
    assert user == str(machine.user) != "0"
    assert (dcmi, name) == ("/usr/local/dcmi", "ascendet")
    assert (tmp_path / "work" / "result").stat().st_uid == machine.user


def test_busy_card_and_used_name_are_named(
    docker: str, built: image.Image, machine: container.Host, tmp_path: Path
) -> None:
    place = container.make(built, machine)
    place.prepare(tmp_path / "work")
    command = place.command((0, 1), ["sleep", "120"], name="ascendet-test-busy", work_dir=tmp_path / "work")
    engine.run(command[0], "--detach", *command[1:])
    try:
        assert place.physical((1, 2)) == [6, 7]
        container.check_free([7])
        with pytest.raises(AscendetError) as caught:
            container.check_free(place.physical((1, 2)))
        assert caught.value.name == "device-busy"
        assert caught.value.found == "ascendet-test-busy has /dev/davinci6"
        with pytest.raises(AscendetError, match="name-in-use"):
            engine.run(*command)
    finally:
        engine.run("rm", "--force", "ascendet-test-busy")


def test_training_and_evaluation_in_the_image(
    built: image.Image,
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`make train`, `make eval`, `make infer` and the OM path with RUN_IN=docker, on a few images of the data set."""
    small_data(data.ensure_generated(datasets.find("shapes"), STACK), tmp_path / "data" / "shapes")
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NPU", "sim")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    model = name = STACK.models[0]
    if (
        STACK.name == "blendmask"
    ):  # with a user's configuration: the container must see it, and what it is based on
        name, model = "mine", str(tmp_path / "mine.yaml")
        Path(model).write_text(f"_BASE_: {family.of(STACK).config(STACK.models[0])}\n")
    words = [
        f"--stack={STACK.name}",
        f"--image={built.tag}",
        "--run-in=docker",
        f"--model={model}",
        "--dataset=shapes",
    ]

    def execute(stage: object, *more: str) -> str:
        parser = argparse.ArgumentParser()
        stage.configure_parser(parser)  # type: ignore[attr-defined]
        stage.execute(parser.parse_args([*words, *more]))  # type: ignore[attr-defined]
        return capfd.readouterr().out

    shown = execute(train, "--devices=6,7")
    assert f"2 x {STACK.soc[0]} (simulated, cann_sim) in {built.tag}" in shown
    assert "runtime: ASCEND_RT_VISIBLE_DEVICES=0,1" in shown
    run_folder = (tmp_path / f"build/runs/{name}_shapes/latest").resolve()
    content = manifest.read(run_folder) or {}
    assert (content["state"], content["simulated"], content["devices"]) == ("finished", True, [6, 7])
    owner = 1000 if os.geteuid() == 0 else os.geteuid()
    assert {path.stat().st_uid for path in run_folder.glob("*.pth")} == {owner}
    assert "nothing to train" in execute(train, "--devices=6,7")
    assert "stored in" in execute(evaluate, "--devices=6")
    assert (run_folder / "eval" / "metrics.json").is_file()
    assert "stored in" in execute(infer, "--devices=6", f"--images={tmp_path}/data/shapes/val")
    assert len(list((run_folder / "infer" / "pictures").iterdir())) == 4
    picture = f"--images={min((tmp_path / 'data/shapes/val').iterdir())}"
    assert "stored in" in execute(export, "--devices=6")
    (exported,) = (tmp_path / "build/om").glob(f"{name}-shapes-*")
    assert "OM files" in execute(convert, "--devices=6")
    assert "1 pictures" in execute(infer_om, "--devices=6", picture)
    assert "stored in" in execute(compare, "--devices=6", picture)
    content = json.loads((exported / f"compare-{STACK.soc[0]}-origin/compare.json").read_text())
    assert [rung["rung"] for rung in content["ladder"]] == ["wrappers", "onnx", "om-origin"]
    assert "conversions)" in execute(bisect, "--devices=6", picture)


def small_data(whole: Path, small: Path) -> None:
    """The first images of both splits."""
    for split, count in (("train", 8), ("val", 4)):
        name = f"annotations/instances_{split}.json"
        content = json.loads((whole / name).read_text())
        content["images"] = content["images"][:count]
        kept = {item["id"] for item in content["images"]}
        content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        (small / name).write_text(json.dumps(content))
        (small / split).mkdir()
        for item in content["images"]:
            (small / split / item["file_name"]).write_bytes((whole / split / item["file_name"]).read_bytes())
