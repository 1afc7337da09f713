"""The lines of docs/release.md on a machine that has Python and no compiler: from an empty folder to a training.

They run as they stand there, but for one thing: `pip` is uv's, which takes torch's 3 GB from the tool's cache instead
of downloading and unpacking them. That pip itself reads the index is tested in tests/unit/test_release.py.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core.stack import Stack
from ascendet.envs import venv
from ascendet.release import check, collect, release

# What the lines, activate and set_env.sh call.
PROGRAMS = ("bash", "cat", "dirname", "env", "python3.11", "tail", "uname")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the vitdet stack for this architecture, of wheels that are built already."""
    folder = tmp_path_factory.mktemp("release") / "0.1.0"
    stack = Stack.load("vitdet")
    release.publish(folder, [stack], [platform.machine()], collect.collect([stack], [platform.machine()]))
    return folder


def lines_of(page: Path) -> str:
    """The shell block after the comment that names this file."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r"<!-- tests/release/test_page\.py .*?-->\n```sh\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_a_release_of_real_wheels_is_sound_and_says_what_they_are_for(made: Path) -> None:
    check.verify(made)
    machine = platform.machine()
    for name in ("mmcv-2.1.0+npu.torch2.8.0", "cann_sim-0.1.0+npu.torch2.8.0"):
        stem = f"{name}-cp311-cp311-linux_{machine}.whl"
        metadata = (made / f"wheels/{stem}.metadata").read_text()
        assert "Requires-Dist: torch==2.8.0\n" in metadata
        assert "Requires-Dist: torch_npu==2.8.0\n" in metadata
        assert json.loads((made / f"audit/{stem}.json").read_text())["sound"]
        stated = json.loads((made / f"provenance/{stem}.intoto.json").read_text())
        assert len(stated["predicate"]["buildDefinition"]["resolvedDependencies"]) > 1


def test_the_lines_of_the_page_install_and_train_twenty_steps(made: Path, tmp_path: Path) -> None:
    lines = lines_of(paths.ROOT / "docs/release.md")
    assert len(lines.splitlines()) <= 10
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).symlink_to(str(shutil.which(name)))
    assert not any(shutil.which(name, path=programs) for name in ("g++", "gcc", "cc", "make", "git"))
    uv = f'pip() {{ {venv.tools_home()}/bin/uv pip "$@"; }}\n'
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", uv + lines],
        cwd=work,
        env={
            **{name: value for name, value in venv.uv_environ().items() if name.startswith(("UV_", "SSL_"))},
            "PATH": str(programs),
            "HOME": str(tmp_path),
            "RELEASE": str(made),
            "OMP_NUM_THREADS": "1",
            "CANN_SIM_STATE": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (work / "run/progress.jsonl").read_text().splitlines()]
    assert rows[0]["text"].startswith("recipe: 4 images per step = 1 devices x 2 images x 2 accumulated")
    (train,) = (row for row in rows if row["phase"] == "train")
    assert train["of"] == 2 * 20  # iterations
    assert 0 < train["loss"] < 100
    assert (rows[-1]["phase"], rows[-1]["step"]) == ("validate", 2 * 20)
    assert {"bbox", "segm"} <= rows[-1]["AP"].keys()
