"""What another user's file is: one named error that says whose it is, for every stage, and what to type next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ascendet import cli, paths
from ascendet.core import access, clean, files, manifest, process
from ascendet.envs import venv
from ascendet.errors import EXIT_CODES
from ascendet.machine import doctor, identity
from conftest import fails

pytestmark = pytest.mark.usefixtures("by_modes")


@pytest.fixture
def closed(build: Path) -> Path:
    """The tools environment as another user left it, who lets nobody read its manifest."""
    home = build / "venv/tools"
    home.mkdir(parents=True)
    file = home / manifest.MANIFEST
    file.write_text("{}")
    file.chmod(0)
    return file


@pytest.mark.parametrize(
    "stage", ["train", "report", "evaluate", "data", "export", "install", "lock", "test"]
)
def test_every_stage_names_the_file_whose_it_is_and_a_command(
    stage: str, closed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAKEFLAGS", raising=False)
    assert cli.main([stage]) == EXIT_CODES["permission-denied"] == 111
    text = capsys.readouterr().err
    assert text.startswith(f"error[permission-denied]: {closed} cannot be read by {access.user()}\n")
    assert f"found:    ---------- {access.owner(closed)} " in text
    command = {"evaluate": "make eval", "lock": "the same command with", "test": "the same command with"}
    assert f"next:     {command.get(stage, f'make {stage}')} ASCENDET_BUILD=<a folder" in text
    assert "Traceback" not in text


def test_a_folder_that_may_not_be_written_is_named_and_an_environment_is_not_half_removed(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = build / "venv/tools"
    home.mkdir(parents=True)
    (home / "pyvenv.cfg").write_text("")
    home.chmod(0o500)
    with pytest.raises(PermissionError) as caught:
        files.remove_tree(home)
    refused = access.refusal(caught.value)
    assert refused is not None
    assert refused.what.startswith(f"{home / 'pyvenv.cfg'} cannot be changed")
    assert (home / "pyvenv.cfg").exists()


def test_the_folder_that_may_not_be_entered_is_the_reason_whatever_lies_in_it(build: Path) -> None:
    (build / "venv").mkdir(parents=True)
    build.chmod(0)
    error = access.denied(build / "venv/tools/manifest.json")
    build.chmod(0o700)
    assert error.expected == f"the right to enter {build}"
    assert error.found is not None
    assert error.found.startswith("d--------- ")


def test_where_a_link_leads_is_the_reason(build: Path, tmp_path: Path) -> None:
    (tmp_path / "home/bin").mkdir(parents=True)
    (tmp_path / "home/bin/python").touch()
    build.mkdir()
    (build / "python").symlink_to(tmp_path / "home/bin/python")
    (tmp_path / "home").chmod(0)
    error = access.denied(build / "python")
    (tmp_path / "home").chmod(0o700)
    assert error.expected == f"the right to enter {tmp_path / 'home'}"


def test_the_setting_is_that_of_the_folder(build: Path) -> None:
    build.mkdir()
    paths.CACHE.mkdir()
    paths.CACHE.chmod(0)
    assert access.denied(paths.CACHE / "uv").hint == "ASCENDET_CACHE=<a folder that you may write to>"
    both = access.denied(build / "venv").hint
    paths.CACHE.chmod(0o700)
    assert both.count("<a folder that you may write to>") == 2
    assert access.denied(build / "venv").hint == "ASCENDET_BUILD=<a folder that you may write to>"
    assert access.denied(Path("/etc/hosts")).hint == "ls -ld /etc/hosts, and ask its owner"


def test_a_home_folder_that_is_not_there_is_no_reason_by_itself(build: Path) -> None:
    error = access.denied(Path("/nonexistent/.cache/ascendet"))
    assert error.found is not None
    assert error.found.endswith(" /")


def test_other_errors_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert access.refusal(FileNotFoundError(2, "No such file", str(tmp_path))) is None
    assert access.refusal(PermissionError(1, "Operation not permitted")) is None  # of no file

    def fail(argv: list[str]) -> int:
        raise FileNotFoundError(2, "No such file", "x")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(FileNotFoundError):
        cli.main(["doctor"])


def test_a_copy_from_a_cache_that_may_not_be_read_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/a.whl").touch(0)
    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    refused = access.refusal(caught.value)
    assert refused is not None
    assert refused.what.startswith(f"{tmp_path / 'cache/a.whl'} cannot be read")


def test_an_installer_that_may_not_use_the_cache_has_not_the_network_to_blame(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.CACHE.mkdir()
    paths.CACHE.chmod(0o500)
    error = fails(
        "permission-denied", venv._install, [sys.executable, "-c", "exit(2)"], build / "x/bin/python", {}
    )
    assert "uv cannot be made" in error.what
    paths.CACHE.chmod(0o700)
    fails("install-failed", venv._install, [sys.executable, "-c", "exit(2)"], build / "x/bin/python", {})


def test_clean_names_the_build_folder_and_removes_it_once_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "build/venv").mkdir(parents=True)
    (tmp_path / "build/venv/file").touch()
    (tmp_path / "build/venv").chmod(0o500)
    error = fails("permission-denied", clean.execute, SimpleNamespace())
    assert error.what.startswith("build/venv/file cannot be changed")
    assert error.hint == "sudo rm -r build"
    (tmp_path / "build/venv").chmod(0o700)
    clean.execute(SimpleNamespace())  # type: ignore[arg-type]
    assert not (tmp_path / "build").exists()
    clean.execute(SimpleNamespace())  # type: ignore[arg-type]  # nothing is there
    (tmp_path / "kept").mkdir()
    (tmp_path / "build").symlink_to("kept")
    clean.execute(SimpleNamespace())  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_doctor_finds_the_environment_of_another_user(build: Path) -> None:
    (build / "venv/vitdet").mkdir(parents=True)
    (build / "venv/vitdet").chmod(0o500)
    check = doctor._disk("disk build", build, ["runs", "venv/vitdet"])
    assert check.status == "blocks"
    assert check.found.endswith(str(build / "venv/vitdet"))
    assert f"sudo chown -R {access.user()} {build}" in str(check.fix)
    build.chmod(0)
    assert doctor._disk("disk build", build, []).status == "blocks"
    build.chmod(0o700)
    (build / "venv/vitdet").chmod(0o700)
    assert doctor._disk("disk build", build, ["venv/vitdet"]).status == "ok"


def test_git_answers_in_the_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    environ = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    plain = ["git", "-C", str(tmp_path), "rev-parse", "--git-dir"]
    if process.ask(plain) is not None:
        pytest.skip("this git knows no owners of folders")
    assert process.ask(process.git("rev-parse", "--git-dir")) == ".git\n"
    author = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(process.git(*author, "commit", "-q", "--allow-empty", "-m", "x"), check=True)
    assert len(str(identity.describe("sim")["revision"])) == 12


@pytest.mark.parametrize("named", ["", "XDG_CACHE_HOME", "ASCENDET_CACHE"])
def test_a_user_without_a_home_folder_has_a_cache_in_the_build_folder(
    tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "ASCENDET_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if named:
        monkeypatch.setenv(named, str(tmp_path))
    monkeypatch.setattr(paths.Path, "home", without)
    expected = {
        "": paths.BUILD / "cache",
        "XDG_CACHE_HOME": tmp_path / "ascendet",
        "ASCENDET_CACHE": tmp_path,
    }
    assert paths._cache() == expected[named]
    assert paths.home() is None
