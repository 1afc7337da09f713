"""Source distributions: the hash is the authority, and an archive cannot write where it likes."""

from __future__ import annotations

import functools
import http.server
import io
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ascendet import paths
from ascendet.core import files
from ascendet.core.stack import Upstream
from ascendet.errors import AscendetError
from ascendet.supply import blobs, sources, unpack

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
    top = unpack.unpack(tmp_path / NAME, tmp_path / "out")
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
        unpack.unpack(path, tmp_path / "out")
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
        unpack.unpack(path, tmp_path / "out")
    assert caught.value.name == "sdist-corrupt"


def test_unpack_refuses_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_MAX_BYTES", 1000)
    path = archive(tmp_path / NAME, ("thing-1.0/a", bytes(1001)))
    with pytest.raises(AscendetError) as caught:
        unpack.unpack(path, tmp_path / "out")
    assert caught.value.name == "sdist-corrupt"


# -- a commit, and a list of blobs, as the authority --


FILES = {"setup.py": b"print()\r\n", "package/a.py": b"# $Format:%H$\n", "left/out.py": b""}


@pytest.fixture
def repository(
    tmp_path: Path, lock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """A bare git repository of `thing` and its only commit, whose attributes would change what an archive holds."""
    monkeypatch.setattr(paths, "REQUIREMENTS", tmp_path)
    monkeypatch.delenv("SOURCE_MIRROR", raising=False)
    work = tmp_path / "work"
    for name, content in FILES.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    (work / ".gitattributes").write_text("* export-subst text=auto eol=crlf\nleft export-ignore\n")
    (work / "link").symlink_to("setup.py")

    def git(*arguments: str) -> str:
        options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=false"]
        command = ["git", *options, *arguments]
        return subprocess.run(command, cwd=work, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    for name, content in FILES.items():  # as they are, whatever the attributes say
        (work / ".blob").write_bytes(content)
        blob = git("hash-object", "-w", "--no-filters", ".blob")
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}")
    git("add", ".gitattributes", "link")
    git("commit", "--quiet", "--message=a")
    git("clone", "--quiet", "--bare", ".", str(tmp_path / "thing.git"))
    return tmp_path / "thing.git", git("rev-parse", "HEAD")


def write_blobs(tmp_path: Path, *names: str) -> str:
    lines = [f"{blobs.blob_id(FILES[name])}  {name}" for name in names or FILES]
    (tmp_path / "thing.blobs").write_text("\n".join(lines) + "\n")
    return "thing.blobs"


def contents(tree: Path) -> dict[str, bytes]:
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in files.walk(tree)}


def obtain(pin: Upstream, folder: Path, pip: list[str] | None = None) -> dict[str, bytes]:
    shutil.rmtree(folder, ignore_errors=True)
    return contents(sources.obtain("thing", pin, pip or ["/nonexistent/pip"], folder))


