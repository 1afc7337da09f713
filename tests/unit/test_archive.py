"""Archives are unpacked whole, in parallel, and believed nothing."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest
from ascendet.errors import AscendetError
from ascendet.supply import archive


def make(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def refused(path: Path, folder: Path, limit: int = 10**6) -> str:
    with pytest.raises(AscendetError) as caught:
        archive.unpack(path, folder, top="val", limit=limit)
    assert caught.value.name == "archive-invalid"
    return str(caught.value.found)


class OldInfo(zipfile.ZipInfo):
    """A member whose name is written in code page 437 and without the flag for UTF-8."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # zipfile's
        return self.filename.encode("cp437"), self.flag_bits & ~0x800


FILES = {f"val/{number:03d}.jpg": bytes([number]) * 1000 * number for number in range(50)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_unpacks_everything(tmp_path: Path, folder: Path) -> None:
    path = make(tmp_path / "a.zip", FILES)
    members = archive.unpack(path, folder, top="val", limit=10**7)
    assert {f"val/{file.name}": file.read_bytes() for file in folder.iterdir()} == FILES
    assert members["002.jpg"] == archive.content(folder / "002.jpg")
    assert all(file.stat().st_mode & 0o222 == 0 for file in folder.iterdir()), "shared, so read-only"
    assert archive.compare(folder, members) == []


def test_goes_on_where_it_stopped(tmp_path: Path, folder: Path) -> None:
    path = make(tmp_path / "a.zip", FILES)
    archive.unpack(path, folder, top="val", limit=10**7)
    (folder / "007.jpg").chmod(0o644)
    (folder / "007.jpg").write_bytes(b"half")  # what a crash of the machine leaves
    (folder / "008.jpg").unlink()
    kept = (folder / "009.jpg").stat().st_ino
    archive.unpack(path, folder, top="val", limit=10**7)
    assert {f"val/{file.name}": file.read_bytes() for file in folder.iterdir()} == FILES
    assert (folder / "009.jpg").stat().st_ino == kept, "what was whole is not written again"


def test_damage_is_found_later(tmp_path: Path, folder: Path) -> None:
    members = archive.unpack(make(tmp_path / "a.zip", FILES), folder, top="val", limit=10**7)
    (folder / "007.jpg").chmod(0o644)
    (folder / "007.jpg").write_bytes(b"\7" * 6999 + b"\6")
    (folder / "008.jpg").unlink()
    problems = archive.compare(folder, members)
    assert [problem.split()[0] for problem in problems] == ["007.jpg:", "008.jpg"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "val/../../evil", "../evil", "other/x", "val\\..\\evil", "val"]
)
def test_members_that_point_outside(tmp_path: Path, folder: Path, name: str) -> None:
    refused(make(tmp_path / "a.zip", {"val/a": b"1", name: b"2"}), folder)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "a", "x")], (
        "nothing is written before"
    )


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path: Path, folder: Path, kind: int) -> None:
    info = zipfile.ZipInfo("val/link")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    assert "neither a file nor a folder" in refused(tmp_path / "a.zip", folder)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(tmp_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("val/a", b"1")
        file.writestr("val/a", b"2")
    assert "twice" in refused(tmp_path / "a.zip", folder)


def test_a_bomb(tmp_path: Path, folder: Path) -> None:
    path = make(tmp_path / "a.zip", {f"val/{number}": bytes(10**6) for number in range(20)})
    assert path.stat().st_size < 10**5
    assert "more than" in refused(path, folder, limit=10**7)
    assert not list(folder.iterdir())


def test_a_bomb_that_lies_about_its_size(tmp_path: Path, folder: Path) -> None:
    path = make(tmp_path / "a.zip", {"val/a": bytes(10**6)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace((10**6).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    refused(path, folder, limit=1000)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 1000


def test_an_encrypted_member(tmp_path: Path, folder: Path) -> None:
    path = make(tmp_path / "a.zip", {"val/a": b"1"}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)
    assert "encrypted" in refused(path, folder)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_member_s_crc_is_verified(tmp_path: Path, folder: Path, compression: int) -> None:
    path = make(tmp_path / "a.zip", {"val/a": bytes(range(256)) * 40, "val/b": b"whole"}, compression)
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(raw)
    refused(path, folder)
    assert not (folder / "a").exists(), "a damaged member gets no final name"


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", None], ids=["empty", "html", "cut"])
def test_no_archive(tmp_path: Path, folder: Path, content: bytes | None) -> None:
    path = make(tmp_path / "a.zip", FILES)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    refused(path, folder)


@pytest.mark.parametrize("encoding", ["gbk", "big5", "shift_jis"])
def test_a_byte_of_a_character_is_no_backslash(tmp_path: Path, folder: Path, encoding: str) -> None:
    """The second byte of these is 0x5C. Tools without the flag for UTF-8 write a system's own encoding."""
    name = {"gbk": "誠.jpg", "big5": "功.jpg", "shift_jis": "表.jpg"}[encoding].encode(encoding)
    assert b"\\" in name
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(OldInfo("val/" + name.decode("cp437")), b"x")
    archive.unpack(path, folder, top="", limit=100)
    assert [os.fsencode(found.name) for found in (folder / "val").iterdir()] == [name]


def test_a_backslash_is_refused(tmp_path: Path, folder: Path) -> None:
    assert "points outside" in refused(make(tmp_path / "a.zip", {"val/..\\..\\evil.jpg": b""}), folder)
    assert "points outside" in refused(make(tmp_path / "b.zip", {"val/\u8868\\evil.jpg": b""}), folder)
