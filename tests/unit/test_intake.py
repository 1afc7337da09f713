"""`make data FROM=…`: data sets in every layout are taken in whole, or refused by name with nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import custom
import pytest
from ascendet import cli, paths
from ascendet.core import manifest
from ascendet.data import data, datasets, intake
from ascendet.errors import AscendetError
from ascendet.supply import archive, assets


@pytest.fixture(autouse=True)
def _here(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_enter_tools", lambda argv: None)
    monkeypatch.delenv("ASCENDET_DATA", raising=False)


def take(origin: Path, name: str = "mine", val: str = "", seed: str = "0") -> Path:
    return intake.take_in(intake.check_options(name, str(origin), val, seed))


def fails(name: str, call: Callable[..., object], *arguments: Any, **named: Any) -> AscendetError:
    with pytest.raises(AscendetError) as caught:
        call(*arguments, **named)
    assert caught.value.name == name, caught.value.render()
    assert caught.value.hint
    return caught.value


def content(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())  # type: ignore[no-any-return]


def classes(folder: Path, split: str) -> list[str]:
    return [category["name"] for category in content(folder, split)["categories"]]


def check_whole(folder: Path, splits: dict[str, int]) -> None:
    """Everything that is annotated is there, nothing else is, and nothing depends on the original."""
    assert {file.name for file in (folder / "annotations").iterdir()} == {
        f"instances_{split}.json" for split in splits
    }
    for split, count in splits.items():
        names = {image["file_name"] for image in content(folder, split)["images"]}
        found = {
            str(path.relative_to(folder / split)) for path in (folder / split).rglob("*") if path.is_file()
        }
        assert names == found
        assert len(names) == count
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert not [path for path in assets.store().iterdir() if path.name.startswith(".tmp-")]
    assert not [problem for problems in data.check_everything().values() for problem in problems]


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as out:
        for path in sorted(folder.rglob("*")):
            out.write(path, path.relative_to(folder.parent))
    return file


# -- layouts --


def test_coco_s_own(tmp_path: Path) -> None:
    folder = take(custom.coco(tmp_path / "in"))
    check_whole(folder, {"train": 4, "val": 2})
    assert classes(folder, "val") == ["cat", "dog"]
    assert {category["id"] for category in content(folder, "train")["categories"]} == {7, 8}
    assert datasets.require("mine", "train", "val") == folder == paths.BUILD / "data" / "mine"


def test_roboflow_s(tmp_path: Path) -> None:
    folder = take(custom.roboflow(tmp_path / "in"))
    check_whole(folder, {"train": 5, "val": 2, "test": 1})
    assert classes(folder, "train") == list(custom.COLOURS), "the project's name is no class"


@pytest.mark.parametrize("pictures", ["images/default", "images", "default", "."])
def test_cvat_s(tmp_path: Path, pictures: str) -> None:
    folder = take(custom.cvat(tmp_path / "in", pictures), val="0.2")
    check_whole(folder, {"train": 8, "val": 2})
    assert classes(folder, "val") == ["cell"]


def test_a_single_file(tmp_path: Path) -> None:
    check_whole(take(custom.single(tmp_path / "in"), val="0.3"), {"train": 7, "val": 3})


@pytest.mark.parametrize("make", [custom.coco, custom.roboflow])
def test_a_zip_with_a_folder_in_it(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = take(zipped(make(tmp_path / "export"), tmp_path / "export.zip"))
    assert datasets.require("mine", "train", "val") == folder
    assert not [path for path in assets.store().iterdir() if path.name.startswith(".tmp-")]


def test_other_annotations_of_coco_are_not_mistaken(tmp_path: Path) -> None:
    root = custom.coco(tmp_path / "in")
    for name in ("captions_train2017.json", "person_keypoints_val2017.json"):
        (root / "annotations" / name).write_text(
            (root / "annotations" / "instances_val2017.json").read_text()
        )
    (root / "settings.json").write_text("{}")
    check_whole(take(root), {"train": 4, "val": 2})


# -- the original, again and again --


def test_originals_stay_and_pictures_are_linked_or_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = custom.coco(tmp_path / "in")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    picture = root / "train2017" / "000000000000.jpg"
    assert (take(root) / "train" / picture.name).stat().st_ino == picture.stat().st_ino

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copied = take(root, "copied") / "train" / picture.name
    assert copied.stat().st_ino != picture.stat().st_ino
    assert copied.read_bytes() == picture.read_bytes()
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_folders_behind_links(tmp_path: Path) -> None:
    root = custom.coco(tmp_path / "in")
    (tmp_path / "linked").mkdir()
    for name in ("annotations", "train2017", "val2017"):
        (tmp_path / "linked" / name).symlink_to(root / name)
    (root / "train2017" / "loop").symlink_to(root)
    check_whole(take(tmp_path / "linked"), {"train": 4, "val": 2})


def test_again_is_nothing_to_do_and_other_files_need_another_name(tmp_path: Path) -> None:
    root = custom.cvat(tmp_path / "in")
    folder = take(root, val="0.2")
    made = (folder / "manifest.json").stat().st_mtime_ns
    assert take(root, val="0.2") == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == made
    assert "rm -r" in fails("name-in-use", take, root, val="0.3").hint
    (root / "images" / "default" / "a" / "0.png").touch()
    fails("name-in-use", take, root, val="0.2")
    assert take(root, "other", val="0.2").name == "other"


def test_a_second_clone_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(custom.coco(tmp_path / "in"))
    monkeypatch.setattr(paths, "BUILD", tmp_path / "second")
    assert datasets.require("mine", "val") == tmp_path / "second" / "data" / "mine"


def test_the_user_s_data_folder_holds_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path / "data"))
    folder = take(custom.coco(tmp_path / "in"))
    assert folder == tmp_path / "data" / "mine"
    assert not folder.is_symlink(), "containers mount this folder"


def test_killed_on_the_way(tmp_path: Path) -> None:
    """By SIGKILL between the first picture and the last: nothing has its name, and the next call makes it whole."""
    root = custom.cvat(tmp_path / "in", count=30)
    program = f"""
        import os, signal
        from pathlib import Path
        from ascendet import paths
        from ascendet.data import intake, splits
        paths.BUILD, paths.CACHE = Path({str(paths.BUILD)!r}), Path({str(paths.CACHE)!r})
        whole, count = splits._link_file, []
        def bring(source, target):
            count.append(target)
            if len(count) == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(source, target)
        splits._link_file = bring
        intake.take_in(intake.check_options("mine", {str(root)!r}, "0.2", "0"))
    """
    environ = os.environ | {"PYTHONPATH": str(paths.ROOT / "scripts")}
    lines = "\n".join(line.removeprefix(" " * 8) for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], env=environ, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (assets.store() / "mine").exists()
    assert [path.name for path in assets.store().iterdir() if path.name.startswith(".tmp-")]
    fails("dataset-unknown", datasets.find, "mine")
    check_whole(take(root, val="0.2"), {"train": 24, "val": 6})


def test_damage_is_found(tmp_path: Path) -> None:
    folder = take(custom.coco(tmp_path / "in"))
    picture = folder / "val" / "000000000001.jpg"
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    (folder / "annotations" / "instances_train.json").write_text("{}")
    found = data.check_everything()
    assert "000000000001.jpg" in found["mine/val"][0]
    assert found["mine/annotations"] == ["annotations/instances_train.json is damaged or missing"]
    assert found["mine/train"] == []


# -- validation split --


def test_the_seed_decides(tmp_path: Path) -> None:
    root = custom.single(tmp_path / "in", 40)

    def chosen(name: str, seed: str) -> set[str]:
        return {image["file_name"] for image in content(take(root, name, "0.25", seed), "val")["images"]}

    assert chosen("a", "0") == chosen("b", "0") != chosen("c", "1")
    assert len(chosen("a", "0")) == 10
    first, rest = (content(take(root, "a", "0.25"), split) for split in ("val", "train"))
    for one in (first, rest):
        assert {item["image_id"] for item in one["annotations"]} == {image["id"] for image in one["images"]}
    assert len(first["annotations"]) + len(rest["annotations"]) == 80


@pytest.mark.parametrize("val", ["0.001", "0.999"])
def test_neither_part_is_empty(tmp_path: Path, val: str) -> None:
    folder = take(custom.single(tmp_path / "in", 2), val=val)
    check_whole(folder, {"train": 1, "val": 1})


def test_splits_of_different_classes_are_joined_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = custom.coco(tmp_path / "in")
    custom.write(
        root / "annotations" / "instances_val2017.json",
        custom.draw(root / "val2017", ["0.png"], ("dog", "cow"), first=1),
    )
    folder = take(root)
    assert classes(folder, "train") == classes(folder, "val") == ["cat", "dog", "cow"]
    names = {category["id"]: category["name"] for category in content(folder, "val")["categories"]}
    assert [names[one["category_id"]] for one in content(folder, "val")["annotations"]] == ["dog", "cow"]
    assert "joined by name" in capsys.readouterr().err


# -- refused --


@pytest.mark.parametrize("name", ["", "../x", ".x", "a/b", "a b", "weights", "archives", "größe", "-x"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    fails("usage", take, custom.coco(tmp_path / "in"), name)


@pytest.mark.parametrize("name", ["coco", "shapes", "coco-val200"])
def test_our_names_are_taken(tmp_path: Path, name: str) -> None:
    assert fails("name-in-use", take, tmp_path, name).hint == f"DATASET=my-{name}"


@pytest.mark.parametrize(
    ("val", "seed"), [("1", "0"), ("0", "0"), ("-1", "0"), ("x", "0"), ("nan", "0"), ("0.1", "x")]
)
def test_parts_and_seeds_that_cannot_be(tmp_path: Path, val: str, seed: str) -> None:
    fails("usage", take, tmp_path, "mine", val, seed)


def test_what_is_not_there_or_no_data_set(tmp_path: Path) -> None:
    fails("data-missing", take, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert fails("data-invalid", take, tmp_path / "empty").found == "an empty folder"
    (tmp_path / "file.zip").write_text("no zip")
    fails("archive-invalid", take, tmp_path / "file.zip")
    assert not (assets.store() / "mine").exists()


def test_no_validation_split_names_the_command(tmp_path: Path) -> None:
    root = custom.single(tmp_path / "in")
    assert fails("data-invalid", take, root).hint == f"make data DATASET=mine FROM={root} VAL=0.1"
    fails("usage", take, custom.coco(tmp_path / "two"), val="0.1")


@pytest.mark.parametrize(
    ("text", "rule"),
    [("", "not-json"), ('{"images": [', "not-json"), ("[]", "not-coco"), ('{"a": 1}', "not-coco")],
)
def test_a_file_called_like_annotations_is_checked_whatever_it_holds(
    tmp_path: Path, text: str, rule: str
) -> None:
    for root, file in (
        (custom.coco(tmp_path / "coco"), "annotations/instances_val2017.json"),
        (custom.roboflow(tmp_path / "roboflow"), "valid/_annotations.coco.json"),
        (custom.single(tmp_path / "single"), "labels.json"),
    ):
        (root / file).write_text(text)
        assert rule in str(
            fails("annotations-invalid", take, root, val="0.5" if file == "labels.json" else "").found
        )
        assert not [path.name for path in assets.store().iterdir() if path.name.startswith(".tmp-")]


def test_a_refused_zip_leaves_nothing_behind(tmp_path: Path) -> None:
    root = custom.coco(tmp_path / "in")
    (root / "annotations/instances_val2017.json").write_text("{")
    fails("annotations-invalid", take, zipped(root, tmp_path / "in.zip"))
    assert not [path.name for path in assets.store().iterdir() if path.name.startswith(".tmp-")]


def test_a_truncated_picture_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = custom.coco(tmp_path / "in")
    picture = root / "train2017" / "000000000000.jpg"
    picture.write_bytes(picture.read_bytes()[:-50])
    check_whole(take(root), {"train": 3, "val": 2})
    assert "picture-unreadable" in capsys.readouterr().err


def test_two_candidates(tmp_path: Path) -> None:
    root = custom.single(tmp_path / "in")
    (root / "more.json").write_text((root / "labels.json").read_text())
    assert fails("data-invalid", take, root).found == "labels.json\nmore.json"
    nested = tmp_path / "both"
    custom.coco(nested / "one")
    custom.coco(nested / "two")
    assert "one/annotations/instances_train2017.json" in str(fails("data-invalid", take, nested).found)


def test_no_picture_and_some_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = custom.coco(tmp_path / "in")
    (root / "train2017" / "000000000000.jpg").unlink()
    check_whole(take(root), {"train": 3, "val": 2})
    assert "picture-missing" in capsys.readouterr().err
    for picture in (root / "train2017").iterdir():
        picture.unlink()
    fails("annotations-invalid", take, root, "other")
    assert not (assets.store() / "other").exists()


@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "a/../../out.png"])
def test_a_zip_that_points_outside(tmp_path: Path, name: str) -> None:
    file = zipped(custom.coco(tmp_path / "in"), tmp_path / "in.zip")
    with zipfile.ZipFile(file, "a") as out:
        out.writestr(name, b"x")
    error = fails("archive-invalid", take, file)
    assert "points outside" in str(error.found)
    assert "rm " not in error.hint, "it is the user's"
    assert not (assets.store() / "mine").exists()


def test_a_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.json", b"0" * 2**25)
    assert "unpacks to more" in str(fails("archive-invalid", take, tmp_path / "bomb.zip").found)


# -- names that are no UTF-8 --


def test_names_that_are_no_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As an unpacked zip from a GBK system has them, and annotations that Python wrote from such a listing."""
    name = os.fsdecode("图.png".encode("gbk"))
    root = custom.single(tmp_path / "in", 3)
    custom.write(root / "labels.json", custom.draw(root / "images", [name, "b.png"], ("nut",)))
    folder = take(root, val="0.5")
    names = {image["file_name"] for split in ("train", "val") for image in content(folder, split)["images"]}
    assert names == {name, "b.png"}
    assert not [problem for problems in data.check_everything().values() for problem in problems]
    assert cli.main(["data", "--dataset", "mine"]) == 0
    capsys.readouterr().out.encode()


