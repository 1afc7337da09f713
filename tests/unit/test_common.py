"""wheels/common: what programs tell the tool, and the curves that are drawn from it."""

from __future__ import annotations

import doctest
import json
import multiprocessing
import threading
from pathlib import Path

import pytest
from ascendet_common import errors, plot, progress, watch


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORK_DIR", str(tmp_path))
    return tmp_path


def step(number: int, loss: float) -> None:
    progress.write("train", step=number, of=30, loss=loss, losses={"loss_mask": loss / 2}, lr=0.1)


def test_a_resumed_training_is_one_curve(work: Path) -> None:
    step(10, 4.0)
    progress.write("validate", step=3, of=4)
    progress.write("validate", step=10, AP={"bbox": 0.1})
    step(20, 3.0)
    with (work / progress.FILE).open("a") as file:
        file.write('{"phase": "tr\n')
    step(20, 3.5)
    step(30, 2.0)
    progress.write("validate", step=30, AP={"bbox": 0.2})
    curves = plot.read(work)
    assert curves.losses["loss"] == [(10, 4.0), (20, 3.5), (30, 2.0)]
    assert curves.losses["loss_mask"] == [(10, 2.0), (20, 1.75), (30, 1.0)]
    assert curves.aps == {"box AP": [(10, 0.1), (30, 0.2)]}
    assert [point[0] for point in curves.rate] == [10, 20, 30]


def test_nothing_was_logged(tmp_path: Path) -> None:
    assert plot.read(tmp_path).rate == []


def test_rows_of_several_writers_do_not_mix(work: Path) -> None:
    def write(number: int) -> None:
        for _ in range(50):
            progress.write("note", text=str(number) * 3000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = list(progress.read(work))
    assert len(rows) == 200
    assert all(row["text"] == row["text"][0] * 3000 for row in rows)


def test_without_a_work_folder_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORK_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    progress.write("note", text="x")
    errors.report(errors.RunError("x"))
    assert not list(tmp_path.iterdir())


class PictureError(errors.RunError):
    default_name = "image-damaged"


def _fail_in_a_worker() -> None:
    with errors.reporting():
        raise PictureError("a picture cannot be read", found="a.jpg: truncated")


def test_the_first_error_is_the_cause(work: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_fail_in_a_worker)
    worker.start()
    worker.join()
    with pytest.raises(errors.RunError), errors.reporting():
        raise errors.RunError("a worker has died")
    assert json.loads((work / errors.FILE).read_text()) == {
        "name": "image-damaged",
        "what": "a picture cannot be read",
        "expected": None,
        "found": "a.jpg: truncated",
        "advice": {},
    }
    assert sorted(path.name for path in work.iterdir()) == [errors.FILE]


def test_other_exceptions_are_not_reported(work: Path) -> None:
    with pytest.raises(ValueError, match="x"), errors.reporting():
        raise ValueError("x")
    assert not (work / errors.FILE).exists()


def test_the_examples_of_the_stop_watch_are_true() -> None:
    assert doctest.testmod(watch) == (0, 2)
