"""Which CANN a process uses, and which torch_npu: mixed trees and unknown versions are refused by name."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: its rules are not under test",
)

LOADS = "import torch, torch_npu; print(torch.npu.device_count())"


def run(*command: object, **environ: str) -> subprocess.CompletedProcess[str]:
    words = list(map(str, command))
    return subprocess.run(
        words, env={**os.environ, **environ}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def tree() -> Path:
    """The simulated tree of the environment."""
    return Path(os.environ["ASCEND_HOME_PATH"])


@pytest.fixture
def other(tree: Path, tmp_path: Path) -> Path:
    """The library folder of another tree; only the names count."""
    folder = tmp_path / "other" / "lib64"
    folder.mkdir(parents=True)
    shutil.copy(tree / "lib64" / "libascendcl.so", folder)
    return folder


def test_set_env_refuses_a_second_tree(tree: Path, other: Path) -> None:
    script = f'source {tree}/set_env.sh || exit 3; echo "$LD_LIBRARY_PATH"'
    done = run("bash", "-c", script, LD_LIBRARY_PATH=f"/nowhere:{other}")
    assert done.returncode == 3
    assert "error[cann-sim-mixed-trees]" in done.stderr
    assert str(tree) in done.stderr
    assert str(other) in done.stderr
    again = run("bash", "-uec", script, LD_LIBRARY_PATH=f"{tree}/lib64:/nowhere")
    assert (again.returncode, again.stderr) == (0, ""), "sourced twice it is the same tree"
    assert run("bash", "-c", script, LD_LIBRARY_PATH="").returncode == 0


def test_env_refuses_a_second_tree(tree: Path, other: Path) -> None:
    done = run(sys.executable, "-m", "cann_sim", "env", LD_LIBRARY_PATH=f"{tree}/lib64:{other}")
    assert (done.returncode, done.stdout) == (1, ""), "eval of nothing changes nothing"
    assert "error[cann-sim-mixed-trees]" in done.stderr
    assert str(other) in done.stderr
    assert run(sys.executable, "-m", "cann_sim", "env").returncode == 0


@pytest.mark.parametrize("foreign", ["libascendcl.so", "libge_runner.so"])
def test_a_process_with_libraries_of_two_trees_ends(tree: Path, tmp_path: Path, foreign: str) -> None:
    """Whichever comes first on the path: one of ours notices, also where the other is no library of cann_sim."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    shutil.copy(tree / "lib64" / foreign, folder)
    done = run(sys.executable, "-c", LOADS, LD_LIBRARY_PATH=f"{folder}:{tree}/lib64")
    assert done.returncode == 90, done.stdout + done.stderr
    assert "error[cann-sim-mixed-trees]" in done.stderr
    assert str(folder) in done.stderr
    assert str(tree / "lib64") in done.stderr


def test_a_tree_behind_a_symbolic_link_is_the_same(tree: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(tree / "lib64")
    done = run(sys.executable, "-c", LOADS, LD_LIBRARY_PATH=f"{link}:{tree}/lib64")
    assert done.returncode == 0, done.stderr


def test_check_finds_all_that_torch_npu_is_linked_to() -> None:
    done = run(sys.executable, "-m", "cann_sim", "check")
    assert done.returncode == 0, done.stderr
    assert "all functions that torch_npu is linked to are simulated" in done.stdout
    # Looked up by name and not simulated: a stream's share of the cores; and simulated: the profiler's switch.
    assert "aclrtSetStreamResLimit" in done.stdout
    assert "aclprofStart" not in done.stdout


def test_check_names_what_another_torch_npu_misses(tmp_path: Path) -> None:
    """A version that is linked to functions that cann_sim does not have, and lacks one that the plug-in needs."""
    installed = Path(str(importlib.metadata.distribution("torch_npu").locate_file("torch_npu")))
    library = tmp_path / "torch_npu" / "lib" / "libtorch_npu.so"
    library.parent.mkdir(parents=True)
    content = (installed / "lib" / library.name).read_bytes()
    stream = b"_ZN7c10_npu19getCurrentNPUStreamEa"
    for name, renamed in ((b"aclrtGetMemInfo", b"aclrtGetMemTwin"), (stream, stream[:-1] + b"b")):
        assert b"\0" + name + b"\0" in content
        content = content.replace(b"\0" + name + b"\0", b"\0" + renamed + b"\0")
    library.write_bytes(content)
    about = tmp_path / "torch_npu-9.9.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 9.9.0\n")
    done = run(sys.executable, "-m", "cann_sim", "check", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "error[cann-sim-torch-npu]" in done.stderr
    assert "torch_npu 9.9.0" in done.stderr
    assert "1 missing CANN symbols that torch_npu is linked to: aclrtGetMemTwin" in done.stderr
    assert f"1 missing torch symbols that cann_sim's compute plug-in needs: {stream.decode()}" in done.stderr


def test_check_without_torch_npu_says_what_to_install(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "cann_sim").symlink_to(tree.parent)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from cann_sim.__main__ import main; sys.exit(main())"
    done = run(sys.executable, "-I", "-S", "-c", code, "check")
    assert done.returncode == 1
    assert "torch or torch_npu is not installed here" in done.stderr
    assert "pip install" in done.stderr
