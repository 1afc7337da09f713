"""Stage folders: complete or absent, whatever happens to the builder."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core import files, manifest
from ascendet.errors import AscendetError


def make(content: str, *, cached: bool = False, **inputs: object) -> manifest.Stage:
    with manifest.stage("thing", inputs, cached=cached) as stage:
        if not stage.fresh:
            (stage.path / "out").write_text(content)
    return stage


def script(body: str, build: Path) -> list[str]:
    """A builder in a process of its own."""
    head = f"""
        import pathlib, sys, time
        sys.path.insert(0, {str(paths.ROOT / "scripts")!r})
        from ascendet import paths
        from ascendet.core import files, manifest
        paths.BUILD = pathlib.Path({str(build)!r})
        """
    return [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body)]


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 30
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.01)


def test_second_time_is_fresh_and_other_inputs_are_another_folder(build: Path) -> None:
    first, again, other = make("a", x=1), make("never written", x=1), make("b", x=2)
    assert not first.fresh
    assert again.fresh
    assert again.final == first.final != other.final
    assert (first.final / "out").read_text() == "a"
    assert sorted(
        path.name for path in (build / "thing").iterdir() if not path.name.startswith(".")
    ) == sorted([first.final.name, other.final.name])


def test_manifest_says_what_went_in_and_came_out(build: Path) -> None:
    with manifest.stage("thing", {"x": [1, "two"]}) as stage:
        (stage.path / "sub").mkdir()
        (stage.path / "sub/out").write_text("content")
        stage.record(simulated=True, versions={"torch": "1"}, extra="fact")
    content = json.loads((stage.final / "manifest.json").read_text())
    assert content["stage"] == "thing"
    assert content["key"] == stage.final.name == manifest.digest_inputs({"x": [1, "two"]})
    assert content["inputs"] == {"x": [1, "two"]}
    assert content["outputs"] == {"sub/out": files.digest(stage.final / "sub/out")}
    assert content["simulated"] is True
    assert content["extra"] == "fact"
    assert content["versions"].keys() == {"ascendet", "python", "machine", "torch"}
    assert content["command"] == sys.argv
    assert content["seconds"] >= 0
    assert content["started"].endswith("+00:00")


def test_failed_body_leaves_nothing(build: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), manifest.stage("thing", {}) as stage:
        (stage.path / "out").write_text("half")
        raise RuntimeError("broken")
    assert not list((build / "thing").glob("[!.]*"))
    assert not list((build / "thing").glob(".tmp-*"))


def test_killed_builder_leaves_a_temporary_folder_that_the_next_removes(build: Path) -> None:
    body = """
        with manifest.stage("thing", {"x": 1}) as stage:
            (stage.path / "half").write_text("half")
            time.sleep(600)
        """
    builder = subprocess.Popen(script(body, build))
    wait_for(build / "thing", ".tmp-*/half")
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert [path.name for path in (build / "thing").iterdir() if not path.name.startswith(".")] == []
    other = make("b", x=2)  # another stage of the same kind cleans up as well
    assert not list((build / "thing").glob(".tmp-*"))
    stage = make("a", x=1)
    assert not stage.fresh
    assert sorted(path.name for path in stage.final.iterdir()) == ["manifest.json", "out"]
    assert other.final.is_dir()


def test_two_builders_build_once(build: Path) -> None:
    body = """
        with manifest.stage("thing", {"x": 1}) as stage:
            if not stage.fresh:
                while not (paths.BUILD / "go").exists():
                    time.sleep(0.01)
                (stage.path / "out").write_text("a")
        print("fresh" if stage.fresh else "built")
        """
    first = subprocess.Popen(script(body, build), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(build / "thing", ".tmp-*")
    second = subprocess.Popen(script(body, build), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert f"waiting for process {first.pid}" in second.stderr.readline()
    (build / "go").touch()
    assert first.communicate()[0] == "built\n"
    assert second.communicate()[0] == "fresh\n"
    assert (first.returncode, second.returncode) == (0, 0)


def test_live_builder_of_another_key_is_left_alone(build: Path) -> None:
    body = """
        with manifest.stage("thing", {"x": 1}) as stage:
            (stage.path / "half").write_text("half")
            time.sleep(600)
        """
    builder = subprocess.Popen(script(body, build))
    try:
        wait_for(build / "thing", ".tmp-*/half")
        make("b", x=2)
        assert list((build / "thing").glob(".tmp-*/half"))
    finally:
        builder.kill()
        builder.wait()


def test_folder_without_manifest_is_not_trusted(build: Path) -> None:
    final = build / "thing" / manifest.digest_inputs({"x": 1})
    final.mkdir(parents=True)
    (final / "out").write_text("planted")
    assert (make("a", x=1).final / "out").read_text() == "a"


def test_cache_serves_a_second_clone(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("a", cached=True, x=1)
    monkeypatch.setattr(paths, "BUILD", tmp_path / "second")
    stage = make("never written", cached=True, x=1)
    assert stage.fresh
    assert (stage.final / "out").read_text() == "a"
    (stage.final / "out").write_text("changed by hand")  # must not reach the cache
    monkeypatch.setattr(paths, "BUILD", tmp_path / "third")
    assert (make("never written", cached=True, x=1).final / "out").read_text() == "a"


def test_corrupted_cache_is_dropped(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make("a", cached=True, x=1)
    (paths.CACHE / "thing" / stage.final.name / "out").write_text("A")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "second")
    assert not make("b", cached=True, x=1).fresh


def test_unwritable_cache_costs_only_time(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths.CACHE.write_text("a file where the cache should be")
    assert make("a", cached=True, x=1).final.is_dir()
    assert "not cached" in capsys.readouterr().err


def test_full_disk_is_named(build: Path) -> None:
    with pytest.raises(AscendetError) as caught, manifest.stage("thing", {}) as stage:
        raise OSError(errno.ENOSPC, "No space left on device", str(stage.path / "out"))
    assert caught.value.name == "disk-full"
    assert not list((build / "thing").glob(".tmp-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_really_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        monkeypatch.setattr(paths, "BUILD", small / "build")
        with pytest.raises(AscendetError) as caught, manifest.stage("thing", {}) as stage:
            (stage.path / "big").write_bytes(bytes(2 * 2**20))
        assert caught.value.name == "disk-full"
        assert "MiB free" in (caught.value.found or "")
        assert [path for path in (small / "build/thing").iterdir() if not path.name.endswith(".lock")] == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_torn_manifest_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"stage": ')
    assert manifest.read(tmp_path) is None
