"""Environments: made once, made anew when their locks change or a build was killed, layered with our wheels."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.containers import bundle
from ascendet.core import files, manifest
from ascendet.core.stack import Stack
from ascendet.envs import activation, venv
from ascendet.errors import AscendetError
from ascendet.machine import host, needs
from ascendet.supply import lock
from ascendet.wheels import wheelfile
from conftest import fails

PYTHON = "{}.{}".format(*sys.version_info[:2])
STACK = Stack.load("vitdet")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What uv would have been asked to install; nothing is."""
    asked: list[list[str]] = []
    monkeypatch.setattr(venv, "uv_install", lambda python, arguments: asked.append(arguments))
    monkeypatch.setattr(needs, "DISK_GIB", {})
    return asked


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text("thing==1\n")
    return path


def make(home: Path, locked: Path, **layers: venv.Layer) -> None:
    venv.ensure(home, PYTHON, [locked], layers)


def test_made_once_and_anew_when_the_lock_changes(
    build: Path, locked: Path, installed: list[list[str]]
) -> None:
    home = build / "venv/some"
    make(home, locked)
    assert installed == [["--require-hashes", "--requirement", str(locked), *venv.build_pins([locked])]]
    assert subprocess.run([home / "bin/python", "-c", ""], check=True).returncode == 0
    (home / "mark").touch()
    make(home, locked)
    assert len(installed) == 1
    assert (home / "mark").exists()
    locked.write_text("thing==2\n")
    make(home, locked)
    assert len(installed) == 2
    assert not (home / "mark").exists()


