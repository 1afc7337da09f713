"""Comparing two builds of a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
from ascendet.core import files
from ascendet.errors import AscendetError
from ascendet.wheels import check_repro, wheelfile


def make(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    info = "thing-1.dist-info"
    files = {
        f"{info}/METADATA": wheelfile.metadata({"name": "thing"}, "1"),
        f"{info}/WHEEL": wheelfile.wheel_metadata("py3-none-any", pure=True),
        "thing/a.py": b"same",
        "thing/b.py": content,
    }
    return wheelfile.write(folder, "thing", "1", "py3-none-any", files)


def test_same_bytes_pass(tmp_path: Path) -> None:
    check_repro.compare(make(tmp_path / "1", b"x"), make(tmp_path / "2", b"x"))


def test_difference_names_the_member(tmp_path: Path) -> None:
    first, second = make(tmp_path / "1", b"x"), make(tmp_path / "2", b"y")
    with pytest.raises(AscendetError) as caught:
        check_repro.compare(first, second)
    assert caught.value.name == "not-reproducible"
    assert caught.value.expected == files.digest(first)
    assert (caught.value.found or "").endswith("in: thing/b.py")


def test_difference_of_the_archive_alone_counts(tmp_path: Path) -> None:
    first, second = make(tmp_path / "1", b"x"), make(tmp_path / "2", b"x")
    with second.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(AscendetError):
        check_repro.compare(first, second)
