"""The options of make train, eval, infer and speed, the acceptance bands, and the official figures."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import pytest
from ascendet.core import manifest
from ascendet.core.stack import load_all
from ascendet.data import datasets
from ascendet.run import evaluate, infer, official, speed, train
from ascendet.run.target import Target
from conftest import fails, make_run


def test_arguments_are_those_that_make_passes() -> None:
    for module in (train, evaluate, infer, speed):
        parser = argparse.ArgumentParser()
        module.configure_parser(parser)
        options = ["--stack", "vitdet", "--model", "m", "--dataset", "d", "--devices", "", "--images", ""]
        assert parser.parse_args(options[: None if module is not train else -2]).devices == ""


def test_pictures_are_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c d.jpeg", "notes.txt", "deep/e.webp", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(text: str) -> list[str]:
        return [str(file.relative_to(tmp_path)) for file in infer.find_images(text)]

    assert names(f"{tmp_path}") == ["a.jpg", "b.PNG", "c d.jpeg"]
    assert names(f"'{tmp_path}/c d.jpeg' {tmp_path}/*.jpg {tmp_path}/a.jpg") == ["c d.jpeg", "a.jpg"]
    assert names(f"{tmp_path}/**/*") == ["a.jpg", "b.PNG", "c d.jpeg", "deep/e.webp"]
    assert names(f"{tmp_path}/odd") == ["odd"], "what is named outright is tried"
    fails("usage", infer.find_images, " ")
    assert "IMAGES=nowhere/*.jpg" in fails("data-missing", infer.find_images, "nowhere/*.jpg").what


@pytest.mark.parametrize(("score", "bad"), [("2", "skip"), ("much", "skip"), ("0.3", "ignore")])
def test_inference_refuses_options_that_mean_nothing(score: str, bad: str) -> None:
    fails("usage", infer.check_options, score, bad)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("200", 200)])
def test_a_part_of_the_images_is_evaluated(text: str, count: int) -> None:
    assert evaluate.check_count(text) == count
    for wrong in ("0", "-1", "a.jpg"):
        fails("usage", evaluate.check_count, wrong)


def test_acceptance_says_where_the_numbers_are(tmp_path: Path) -> None:
    band = 'annotations = "d16e57"\nsource = "here"\n[AP]\nbbox = [0.5, 0.6]\nsegm = [0.4, 0.5]\n'
    (tmp_path / "m_d.toml").write_text(band)

    def judge(box: float, mask: float) -> list[str]:
        numbers = {"bbox": {"AP": box}, "segm": {"AP": mask}}
        return [verdict.split()[4] for verdict in evaluate.judge("m", "d", numbers, "d16e57", tmp_path)]

    assert judge(0.5, 0.5) == ["inside", "inside"]
    assert judge(0.499, 0.501) == ["below", "above"]


def test_no_band_is_applied_to_what_it_was_not_measured_on(tmp_path: Path) -> None:
    """Another data set, one of the same name, and one without objects; each says why."""
    band = 'annotations = "d16e57"\nsource = "here"\n[AP]\nbbox = [0.5, 0.6]\nsegm = [0.4, 0.5]\n'
    (tmp_path / "m_d.toml").write_text(band)
    numbers = {"bbox": {"AP": 0.5}, "segm": {"AP": -1.0}}
    assert evaluate.judge("m", "other", numbers, "d16e57", tmp_path) == [
        "no acceptance band: none has been measured for m on other"
    ]
    assert evaluate.judge("m", "d", numbers, "07e4", tmp_path) == [
        "no acceptance band: the one for m on d was measured on other annotations "
        "(sha256:d16e57…, these are 07e4…)"
    ]
    boxes, masks = evaluate.judge("m", "d", numbers, "d16e57", tmp_path)
    assert boxes.startswith("boxes: AP 0.500 is inside")
    assert masks == "masks: no acceptance band: the annotations have no object to measure AP on"


def test_official_figures_are_compared_on_the_same_images_only(tmp_path: Path) -> None:
    entry = '[m]\nof = "c"\nsource = "s"\ndataset = "d"\nimages = 5\nannotations = "d16e57"\n'
    (tmp_path / "o.toml").write_text(f"{entry}AP = {{ bbox = 0.5, segm = 0.4 }}\n")
    numbers = {"bbox": {"AP": 0.52}, "segm": {"AP": 0.39}}

    def differences(digest: str, images: int) -> list[float | None]:
        compared = official.compare("m", numbers, digest, images, tmp_path / "o.toml")
        assert compared is not None
        shown = official.table(compared, "others")
        assert ("others, so no difference" in shown) != compared["same_images"]
        return [row["difference"] for row in compared["figures"].values()]

    assert differences("d16e57", 5) == [pytest.approx(0.02), pytest.approx(-0.01)]
    assert differences("d16e57", 4) == [None, None], "a part of the images"
    assert differences("07e4", 5) == [None, None], "other annotations"
    assert official.compare("other", numbers, "d16e57", 5, tmp_path / "o.toml") is None


def test_official_figures_are_complete_and_of_models_that_there_are() -> None:
    known = {model for stack in load_all().values() for model in stack.models}
    table = tomllib.loads(official.FILE.read_text())
    assert table
    assert table.keys() <= known
    for entry in table.values():
        assert entry.keys() == {"of", "source", "dataset", "images", "annotations", "AP"}
        assert re.fullmatch(r"[0-9a-f]{64}", entry["annotations"])
        assert entry["AP"].keys() == {"bbox", "segm"}
        assert all(0 < value < 1 for value in entry["AP"].values())


@pytest.mark.parametrize("file", sorted(evaluate.BANDS.glob("*.toml")), ids=lambda file: file.stem)
def test_bands_are_complete_and_of_models_that_there_are(file: Path) -> None:
    band = tomllib.loads(file.read_text())
    assert file.stem == f"{band['model']}_{band['dataset']}"
    assert band["model"] in {model for stack in load_all().values() for model in stack.models}
    assert band["dataset"] in datasets.load()
    assert band["device"] in ("any", "simulated")
    assert re.fullmatch(r"[0-9a-f]{64}", band["annotations"])
    assert len(band["source"]) > 20
    assert all(0 < low < high < 1 for low, high in band["AP"].values())
    assert band["AP"].keys() == {"bbox", "segm"}


@pytest.mark.parametrize(
    ("environ", "run", "machine"),
    [
        ({}, "", 0),
        ({"NNODES": "1"}, "", 0),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}, "first", 1),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}, "", None),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, "first", None),
        ({"NNODES": "2", "NODE_RANK": "0"}, "first", None),
    ],
)
def test_which_machine_this_is(
    aim: Target,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    run: str,
    machine: int | None,
) -> None:
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if machine is None:
        fails("usage", train._node, aim, run)
    else:
        assert train._node(aim, run) == machine


@pytest.mark.parametrize("name", ["../mine", "latest", "..", ".", "/mine"])
@pytest.mark.parametrize("machine", ["0", "1"])
def test_a_run_has_a_folder_of_its_own(
    aim: Target, monkeypatch: pytest.MonkeyPatch, machine: str, name: str
) -> None:
    """On each of several machines."""
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("NODE_RANK", machine)
    monkeypatch.setenv("MASTER_ADDR", "a")
    parser = argparse.ArgumentParser()
    train.configure_parser(parser)
    words = ["--model=vitdet-tiny", "--dataset=shapes", "--devices=6,7", f"--run={name}"]
    assert fails("usage", train.execute, parser.parse_args(words)).found == f"RUN={name}"


@pytest.mark.parametrize("text", ["fast", "0", "-1", "nan", "inf"])
def test_a_learning_rate_is_a_positive_number(text: str) -> None:
    assert (train._check_lr("5e-5"), train._check_lr("")) == (5e-5, None)
    assert fails("usage", train._check_lr, text).found == f"LR={text}"


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "٣"])
def test_epochs_are_a_number(text: str) -> None:
    fails("usage", train._check_epochs, text)


def test_a_resumed_run_keeps_its_epochs(aim: Target) -> None:
    run = make_run(aim, "a", "interrupted")
    assert train._kept_epochs(run, {}) == "", "the recipe's"
    fails("usage", train._kept_epochs, run, {"epochs": "3"})
    manifest.write(run, {"inputs": {"epochs": "12"}})
    assert train._kept_epochs(run, {}) == train._kept_epochs(run, {"epochs": "12"}) == "12"
    assert "EPOCHS=12" in str(fails("usage", train._kept_epochs, run, {"epochs": "3"}).expected)


def test_what_a_training_starts_from_and_how_long_it_takes_make_another_run(
    aim: Target, tmp_path: Path
) -> None:
    start = tmp_path / "start.pth"
    start.write_text("weights")
    same = [
        train._inputs(aim, tmp_path, epochs, file) for epochs, file in (("", None), ("3", None), ("", start))
    ]
    assert len({manifest.digest_inputs(inputs) for inputs in same}) == 3
    assert "epochs" not in same[0], "runs from before are found"
