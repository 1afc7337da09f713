"""Source distributions: the hash is the authority, and an archive cannot write where it likes."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ascendet import files, paths, sources
from ascendet.errors import AscendetError

NAME = "thing-1.0.tar.gz"


def archive(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An empty cache, and a function that locks NAME to a hash."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "LOCK", tmp_path)
    (tmp_path / "sources.toml").touch()
    return lambda sha256: (
        (tmp_path / "sources.toml").write_text(f'["{NAME}"]\nsha256 = "{sha256}"\n') and None
    )


def fake_pip(tmp_path: Path, *, delivers: Path | None, stderr: str = "") -> list[str]:
    """A pip that puts a file into --dest, or fails with a message."""
    script = tmp_path / "pip.py"
    script.write_text(
        "import shutil, sys\n"
        f"sys.stderr.write({stderr!r})\n"
        f"delivers = {str(delivers) if delivers else None!r}\n"
        "if delivers is None: sys.exit(1)\n"
        f"shutil.copy(delivers, sys.argv[sys.argv.index('--dest') + 1] + '/{NAME}')\n"
    )
    return [sys.executable, str(script)]


def test_fetches_once_and_then_from_the_cache(tmp_path: Path, lock: Callable[[str], None]) -> None:
    made = archive(tmp_path / "made.tar.gz", ("thing-1.0/setup.py", b"print()"))
    lock(files.digest(made))
    first = sources.fetch(NAME, fake_pip(tmp_path, delivers=made))
    assert first.read_bytes() == made.read_bytes()
    assert sources.fetch(NAME, ["/nonexistent/pip"]) == first


def test_damaged_file_in_the_cache_is_replaced(
    tmp_path: Path, lock: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    made = archive(tmp_path / "made.tar.gz", ("thing-1.0/setup.py", b"print()"))
    lock(files.digest(made))
    pip = fake_pip(tmp_path, delivers=made)
    path = sources.fetch(NAME, pip)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert sources.fetch(NAME, pip).read_bytes() == made.read_bytes()
    assert "removed" in capsys.readouterr().out


def test_other_file_than_locked_is_refused_and_not_kept(tmp_path: Path, lock: Callable[[str], None]) -> None:
    lock("0" * 64)
    made = archive(tmp_path / "made.tar.gz", ("thing-1.0/setup.py", b"print()"))
    with pytest.raises(AscendetError) as caught:
        sources.fetch(NAME, fake_pip(tmp_path, delivers=made))
    assert caught.value.name == "sdist-hash-mismatch"
    assert files.digest(made) in (caught.value.found or "")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_hash_that_pip_refuses_has_the_same_name(tmp_path: Path, lock: Callable[[str], None]) -> None:
    lock("0" * 64)
    said = f"ERROR: … DO NOT MATCH THE HASHES …\n  Expected sha256 {'0' * 64}\n       Got        {'a' * 64}\n"
    with pytest.raises(AscendetError) as caught:
        sources.fetch(NAME, fake_pip(tmp_path, delivers=None, stderr=said))
    assert (caught.value.name, caught.value.found) == ("sdist-hash-mismatch", f"sha256:{'a' * 64}")


def test_no_network(tmp_path: Path, lock: Callable[[str], None]) -> None:
    lock("0" * 64)
    with pytest.raises(AscendetError) as caught:
        sources.fetch(NAME, fake_pip(tmp_path, delivers=None, stderr="ERROR: no such host"))
    assert caught.value.name == "sdist-download-failed"
    assert caught.value.found == "ERROR: no such host"


@pytest.mark.usefixtures("lock")
def test_without_a_hash_nothing_is_fetched() -> None:
    with pytest.raises(AscendetError) as caught:
        sources.fetch(NAME, ["/nonexistent/pip"])
    assert caught.value.name == "sdist-unlocked"


def test_unpack_keeps_contents_and_executable_bit(tmp_path: Path) -> None:
    script = tarfile.TarInfo("thing-1.0/run")
    script.mode, script.size = 0o4755, 2  # set-uid is dropped
    with tarfile.open(tmp_path / NAME, "w:gz") as file:
        file.addfile(script, io.BytesIO(b"#!"))
    top = sources.unpack(tmp_path / NAME, tmp_path / "out")
    assert top == tmp_path / "out" / "thing-1.0"
    assert (top / "run").read_bytes() == b"#!"
    assert (top / "run").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    "member",
    [
        ("/etc/evil", b"x"),
        ("thing-1.0/../../evil", b"x"),
        special("thing-1.0/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("thing-1.0/hard", tarfile.LNKTYPE, "thing-1.0/a"),
        special("thing-1.0/pipe", tarfile.FIFOTYPE),
        special("thing-1.0/disk", tarfile.BLKTYPE),
        ("second-top/a", b"x"),
    ],
    ids=["absolute", "parent", "symlink", "hardlink", "fifo", "device", "two tops"],
)
def test_unpack_refuses_members_that_have_no_business_there(
    tmp_path: Path, member: tarfile.TarInfo | tuple[str, bytes]
) -> None:
    path = archive(tmp_path / NAME, ("thing-1.0/a", b"a"), member)
    with pytest.raises(AscendetError) as caught:
        sources.unpack(path, tmp_path / "out")
    assert caught.value.name == "sdist-corrupt"
    assert not list(tmp_path.glob("**/evil"))


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped", "empty"])
def test_unpack_names_a_damaged_archive(tmp_path: Path, damage: str) -> None:
    path = archive(tmp_path / NAME, ("thing-1.0/a", bytes(range(256)) * 500))
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(
        {"cut": bytes(content[:-40]), "garbage": b"no archive", "flipped": bytes(content), "empty": b""}[
            damage
        ]
    )
    with pytest.raises(AscendetError) as caught:
        sources.unpack(path, tmp_path / "out")
    assert caught.value.name == "sdist-corrupt"


def test_unpack_refuses_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MAX_BYTES", 1000)
    path = archive(tmp_path / NAME, ("thing-1.0/a", bytes(1001)))
    with pytest.raises(AscendetError) as caught:
        sources.unpack(path, tmp_path / "out")
    assert caught.value.name == "sdist-corrupt"
