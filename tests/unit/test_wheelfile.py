"""Wheels: written the same every time, read without trust."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from ascendet.errors import AscendetError
from ascendet.wheels import wheelfile

TAG = "py3-none-any"
INFO = "a_thing-1.0+x.dist-info"


def contents() -> dict[str, bytes]:
    return {
        "a_thing/__init__.py": b"answer = 42\n",
        "a_thing/with,comma.py": b"",
        "a_thing/lib.so": bytes(range(256)) * 40,
        f"{INFO}/METADATA": wheelfile.metadata({"name": "a-thing", "description": "A thing"}, "1.0+x"),
        f"{INFO}/WHEEL": wheelfile.wheel_metadata(TAG, pure=True),
    }


def make(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    return wheelfile.write(folder, "a-thing", "1.0+x", TAG, files or contents())


def edit(path: Path, **changes: bytes | None) -> None:
    """Write the archive again with members (by last part of the name) replaced or, for None, left out."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            changed = changes.get(name.rpartition("/")[2].partition(".")[0], content)
            if changed is not None:
                archive.writestr(name, changed)


def test_same_bytes_whenever_and_in_whatever_order(tmp_path: Path) -> None:
    first = make(tmp_path / "1")
    time.sleep(0.01)
    second = make(tmp_path / "2", dict(reversed(contents().items())))
    assert first.name == "a_thing-1.0+x-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()


def test_archive_is_sorted_dated_alike_and_ends_with_record(tmp_path: Path) -> None:
    with zipfile.ZipFile(make(tmp_path)) as archive:
        infos = archive.infolist()
    names = [info.filename for info in infos]
    assert names[:-1] == sorted(names[:-1])
    assert names[-1] == f"{INFO}/RECORD"
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {oct(info.external_attr >> 16) for info in infos} == {"0o100644", "0o100755"}


def test_pip_installs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--target"]
    subprocess.run([*command, tmp_path / "site", make(tmp_path / "1")], check=True)
    assert (tmp_path / "site/a_thing/__init__.py").read_bytes() == b"answer = 42\n"
    assert "1.0+x" in (tmp_path / f"site/{INFO}/METADATA").read_text()


def test_reads_what_it_wrote(tmp_path: Path) -> None:
    wheel = wheelfile.read(make(tmp_path))
    assert dict(wheel.files) == contents()
    assert (wheel.name, wheel.version, wheel.tags) == ("a-thing", "1.0+x", ("py3", "none", "any"))


def test_another_version_of_the_same(tmp_path: Path) -> None:
    wheel = wheelfile.read(make(tmp_path))
    path = wheelfile.write(tmp_path, "a-thing", "1.0+y", TAG, wheelfile.with_version(wheel, "1.0+y"))
    again = wheelfile.read(path)
    assert again.version == "1.0+y"
    assert again.dist_info == "a_thing-1.0+y.dist-info"
    assert again.files["a_thing/__init__.py"] == b"answer = 42\n"


def refused(path: Path) -> str:
    with pytest.raises(AscendetError) as caught:
        wheelfile.read(path)
    assert caught.value.name == "wheel-corrupt"
    return caught.value.found or ""


@pytest.mark.parametrize("kept", [0, 10, 0.5, -30])
def test_cut_off(tmp_path: Path, kept: float) -> None:
    path = make(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    refused(path)


def test_one_flipped_byte_anywhere_in_a_member(tmp_path: Path) -> None:
    path = make(tmp_path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("a_thing/lib.so")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 1
    path.write_bytes(content)
    refused(path)


def test_member_that_differs_from_record(tmp_path: Path) -> None:
    path = make(tmp_path)
    edit(path, lib=b"other")
    assert "lib.so has another digest than in RECORD" in refused(path)


def test_member_that_record_lacks(tmp_path: Path) -> None:
    path = make(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a_thing/evil.py", b"")
    assert "does not list a_thing/evil.py" in refused(path)


def test_member_that_is_missing(tmp_path: Path) -> None:
    path = make(tmp_path)
    edit(path, lib=None)
    assert "lists a_thing/lib.so, which is missing" in refused(path)


@pytest.mark.parametrize("part", ["RECORD", "METADATA", "WHEEL"])
def test_part_of_dist_info_that_is_missing(tmp_path: Path, part: str) -> None:
    path = make(tmp_path)
    edit(path, **{part: None})
    assert f"{part} is missing" in refused(path)


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "a\\b.py"])
def test_member_that_points_outside(tmp_path: Path, name: str) -> None:
    assert "points outside" in refused(make(tmp_path, {**contents(), name: b""}))


def test_version_that_the_file_name_contradicts(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert "has version 1.0+x" in refused(path.rename(path.with_name("a_thing-2.0-py3-none-any.whl")))


def test_two_dist_infos(tmp_path: Path) -> None:
    assert "2 dist-info folders" in refused(make(tmp_path, {**contents(), "b-1.dist-info/METADATA": b""}))


def test_name_that_is_no_wheel_s_and_file_that_is_not_there(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert "is not a wheel's name" in refused(path.rename(path.with_name("thing.zip")))
    assert "does not exist" in refused(tmp_path / "a-1-py3-none-any.whl")