def test_a_zip_with_such_names(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("图.png".encode("gbk").decode("cp437"))
    assert archive.file_name(info) == os.fsdecode("图.png".encode("gbk"))
    info.flag_bits |= 0x800
    info.filename = "图.png"
    assert archive.file_name(info) == "图.png"


def test_a_zip_with_such_names_and_annotations_in_utf_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The zip is made on a Windows in Chinese; the annotations are as all tools write them."""
    root = custom.single(tmp_path / "in", 3)
    custom.write(root / "labels.json", custom.draw(root / "images", ["图片.png", "b.png"], ("nut",)))
    (root / "images" / "图片.png").rename(root / "images" / os.fsdecode("图片.png".encode("gbk")))
    folder = take(root, val="0.5")
    assert "file-name-encoding" in capsys.readouterr().err
    names = {image["file_name"] for split in ("train", "val") for image in content(folder, split)["images"]}
    assert names == {os.fsdecode("图片.png".encode("gbk")), "b.png"}


# -- what it says --


def test_the_manifest_says_what_came_from_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = custom.coco(tmp_path / "in")
    assert cli.main(["data", "--dataset", "mine", "--from", str(root), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["splits"] == {
        "train": {"images": 4, "with_objects": 4, "objects": 8},
        "val": {"images": 2, "with_objects": 2, "objects": 4},
    }
    facts = manifest.read(Path(shown["folder"]))
    assert facts is not None
    assert facts["origin"] == str(root)
    assert facts["classes"] == ["cat", "dog"]
    assert set(facts["findings"]) == {  # type: ignore[call-overload]
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
    }
    assert len(str(facts["key"])) == 16


def test_another_data_set_s_work_folder_stays(tmp_path: Path) -> None:
    """`mine-too` is being taken in while `mine` is."""
    others = [assets.store() / f".tmp-mine{rest}" for rest in ("-too+taking", "-too+0123")]
    for other in others:
        other.mkdir(parents=True)
    take(custom.coco(tmp_path / "in"))
    assert all(other.is_dir() for other in others)