def test_commit_is_fetched_byte_by_byte_once(
    repository: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, commit = repository
    pin = Upstream(version="1.0", commit=commit, places=(str(place),))
    found = obtain(pin, tmp_path / "out")
    assert {name: found[name] for name in FILES} == FILES
    assert found.keys() == {*FILES, ".gitattributes"}
    assert "1 symbolic links are left out, such as thing-1.0/link" in capsys.readouterr().out
    place.rename(tmp_path / "gone.git")
    assert obtain(pin, tmp_path / "out") == found
    (archive,) = (tmp_path / "cache").rglob("*.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-1] + b"!")
    with pytest.raises(AscendetError) as caught:
        obtain(pin, tmp_path / "out")
    assert caught.value.name == "sdist-download-failed"
    assert "it has changed since it was fetched" in capsys.readouterr().out
    (tmp_path / "gone.git").rename(place)
    assert obtain(pin, tmp_path / "out") == found


def test_commit_that_the_repository_does_not_have(repository: tuple[Path, str], tmp_path: Path) -> None:
    place, commit = repository
    for wrong, name in (("0" * 40, "sdist-download-failed"), (commit[:8], "sdist-unlocked")):
        with pytest.raises(AscendetError) as caught:
            obtain(Upstream(version="1.0", commit=wrong, places=(str(place),)), tmp_path / "out")
        assert caught.value.name == name


def test_mirror_comes_first(
    repository: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, commit = repository
    pin = Upstream(version="1.0", commit=commit, places=("https://nowhere.invalid/thing.git",))
    monkeypatch.setenv("SOURCE_MIRROR", str(place.parent))
    assert FILES.items() <= obtain(pin, tmp_path / "out").items()
    other = Upstream(version="2.0", commit="1" * 40, places=(str(place),))
    monkeypatch.setenv("SOURCE_MIRROR", str(tmp_path / "work"))
    with pytest.raises(AscendetError):
        obtain(other, tmp_path / "out")
    assert "has neither thing-2.0.tar.gz nor thing.git" in capsys.readouterr().out


def test_mirror_s_sdist_is_held_to_the_locked_hash(
    tmp_path: Path,
    lock: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = archive(tmp_path / "made.tar.gz", ("thing-1.0/setup.py", b"print()"))
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("SOURCE_MIRROR", str(mirror))
    shutil.copy(made, mirror / NAME)
    lock(files.digest(made))
    assert sources.fetch(NAME, ["/nonexistent/pip"]).read_bytes() == made.read_bytes()
    shutil.rmtree(tmp_path / "cache")
    (mirror / NAME).write_bytes(b"other")
    capsys.readouterr()
    assert sources.fetch(NAME, fake_pip(tmp_path, delivers=made)).read_bytes() == made.read_bytes()
    assert str(mirror / NAME) in capsys.readouterr().err, "whose keeper should know"
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(AscendetError) as caught:
        sources.fetch(NAME, fake_pip(tmp_path, delivers=None))
    assert caught.value.name == "sdist-hash-mismatch"
    assert str(mirror / NAME) in (caught.value.found or "")
    assert "pip could not download" in (caught.value.found or "")


def test_listed_files_and_no_others(repository: tuple[Path, str], tmp_path: Path) -> None:
    place, commit = repository
    pin = Upstream(
        version="1.0",
        commit=commit,
        blobs=write_blobs(tmp_path, "setup.py", "package/a.py"),
        places=(str(place),),
    )
    assert obtain(pin, tmp_path / "out") == {name: FILES[name] for name in ("setup.py", "package/a.py")}


def test_sdist_with_listed_files_may_hold_more(
    tmp_path: Path, lock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "REQUIREMENTS", tmp_path)
    members = [(f"thing-1.0/{name}", content) for name, content in FILES.items()]
    made = archive(tmp_path / "made.tar.gz", *members, ("thing-1.0/PKG-INFO", b"more"))
    lock(files.digest(made))
    pin = Upstream(version="1.0", sdist=NAME, blobs=write_blobs(tmp_path))
    pip = fake_pip(tmp_path, delivers=made)
    assert obtain(pin, tmp_path / "out", pip) == FILES
    (tmp_path / "thing.blobs").write_text(f"{'0' * 40}  setup.py\n{'1' * 40}  gone.py\n")
    with pytest.raises(AscendetError) as caught:
        obtain(pin, tmp_path / "out", pip)
    assert caught.value.name == "sdist-hash-mismatch"
    assert "gone.py is missing" in (caught.value.found or "")
    assert "setup.py is blob" in (caught.value.found or "")


def test_release_archive_from_the_second_place(
    tmp_path: Path, lock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "REQUIREMENTS", tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    archive(site / "wrong.tar.gz", ("x/setup.py", b"other"))
    members = [(f"thing-v1/{name}", content) for name, content in FILES.items()]
    archive(site / "right.tar.gz", *members, special("thing-v1/link", tarfile.SYMTYPE, "/etc/passwd"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        wrong = Upstream(version="1.0", blobs=write_blobs(tmp_path), places=(f"{address}/wrong.tar.gz",))
        with pytest.raises(AscendetError) as caught:
            obtain(wrong, tmp_path / "out")
        assert caught.value.name == "sdist-hash-mismatch"
        pin = replace(wrong, places=(*wrong.places, f"{address}/right.tar.gz"))
        assert obtain(pin, tmp_path / "out") == FILES
        server.shutdown()


@pytest.mark.parametrize(
    "text", ["", "\n", f"{'0' * 39}  a", f"{'0' * 40} a", f"{'0' * 40}  /a", f"{'0' * 40}  a/../b", "\0"]
)
def test_list_of_blobs_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(AscendetError) as caught:
        blobs.read(tmp_path / "list")
    assert caught.value.name == "stack-invalid"
    with pytest.raises(AscendetError):
        blobs.read(tmp_path / "none")


@pytest.mark.parametrize(
    "fields",
    [
        {"commit": "main"},
        {"commit": "a" * 41},
        {"places": ("https://a.invalid/b.git",)},
        {"commit": "a" * 40, "sdist": NAME},
        {"commit": "a" * 40, "places": ("https://a.invalid/b.tar.gz",)},
        {"commit": "a" * 40, "places": ("https://a.invalid/b.zip",)},
    ],
)
def test_pin_that_cannot_be_verified(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"commit|blobs|git"):
        Upstream(version="1.0", **fields)


def test_listed_file_may_have_another_name_in_the_archive(
    tmp_path: Path, lock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "REQUIREMENTS", tmp_path)
    (_, content), *others = FILES.items()
    made = archive(
        tmp_path / "made.tar.gz",
        ("thing-1.0/moved/away", content),
        *[(f"thing-1.0/{n}", c) for n, c in others],
    )
    lock(files.digest(made))
    pin = Upstream(version="1.0", sdist=NAME, blobs=write_blobs(tmp_path))
    assert obtain(pin, tmp_path / "out", fake_pip(tmp_path, delivers=made)) == FILES


def test_sdist_that_pip_refuses_to_resolve_comes_by_its_link(
    tmp_path: Path, lock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "thing").mkdir(parents=True)
    made = archive(site / NAME, ("thing-1.0/setup.py", b"print()"))
    (site / "thing" / "index.html").write_text(f'<a href="../{NAME}#sha256={"0" * 64}">thing</a>')
    lock(files.digest(made))
    script = tmp_path / "pip.py"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        script.write_text(
            "import sys\n"
            "if sys.argv[1] == 'download': sys.exit('Distributions from X cannot declare direct URL dependencies.')\n"
            f"print(\"global.index-url='{address}/empty'\")\n"
            f"print(\":env:.extra-index-url='file:///nowhere {address}'\")\n"
        )
        pip = [sys.executable, str(script)]
        assert sources.fetch(NAME, pip).read_bytes() == made.read_bytes()
        lock("1" * 64)
        with pytest.raises(AscendetError) as caught:
            sources.fetch(NAME, pip)
        assert caught.value.name == "sdist-hash-mismatch"
        lock(files.digest(made))
        shutil.rmtree(tmp_path / "cache")
        (site / "thing" / "index.html").write_text('<a href="../thing-2.tar.gz">another</a>')
        with pytest.raises(AscendetError) as caught:
            sources.fetch(NAME, pip)
        assert caught.value.name == "sdist-download-failed"
        server.shutdown()
