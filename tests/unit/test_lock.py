"""What people wish, what is locked, and what is documented must be the same."""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core import stack
from ascendet.errors import AscendetError
from ascendet.supply import lock, lock_check, lockfiles


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of requirements/ that a test may break."""
    copy = tmp_path / "requirements"
    shutil.copytree(paths.REQUIREMENTS, copy)
    monkeypatch.setattr(paths, "REQUIREMENTS", copy)
    monkeypatch.setattr(paths, "LOCK", copy / "lock")
    return copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_everything_agrees() -> None:
    assert lock_check.check() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("vitdet.in", "addict\n", "addict\nnew-thing\n", "lock/vitdet.txt lacks new-thing"),
        ("vitdet.in", "mmengine==0.10.7", "mmengine==0.10.6", "vitdet.in requires mmengine==0.10.6"),
        ("README.md", "| `addict` |", "| addict |", "README.md gives no reason for addict"),
        ("README.md", "| `addict` |", "| `adict` |", "which no *.in file lists"),
        (
            "lock/vitdet.txt",
            "numpy==",
            "--extra-index-url x\nnumpy==",
            "names an index, a host or a local path",
        ),
        ("lock/tools.txt", "make relock", "pip-compile", "does not say that make relock writes it"),
        (
            "lock/vitdet-torch-x86_64.txt",
            "torch==2.8.0",
            "torch==2.9.0",
            "has torch 2.9.0, stacks.toml says 2.8.0",
        ),
        ("lock/vitdet-torch-aarch64.txt", "--hash=sha256:", "--hash=md5:", "not a SHA-256"),
        ("lock/vitdet-torch-aarch64.txt", "    --hash", "    # --hash", "no hash for torch==2.8.0"),
        ("lock/vitdet.txt", "opencv-python-headless==", "opencv-python==", "needs libGL"),
        ("lock/data.toml", "licence = \"AdelaiDet's", '# "', "R_50_3x.pth does not say its licence"),
        ("lock/sources.toml", "mmcv-2.1.0", "mmcv-2.2.0", "lock/sources.toml: mmcv-2.1.0.tar.gz"),
    ],
)
def test_each_disagreement_is_found(requirements: Path, file: str, old: str, new: str, problem: str) -> None:
    edit(requirements / file, old, new)
    assert any(problem in found for found in lock_check.check()), lock_check.check()


def test_missing_and_extra_files_are_found(requirements: Path) -> None:
    (requirements / "lock/extra.txt").write_text("# make relock\n")
    assert lock_check.check() == ["lock/extra.txt is not written by make relock"]
    (requirements / "lock/tools.txt").unlink()
    assert lock_check.check() == ["lock/tools.txt is missing"]


def test_setuptools_keeps_pkg_resources() -> None:
    for name in ("vitdet", "blendmask"):
        version = lockfiles.pins((paths.LOCK / f"{name}.txt").read_text())["setuptools"]
        assert int(version.split(".")[0]) < 82


@pytest.mark.parametrize("name", lockfiles.package_lists())
def test_each_lock_has_what_builds_its_packages(name: str) -> None:
    """Environments, images and bundles build those without wheels with it; its part of the lock has the hashes."""
    part = lockfiles.part(lockfiles.packages_lock(name).read_text(encoding="utf-8"), {"setuptools"})
    assert list(lockfiles.pins(part)) == ["setuptools"]
    assert "--hash=sha256:" in part


def test_torch_npus_undeclared_needs_are_locked() -> None:
    needs = {"pyyaml", "psutil", "decorator", "attrs", "scipy", "cloudpickle"}
    for one in stack.load_all().values():
        assert needs <= lockfiles.pins(lockfiles.packages_lock(one.packages).read_text()).keys()


def test_wheels_agree_with_stacks_and_sources() -> None:
    sources = tomllib.loads((paths.LOCK / "sources.toml").read_text())
    for one in stack.load_all().values():
        for name in one.wheels:
            spec = tomllib.loads((paths.WHEELS / name / "wheel.toml").read_text())
            assert spec["name"] == name
            pin = one.upstreams.get(name)
            if pin is None:
                assert "path" in spec["source"]
                continue
            # Which file or commit it is stands in stacks.toml, a file's hash in sources.toml; a recipe repeats neither.
            assert spec["source"] == {"upstream": name}
            assert pin.sdist is None or len(sources[pin.sdist]["sha256"]) == 64
            assert spec["version"].startswith(f"{pin.version.partition('+')[0]}+"), (
                "a patched build must not look like upstream's"
            )


def test_models_have_configurations() -> None:
    configs = {file.stem for file in (paths.WHEELS / "vitdet/vitdet/configs").glob("*.py")}
    assert configs == set(stack.Stack.load("vitdet").models)


def test_no_torch_lock_for_an_unknown_machine() -> None:
    with pytest.raises(AscendetError) as caught:
        lockfiles.torch_lock(stack.Stack.load("vitdet"), "riscv64")
    assert caught.value.name == "lock-missing"


def test_unknown_stack_lists_the_known() -> None:
    with pytest.raises(AscendetError) as caught:
        stack.Stack.load("yolo")
    assert caught.value.name == "stack-unknown"
    assert caught.value.expected == "one of vitdet, vitdet-post2, vitdet-torch2.9, blendmask, blendmask-main"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('cann = "8.5.0"', "cann = 8.5"),
        ('cann = "8.5.0"', 'can = "8.5.0"'),
        ('cann = "8.5.0"', ""),
        ('soc = ["', 'soc = [1, "'),
        ("[stacks.vitdet]", "[stacks.vitdet"),
        ('mmengine = { version = "0.10.7" }', 'mmengine = { versoin = "0.10.7" }'),
        ('mmengine = { version = "0.10.7" }', 'mmengine = "0.10.7"'),
    ],
)
def test_broken_stack_file_is_named(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "stacks.toml"
    shutil.copy(paths.REQUIREMENTS / "stacks.toml", file)
    edit(file, old, new)
    with pytest.raises(AscendetError) as caught:
        stack.load_all(file)
    assert caught.value.name == "stack-invalid"


def test_index_links_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = pytest.importorskip("requests", reason="only the tools environment has requests")
    digest = hashlib.sha256(b"x").hexdigest()

    class Page:
        text = (
            f'<a href="../../p/thing-1.tar.gz#sha256={digest}">thing</a><a href="thing-2.tar.gz">no hash</a>'
        )

        def raise_for_status(self) -> None:
            pass

    monkeypatch.setattr(requests, "get", lambda *_, **__: Page())
    monkeypatch.setattr(lock, "_pip_index", lambda: "https://mirror.example/simple/")
    assert lock._index_hash("thing", "thing-1.tar.gz") == digest
    with pytest.raises(AscendetError) as caught:
        lock._index_hash("thing", "thing-2.tar.gz")
    assert caught.value.name == "lock-failed"


def test_locking_ignores_local_wheels_and_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
        monkeypatch.setenv(name, "something")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    environ = lock._environ()
    left = {name for name, value in environ.items() if value == "something"}
    assert left == set()
    assert environ["PIP_CONFIG_FILE"] == "/dev/null"
    assert environ["PIP_INDEX_URL"] == "https://mirror.example/simple"
