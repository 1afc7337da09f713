"""Files: in place or not at all, hashed, locked."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from ascendet.core import files
from ascendet.errors import AscendetError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.write_text("old")
    with files.replacing(final) as temp:
        temp.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"
    assert names(tmp_path) == ["final"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.write_text("old")
    with pytest.raises(RuntimeError, match="broken"), files.replacing(final) as temp:
        temp.write_text("half")
        raise RuntimeError("broken")
    assert final.read_text() == "old"
    assert names(tmp_path) == ["final"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "final"):
        pass
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / name).write_text(name)
    files.publish(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old/sub") == ["new"]


def test_a_link_is_pointed_elsewhere_in_one_step(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    files.point(link, "one")
    assert link.readlink() == Path("one")
    files.point(link, tmp_path / "two")
    assert link.readlink() == tmp_path / "two"
    assert not link.exists()
    assert names(tmp_path) == ["latest"]


def test_a_folder_is_not_replaced_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(IsADirectoryError):
        files.point(tmp_path / "latest", "one")


def test_only_a_full_disk_is_disk_full(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(AscendetError) as caught, files.disk_errors(tmp_path / "not" / "there"):
            raise OSError(number, os.strerror(number))
        assert caught.value.name == "disk-full"
    with pytest.raises(PermissionError), files.disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(shutil.Error), files.disk_errors(tmp_path):
        raise shutil.Error([("a", "b", "this disk has room")])


def test_space_is_checked_before(tmp_path: Path) -> None:
    files.check_space(tmp_path / "not" / "there", 1)
    with pytest.raises(AscendetError) as caught:
        files.check_space(tmp_path, 2**60, "ASCENDET_CACHE")
    assert caught.value.name == "disk-full"
    assert "set ASCENDET_CACHE to a folder on a larger disk" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"abc", bytes(3 * 2**20)])
def test_digests_by_algorithm(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    found = files.digests(tmp_path / "a", {"sha256", "md5"})
    assert found["sha256"] == files.digest(tmp_path / "a")
    assert len(found["md5"]) == 32


def test_tree_digest_leaves_out_what_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = files.digest_tree(tmp_path)
    (tmp_path / "generated").write_text("2")
    assert files.digest_tree(tmp_path, without={"generated"}) == before != files.digest_tree(tmp_path)


def test_tree_digest_sees_names_contents_and_the_executable_bit(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    digests = {files.digest_tree(tmp_path)}
    (tmp_path / "a").chmod(0o755)
    digests.add(files.digest_tree(tmp_path))
    (tmp_path / "a").write_text("2")
    digests.add(files.digest_tree(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    digests.add(files.digest_tree(tmp_path))
    (tmp_path / "link").symlink_to("b")
    digests.add(files.digest_tree(tmp_path))
    assert len(digests) == 5
    before = files.digest_tree(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/b.pyc").write_text("byte code")
    (tmp_path / "empty").mkdir()
    assert files.digest_tree(tmp_path) == before
