"""`make data`: made once, replaced when its generator changes, COCO only accepted complete."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core import manifest
from ascendet.core.stack import Stack, load_all
from ascendet.data import data, datasets
from ascendet.envs import env
from ascendet.errors import AscendetError
from ascendet.supply import assets, lockfiles

STACK = Stack.load("vitdet")

GENERATOR = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("out", "seed", "train", "val"):
    parser.add_argument("--" + name)
args = parser.parse_args()
(pathlib.Path(args.out) / "train").mkdir()
(pathlib.Path(args.out) / "train" / "one.png").write_text(args.seed)
print(json.dumps({"train": {"images": int(args.train), "with_objects": 1, "objects": 1}}))
"""


def requirements(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> None:
    """A copy of requirements/ with another datasets.toml."""
    shutil.copytree(paths.REQUIREMENTS, folder / "requirements")
    file = folder / "requirements" / "datasets.toml"
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    monkeypatch.setattr(paths, "REQUIREMENTS", folder / "requirements")


@pytest.fixture
def generator(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A generator that needs no stack, in place of the real one (which tests/models runs)."""
    program = tmp_path / "generator.py"
    program.write_text(GENERATOR)
    requirements(tmp_path, monkeypatch, ('generator = "shapes.py"', f'generator = "{program}"'))
    monkeypatch.setattr(env, "ensure_base", lambda stack: Path(sys.executable))
    monkeypatch.delenv("ASCENDET_DATA", raising=False)
    return program


def execute(dataset: str) -> None:
    parser = argparse.ArgumentParser()
    data.configure_parser(parser)
    data.execute(parser.parse_args(["--dataset", dataset]))


def test_shapes_is_made_once(generator: Path, build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute("shapes")
    folder = build / "data" / "shapes"
    assert (folder / "train" / "one.png").read_text() == "0"
    assert "train: 600 pictures, 1 objects" in capsys.readouterr().out
    content = manifest.read(folder)
    assert content is not None
    assert set(content["outputs"]) == {"train/one.png"}  # type: ignore[call-overload]
    made = (folder / "train" / "one.png").stat().st_mtime_ns
    execute("shapes")
    assert (folder / "train" / "one.png").stat().st_mtime_ns == made


def test_another_generator_makes_another_folder(generator: Path, build: Path) -> None:
    first = data.ensure_generated(datasets.find("shapes"), STACK).resolve()
    generator.write_text(GENERATOR + "\n")
    second = data.ensure_generated(datasets.find("shapes"), STACK).resolve()
    assert first != second
    assert first.is_dir()
    assert (build / "data" / "shapes").resolve() == second


def test_stacks_that_pin_equal_libraries_share_what_was_made(
    generator: Path, build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = datasets.find("shapes"), Stack.load("blendmask")
    assert other.packages != STACK.packages
    first = data.ensure_generated(one, STACK).resolve()
    assert data.ensure_generated(one, other).resolve() == first
    lock = shutil.copytree(paths.LOCK, tmp_path / "lock") / lockfiles.packages_lock(other.packages).name
    lock.write_text(re.sub(r"^numpy==\S+", "numpy==1.0", lock.read_text(), flags=re.MULTILINE))
    monkeypatch.setattr(paths, "LOCK", lock.parent)
    assert data.ensure_generated(one, other).resolve() != first


def test_a_generator_that_fails_leaves_nothing(generator: Path, build: Path) -> None:
    generator.write_text(GENERATOR + "\nraise SystemExit('no such colour')\n")
    with pytest.raises(AscendetError) as caught:
        execute("shapes")
    assert caught.value.name == "command-failed"
    assert caught.value.found == "no such colour"
    assert not (build / "data" / "shapes").exists()
    assert not [
        path for path in (build / "data").rglob("*") if path.is_dir() and path.name.startswith(".tmp")
    ]


def test_a_folder_of_the_user_s_is_not_replaced(generator: Path, build: Path) -> None:
    own = build / "data" / "shapes"
    own.mkdir(parents=True)
    (own / "mine.txt").write_text("precious")
    with pytest.raises(AscendetError) as caught:
        execute("shapes")
    assert caught.value.name == "data-invalid"
    assert (own / "mine.txt").read_text() == "precious"


def test_the_data_folder_is_the_user_s_choice(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path / "mine"))
    assert data.ensure_generated(datasets.find("shapes"), STACK) == tmp_path / "mine" / "shapes"
    assert (tmp_path / "mine" / "shapes" / "train" / "one.png").is_file()


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path))
    requirements(tmp_path, monkeypatch, ("118_287", "3"), ("5_000", "2"))
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train2017", 3), ("val2017", 2)):
        (folder / "annotations" / f"instances_{split}.json").write_text("{}")
        (folder / split).mkdir()
        for number in range(count):
            (folder / split / f"{number:012d}.jpg").touch()
    return folder


def test_a_complete_coco_is_accepted(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute("coco")
    assert str(coco) in capsys.readouterr().out


def test_no_coco_names_the_next_command(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASCENDET_DATA", raising=False)
    with pytest.raises(AscendetError) as caught:
        datasets.require("coco")
    assert caught.value.name == "data-missing"
    assert caught.value.found == "none of them"
    assert caught.value.hint.startswith("make data DATASET=coco\n")
    assert "make data DATASET=shapes" in caught.value.hint
    assert not build.exists()


def test_what_is_missing_of_coco_is_named(coco: Path) -> None:
    (coco / "annotations" / "instances_train2017.json").unlink()
    with pytest.raises(AscendetError) as caught:
        datasets.require("coco")
    assert caught.value.name == "data-missing"
    assert caught.value.found == "all except annotations/instances_train2017.json"


def test_an_incomplete_split_is_named(coco: Path) -> None:
    (coco / "val2017" / f"{0:012d}.jpg").unlink()
    with pytest.raises(AscendetError) as caught:
        datasets.require("coco")
    assert caught.value.name == "data-invalid"
    assert caught.value.found == "1 pictures"
    assert caught.value.hint.endswith("make data DATASET=coco")


def test_an_unknown_data_set_is_refused(build: Path) -> None:
    with pytest.raises(AscendetError) as caught:
        execute("imagenet")
    assert caught.value.name == "dataset-unknown"
    assert "make data DATASET=imagenet FROM=" in caught.value.hint
    assert caught.value.expected == "shapes, coco, coco-val, coco-val200"


def test_a_folder_in_coco_s_layout_is_a_data_set(coco: Path) -> None:
    """Brought by hand, without a manifest."""
    (coco.parent / "mine" / "annotations").mkdir(parents=True)
    (coco.parent / "mine" / "annotations" / "instances_val.json").write_text("{}")
    (coco.parent / "mine" / "val").mkdir()
    assert datasets.require("mine", "val") == coco.parent / "mine"
    assert datasets.list_taken_in() == ["mine"]
    with pytest.raises(AscendetError) as caught:
        datasets.require("mine", "train", "val")
    assert caught.value.what == "the data set mine has no split to train on"


def test_a_part_of_coco_is_in_its_folder_or_has_its_own(coco: Path) -> None:
    assert datasets.require("coco-val", "val") == coco
    with pytest.raises(AscendetError) as caught:
        datasets.require("coco-val200", "val")
    assert caught.value.hint.startswith("make data DATASET=coco-val200\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('part_of = "coco"\n', 'part_of = "cocoa"\n'),
        ('part_of = "coco"\n', ""),
        ("splits = { val2017 = 200 }", "splits = { odd = 200 }"),
        ("classes = 3", "classses = 3"),
        ("[shapes]", "[shapes"),
    ],
)
def test_a_table_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    requirements(tmp_path, monkeypatch, (old, new))
    with pytest.raises(AscendetError) as caught:
        datasets.load()
    assert caught.value.name == "data-lock-invalid"


def test_the_table_and_the_lock_name_the_same_files() -> None:
    wanted = {
        name for one in datasets.load().values() for name in (*one.archives.values(), one.pictures) if name
    }
    assert wanted <= assets.load().keys()
    assert all(
        (paths.WHEELS / "common/ascendet_common" / one.generator).exists() for one in datasets.load().values()
    )
    for stack in load_all().values():
        pinned = lockfiles.pins(lockfiles.packages_lock(stack.packages).read_text())
        assert {name for one in datasets.load().values() for name in one.libraries} <= pinned.keys()


def test_a_folder_that_cannot_be_made_is_named(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(AscendetError) as caught:
        execute("shapes")
    assert caught.value.name == "data-invalid"
    assert caught.value.found == "Not a directory"
