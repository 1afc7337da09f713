"""MODEL may be a YAML file of the user's, in a family that takes one: found, and followed to its bases."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from ascendet.core import manifest, own_config
from ascendet.core.stack import Stack
from ascendet.envs import activation
from ascendet.run import k8s, target, train
from ascendet.run.target import Target
from conftest import check, fails

STACK = Stack.load("blendmask")


@pytest.fixture
def mine(tmp_path: Path, aim: Target, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration on a base beside it, which is on another one in a folder above. (`aim` for its environment.)"""
    monkeypatch.setattr(activation, "stack_environ", lambda *_: {})
    folder = tmp_path / "configs"
    folder.mkdir()
    (tmp_path / "root.yaml").write_text("SEED: 1\n")
    (folder / "base.yaml").write_text('_BASE_: "../root.yaml"\nDATASETS: {TRAIN: ("coco_2017_train",)}\n')
    file = folder / "R_50_1x.yaml"
    file.write_text('_BASE_: "base.yaml"\nMODEL: {RESNETS: {DEPTH: 50}}\n')
    return file


def checked(model: Path | str, *more: str) -> Target:
    parser = argparse.ArgumentParser()
    target.add_options(parser)
    words = ["--stack=blendmask", f"--model={model}", "--dataset=coco", "--devices=0,1", *more]
    return target.check(parser.parse_args(words), "train")


def test_a_file_is_a_model_that_is_called_like_it(mine: Path, tmp_path: Path, build: Path) -> None:
    aim = checked(mine)
    assert (aim.model, aim.home) == ("R_50_1x", build / "runs/R_50_1x_coco")
    assert [file.resolve() for file in aim.files] == [
        mine,
        mine.with_name("base.yaml"),
        tmp_path / "root.yaml",
    ]
    given = target.environ(aim, tmp_path)
    assert (given["MODEL"], given["CONFIG"]) == ("R_50_1x", str(mine))
    text = target.facts(aim, "")["config"]
    assert isinstance(text, dict)
    assert "\n".join(text.values()) == "\n".join(file.read_text() for file in aim.files)


def test_one_of_the_stacks_models_stays_what_it_was(mine: Path, tmp_path: Path) -> None:
    aim = check("blendmask-r50", "coco", "0", "blendmask")
    assert (aim.own, aim.files, aim.inputs) == (None, [], {"model": "blendmask-r50", "dataset": "coco"})
    assert target.environ(aim, tmp_path)["CONFIG"] == ""
    assert "config" not in target.facts(aim, "")


@pytest.mark.parametrize("name", ["R_50_1x.yaml", "base.yaml", "../root.yaml"])
def test_a_change_in_any_of_its_files_is_another_training(mine: Path, tmp_path: Path, name: str) -> None:
    def key() -> str:
        return manifest.digest_inputs(train._inputs(checked(mine), tmp_path, "", None))

    before = key()
    assert key() == before
    with (mine.parent / name).open("a") as file:
        file.write("# changed\n")
    assert key() != before


def test_it_needs_a_data_set_that_somebody_chose(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may name one itself, in words of detectron2; `shapes`, make's default, would be a surprise."""
    monkeypatch.setenv("MAKEFLAGS", f"w -- STACK=blendmask MODEL={mine}")
    error = fails("usage", checked, mine, "--dataset-by-default")
    assert error.hint == f"make train STACK=blendmask MODEL={mine} DATASET=coco"
    assert checked("blendmask-r50", "--dataset-by-default").own is None


def test_what_cannot_be_read_is_named(mine: Path, tmp_path: Path) -> None:
    assert "no such file" in str(fails("config-missing", checked, tmp_path / "none.yaml").found)
    assert "a folder" in str(fails("config-missing", checked, f"{tmp_path}/").found)
    (tmp_path / "root.yaml").unlink()
    assert "which " in fails("config-missing", checked, mine).what
    ran = tmp_path / "ran"
    for text, found in (
        ("MODEL: [1,\n", "flow node"),
        ("- 1\n", "a list"),
        ("", "a NoneType"),
        (f'SEED: !!python/object/apply:os.mkdir ["{ran}"]\n', "python/object"),
    ):
        (tmp_path / "root.yaml").write_text(text)
        assert found in str(fails("config-invalid", checked, mine).found)
    assert not ran.exists()
    (tmp_path / "root.yaml").write_text("_BASE_: https://configs.example/base.yaml\n")
    assert fails("config-unsupported", checked, mine).found == "https://configs.example/base.yaml"


def test_files_that_are_based_on_each_other_are_listed_once(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "root.yaml").write_text('_BASE_: ["configs/base.yaml", "configs/base.yaml"]\n')
    own = own_config.find(STACK, str(mine))
    assert own is not None
    assert len(own.files) == 3


def test_a_name_of_the_stacks_models_is_taken(mine: Path) -> None:
    other = mine.with_name("blendmask-tiny.yaml")
    mine.rename(other)
    assert "name of its own" in fails("usage", checked, other).what
    odd = other.rename(other.with_name("my net (2).yaml"))
    assert checked(odd).model == "my-net-2-"


def test_other_families_take_no_files(mine: Path) -> None:
    """Their configurations are programs: they belong into the package, with tests."""
    assert "docs/add-a-model.md" in fails("config-unsupported", check, str(mine), "coco", "0").hint
    fails("model-unknown", check, "mine.py", "coco", "0")


def test_pods_see_no_file_of_this_machine(mine: Path) -> None:
    parser = argparse.ArgumentParser()
    k8s.configure_parser(parser)
    words = ["--stack=blendmask", f"--model={mine}", "--dataset=coco", "--devices=0"]
    fails("usage", k8s.make_jobs, k8s.JobRequest.read(parser.parse_args(words)))
