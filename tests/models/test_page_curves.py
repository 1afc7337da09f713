"""Curves of a training for a page: three charts in its language, and two runs in common axes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ascendet_common import page_curves
from ascendet_common.plot import read


def add_run(folder: Path, steps: int = 4) -> Path:
    rows = [
        {
            "phase": "train",
            "step": 25 * step,
            "loss": 4 / step,
            "losses": {"loss_cls": 1 / step},
            "lr": 0.1,
            "seconds": 0.5,
            "memory": 78,
        }
        for step in range(1, steps + 1)
    ]
    rows.append({"phase": "validate", "step": 25 * steps, "AP": {"bbox": 0.6, "segm": 0.5}})
    folder.mkdir(parents=True)
    (folder / "progress.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def draw(folder: Path, *runs: Path, language: str = "en") -> dict[str, str]:
    """Return the charts by name."""
    folder.mkdir()
    page_curves.draw([(run.name, read(run)) for run in runs], language, folder)
    return {file.stem: file.read_text(encoding="utf-8") for file in folder.iterdir()}


def test_a_run_has_three_charts_in_the_pages_language(tmp_path: Path) -> None:
    run = add_run(tmp_path / "a")
    english, chinese = draw(tmp_path / "en", run), draw(tmp_path / "zh", run, language="zh")
    assert set(english) == set(chinese) == {"loss", "ap", "step"}
    assert "device memory, MiB" in english["step"]
    assert "设备内存，MiB" in chinese["step"]
    assert "loss_cls" in chinese["loss"]
    assert draw(tmp_path / "again", run) == english


def test_two_runs_share_their_axes(tmp_path: Path) -> None:
    charts = draw(tmp_path / "out", add_run(tmp_path / "first"), add_run(tmp_path / "second", steps=2))
    assert set(charts) == {"loss", "ap"}
    for name in ("first: loss", "second: loss"):
        assert name in charts["loss"]


def test_one_step_is_a_point_and_none_an_error(tmp_path: Path) -> None:
    assert "<svg" in draw(tmp_path / "out", add_run(tmp_path / "one", steps=1))["loss"]
    (tmp_path / "none").mkdir()
    command = [
        sys.executable,
        "-m",
        "ascendet_common.page_curves",
        f"--run={tmp_path / 'none'}",
        "--language=en",
    ]
    done = subprocess.run([*command, f"--out={tmp_path}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "no step was logged yet\n"


@pytest.mark.parametrize("missing", ["memory", "seconds"])
def test_a_training_without_an_npu_has_no_memory(tmp_path: Path, missing: str) -> None:
    run = add_run(tmp_path / "a")
    text = (run / "progress.jsonl").read_text().replace(f'"{missing}"', '"other"')
    (run / "progress.jsonl").write_text(text)
    assert set(draw(tmp_path / "out", run)) == {"loss", "ap", "step"}