def test_up_to_date_environment_starts_no_process(
    build: Path, locked: Path, installed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(build / "venv/some", locked, ours=("1", lambda: None))
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(files, "holding_lock", None)
    make(build / "venv/some", locked, ours=("1", lambda: None))


def test_killed_half_way_is_repaired(build: Path, locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = build / "venv/some"
    monkeypatch.setattr(needs, "DISK_GIB", {})

    def killed(*_: object) -> None:
        (home / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(venv, "uv_install", killed)
    with pytest.raises(KeyboardInterrupt):
        make(home, locked)
    assert manifest.read(home) is None
    monkeypatch.setattr(venv, "uv_install", lambda *_: None)
    make(home, locked)
    assert not (home / "half").exists()
    assert manifest.read(home) is not None


def test_removed_interpreter_is_noticed(build: Path, locked: Path, installed: list[list[str]]) -> None:
    make(build / "venv/some", locked)
    (build / "venv/some/bin/python").unlink()
    make(build / "venv/some", locked)
    assert len(installed) == 2


def test_layers_are_installed_when_their_key_changes(
    build: Path, locked: Path, installed: list[list[str]]
) -> None:
    home, done = build / "venv/some", []

    def layer(name: str) -> Callable[[], None]:
        return lambda: done.append(name)

    make(home, locked, a=("1", layer("a1")))
    make(home, locked, a=("1", layer("never")))
    make(home, locked, b=("1", layer("b1")))
    make(home, locked, a=("2", layer("a2")), b=("1", layer("never")))
    assert done == ["a1", "b1", "a2"]
    assert len(installed) == 1
    content = json.loads((home / "manifest.json").read_text())
    assert content["layers"] == {"a": "2", "b": "1"}


def test_failed_layer_is_not_taken_for_the_old_one(
    build: Path, locked: Path, installed: list[list[str]]
) -> None:
    home, done = build / "venv/some", []
    make(home, locked, a=("1", lambda: None))

    def fails() -> None:
        raise RuntimeError("half-installed")

    with pytest.raises(RuntimeError):
        make(home, locked, a=("2", fails))
    make(home, locked, a=("1", lambda: done.append("again")))
    assert done == ["again"]


def test_missing_lock_is_named(build: Path, tmp_path: Path) -> None:
    with pytest.raises(AscendetError) as caught:
        make(build / "venv/some", tmp_path / "none.txt")
    assert caught.value.name == "lock-missing"


def test_missing_interpreter_is_named(build: Path, locked: Path) -> None:
    with pytest.raises(AscendetError) as caught:
        venv.ensure(build / "venv/some", "3.99", [locked], {})
    assert caught.value.name == "python-version"
    assert not (build / "venv/some").exists()


def test_too_small_disk_is_refused_before_the_start(
    build: Path, locked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "DISK_GIB", dict.fromkeys(("x86_64", "aarch64"), 2**60))
    with pytest.raises(AscendetError) as caught:
        make(build / "venv/some", locked)
    assert caught.value.name == "disk-full"
    assert not (build / "venv/some").exists()


def test_a_further_environment_needs_less_disk_as_stacks_share_most_packages(
    build: Path, locked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "DISK_GIB", dict.fromkeys(("x86_64", "aarch64"), 2**50))
    monkeypatch.setattr(needs, "FURTHER_GIB", 2**49)
    for name in ("tools", "broken", "other"):
        (build / "venv" / name).mkdir(parents=True)
    manifest.write(build / "venv/tools", {})
    assert fails("disk-full", make, build / "venv/some", locked).expected == f"{2**50:.1f} GiB free"
    manifest.write(build / "venv/other", {})
    assert fails("disk-full", make, build / "venv/some", locked).expected == f"{2**49:.1f} GiB free"


def test_uvs_failure_is_named(build: Path, locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = build / "venv/tools/bin/uv"
    uv.parent.mkdir(parents=True)
    uv.write_text("#!/bin/sh\nexit 3\n")
    uv.chmod(0o755)
    monkeypatch.setattr(needs, "DISK_GIB", {})
    monkeypatch.setattr(venv, "uv_environ", dict)
    with pytest.raises(AscendetError) as caught:
        make(build / "venv/some", locked)
    assert caught.value.name == "install-failed"
    assert caught.value.found is not None
    assert "3" in caught.value.found


def test_what_pip_was_told_about_indexes_holds_for_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venv, "tools_pip", lambda: [sys.executable, "-m", "pip"])
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "PIP_CONFIG_FILE", "PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /two")
    environ = venv.uv_environ()
    assert environ["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert environ["UV_FIND_LINKS"] == "/one,/two"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://own.example/simple")
    assert venv.uv_environ()["UV_DEFAULT_INDEX"] == "https://own.example/simple"


def fake_tree(home: Path) -> Path:
    """A CANN tree whose set_env.sh does what real ones do: reads unset variables, prints, prepends."""
    (home / "lib64").mkdir(parents=True)
    (home / "lib64/libascendcl.so").touch()
    (home / "set_env.sh").write_text(
        f"echo noise\nexport ASCEND_HOME_PATH={home}\nexport ASCEND_OPP_PATH={home}/opp\n"
        f"export LD_LIBRARY_PATH={home}/lib64:$LD_LIBRARY_PATH\nexport MULTI='two\nlines'\n"
    )
    return home


def test_environment_variables_come_from_the_trees_own_script(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fake_tree(tmp_path / "tree")
    monkeypatch.setenv("NPU", "sim")
    monkeypatch.setattr(
        activation, "find_cann", lambda stack, npu=None: host.CannTree(home=home, version=None)
    )
    monkeypatch.setenv("ASCEND_OPP_PATH", "/another/tree/opp")
    monkeypatch.setenv("ASCEND_AICPU_PATH", "/another/tree")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "0")
    environ = activation.stack_environ(STACK)
    assert environ["ASCEND_HOME_PATH"] == str(home)
    assert environ["ASCEND_OPP_PATH"] == f"{home}/opp"
    assert environ["LD_LIBRARY_PATH"] == f"{home}/lib64:/mine"
    assert environ["MULTI"] == "two\nlines"
    assert environ["TASK_QUEUE_ENABLE"] == "0"
    assert environ["PATH"].startswith(f"{paths.BUILD}/venv/vitdet/bin:")
    assert "ASCEND_AICPU_PATH" not in environ
    assert "PYTHONPATH" not in environ


def test_tree_without_its_script_is_named(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "tree"
    home.mkdir()
    monkeypatch.setenv("NPU", "sim")
    monkeypatch.setattr(
        activation, "find_cann", lambda stack, npu=None: host.CannTree(home=home, version=None)
    )
    with pytest.raises(AscendetError) as caught:
        activation.stack_environ(STACK)
    assert caught.value.name == "npu-missing"
    (home / "set_env.sh").write_text("exit 3\n")
    with pytest.raises(AscendetError) as caught:
        activation.stack_environ(STACK)
    assert caught.value.found == "exit code 3"


@pytest.mark.parametrize(
    ("name", "file", "text", "version"),
    [
        ("cann-8.5.0", "version.cfg", "# v\nruntime_running_version=[7.8.0.1.220:8.5.0]\n", "8.5.0"),
        ("cann", "version.info", "Version=8.3.RC1\n", "8.3.RC1"),
        ("cann-8.5.1", None, "", "8.5.1"),
        ("ascend-toolkit/latest", None, "", None),
    ],
)
def test_cann_trees_of_all_layouts_are_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    file: str | None,
    text: str,
    version: str | None,
) -> None:
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    home = fake_tree(tmp_path / "usr/local/Ascend" / name)
    if file:
        (home / file).write_text(text)
    tree = host.find_cann(tmp_path)
    assert tree == host.CannTree(home=home, version=version)
    assert host.find_cann(tmp_path / "elsewhere") is None


# A build backend: the package that it makes says which version of it made it.
MAKER = """
import pathlib, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(pathlib.Path(folder, "thing-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("thing.py", "MADE_BY = VERSION")
        wheel.writestr("thing-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: thing\\nVersion: 1\\n")
        wheel.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("thing-1.dist-info/RECORD", "thing.py,,\\n")
    return "thing-1-py3-none-any.whl"
"""


@pytest.fixture
def published(tmp_path: Path, build: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages: `thing` as source only, and `maker`, which builds it, in versions 1 and 2."""
    folder = tmp_path / "published"
    folder.mkdir()
    for version in ("1", "2"):
        info = f"maker-{version}.dist-info"
        content = {
            "maker.py": MAKER.replace("VERSION", version, 1).encode(),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: maker\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": wheelfile.wheel_metadata("py3-none-any", pure=True),
        }
        wheelfile.write(folder, "maker", version, "py3-none-any", content)
    pages = {
        "pyproject.toml": '[build-system]\nrequires = ["maker"]\nbuild-backend = "maker"\n'
        '[project]\nname = "thing"\nversion = "1"\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: thing\nVersion: 1\n",
    }
    with tarfile.open(folder / "thing-1.tar.gz", "w:gz") as archive:
        for name, text in pages.items():
            member = tarfile.TarInfo(f"thing-1/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setattr(venv, "tools_home", lambda: Path(sys.prefix))  # these tests run in it
    monkeypatch.setattr(venv, "pip_settings", dict)
    monkeypatch.setattr(venv, "local_wheels", lambda _: folder)
    monkeypatch.setattr(needs, "DISK_GIB", {})
    return folder


def lock_of(published: Path, *names: str) -> Path:
    lines = [f"{name[:5]}==1 \\\n    --hash=sha256:{files.digest(published / name)}\n" for name in names]
    path = published.parent / "lock.txt"
    path.write_text("".join(lines))
    return path


def test_a_package_without_wheels_is_built_by_what_is_locked(build: Path, published: Path) -> None:
    """The index has a newer builder, which nobody has looked at."""
    home = build / "venv/some"
    make(home, lock_of(published, "maker-1-py3-none-any.whl", "thing-1.tar.gz"))
    done = subprocess.run(
        [home / "bin/python", "-c", "import thing; print(thing.MADE_BY)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


def test_a_package_is_not_built_by_what_is_not_locked(
    build: Path, published: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AscendetError, match="install-failed"):
        make(build / "venv/some", lock_of(published, "thing-1.tar.gz"))
    assert "no trusted hash was provided for: `maker`" in capfd.readouterr().err


def test_relock_asks_a_package_without_running_what_is_not_locked(published: Path, tmp_path: Path) -> None:
    words = [
        "wheel",
        "--no-deps",
        "--no-index",
        f"--find-links={published}",
        f"--wheel-dir={tmp_path}",
        "thing",
    ]
    command = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(command, env=lock._environ(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "maker" in done.stdout + done.stderr
    without = {name: value for name, value in lock._environ().items() if name != "PIP_BUILD_CONSTRAINT"}
    assert subprocess.run(command, env=without, capture_output=True, check=False).returncode == 0


def test_a_bundle_takes_a_package_without_running_what_is_not_locked(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(venv, "tools_pip", lambda: [sys.executable, "-m", "pip"])
    monkeypatch.setattr(venv, "local_wheels", lambda _: paths.CACHE / "wheels")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(published))
    locked = lock_of(published, "thing-1.tar.gz")
    monkeypatch.setattr(bundle, "_lock_files", lambda _: [locked])
    with pytest.raises(AscendetError, match="command-failed"):
        list(bundle._wheels(STACK))
    lock_of(published, "maker-1-py3-none-any.whl", "thing-1.tar.gz")
    names = {name.rpartition("/")[2] for name, _ in bundle._wheels(STACK)}
    assert names == {"maker-1-py3-none-any.whl", "thing-1.tar.gz"}
