"""What may start, on what."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from ascendet import paths
from ascendet.containers import container
from ascendet.core.stack import Stack
from ascendet.data import datasets
from ascendet.run import target
from ascendet.run.target import Target
from conftest import check, fails


def test_place_is_checked(aim: Target) -> None:
    parser = argparse.ArgumentParser()
    target.add_options(parser)
    words = ["--model=vitdet-tiny", "--dataset=shapes", "--devices=0", "--run-in=dokcer"]
    assert fails("usage", target.check, parser.parse_args(words), "train").hint == "RUN_IN=docker"


def test_names_are_checked_before_anything_is_built(aim: Target, build: Path) -> None:
    error = fails("model-unknown", check, "nope", "shapes", "0")
    assert error.expected == "vitdet-tiny, vitdet-b, vitdet-b-overfit"
    fails("dataset-unknown", check, "vitdet-b", "imagenet", "0")
    fails("devices-invalid", check, "vitdet-b", "coco", "9")
    error = fails("model-unknown", check, "vitdet-b", "coco", "0", "blendmask")
    assert error.hint == "STACK=vitdet"
    for dataset in ("shapes", "coco"):
        error = fails("data-missing", datasets.require, dataset)
        assert f"make data DATASET={dataset}" in error.hint
    assert not build.exists()


def test_missing_configuration_lists_those_there_are(aim: Target, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "vitdet-b.py").touch()
    kin = replace(aim.family, source=tmp_path)
    error = fails("config-missing", kin.config, "vitdet-tiny")
    assert error.expected == "vitdet-b"
    assert error.hint == "MODEL=vitdet-b"


@pytest.mark.parametrize("model", Stack.load("vitdet").models)
def test_every_model_has_a_configuration(aim: Target, model: str) -> None:
    assert aim.family.config(model).is_file()


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("910B3", "Ascend910B3"),
        ("9391", "Ascend910_9391"),
        ("Ascend310P3", "Ascend310P3"),
        ("-", "Ascend NPU"),
    ],
)
def test_soc_name_is_read_from_npu_smi(shown: str, name: str, tmp_path: Path) -> None:
    smi = tmp_path / "npu-smi"
    smi.write_text(
        f"#!/bin/sh\necho '| NPU   Name | Health |'\necho '| 0     {shown}               | OK      | 90.0 |'\n"
    )
    smi.chmod(0o755)
    assert target.soc_name({"PATH": f"{tmp_path}:{os.environ['PATH']}"}) == name


def test_settings_of_the_run_time_have_the_same_names_everywhere() -> None:
    text = (paths.ROOT / "scripts/runtime.sh").read_text()
    names = re.findall(r"^ +default (\w+)", text, re.MULTILINE)
    assert set(target.RUNTIME) | {"PYTHONUNBUFFERED"} == set(names)


def test_tensorboard_is_the_environments_or_else_the_images(aim: Target, build: Path) -> None:
    assert target.tensorboard(aim).endswith(
        "build/venv/vitdet/bin/tensorboard --logdir "
        f"{paths.shorten(build / 'runs/vitdet-tiny_shapes')} --port 6006"
    )
    built = SimpleNamespace(image=SimpleNamespace(tag="ascendet-vitdet:1"))
    shown = target.tensorboard(replace(aim, container=cast(container.Container, built)))
    assert shown.startswith("docker run --rm --publish=127.0.0.1:6006:6006 ")
    assert f"source={build}/runs/vitdet-tiny_shapes,target=/runs,readonly" in shown
    assert shown.endswith("/opt/ascendet/venv/bin/tensorboard ascendet-vitdet:1 --logdir=/runs --bind_all")
