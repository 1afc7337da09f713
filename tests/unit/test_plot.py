"""What `make curves` reads of mmengine's logs: several attempts are one curve."""

from __future__ import annotations

import json
from pathlib import Path

from ascendet import plot


def log(run: Path, attempt: str, rows: list[dict[str, float]], tail: str = "") -> None:
    folder = run / attempt / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def step(iteration: int, loss: float) -> dict[str, float]:
    return {"lr": 0.1, "loss": loss, "loss_mask": loss / 2, "iter": iteration, "step": iteration}


def test_a_resumed_training_is_one_curve(tmp_path: Path) -> None:
    log(
        tmp_path,
        "20260101_000000",
        [step(10, 4.0), {"coco/bbox_mAP": 0.1, "step": 1}, step(20, 3.0)],
        '{"lr": 0',
    )
    log(tmp_path, "20260102_000000", [step(20, 3.5), step(30, 2.0), {"coco/bbox_mAP": 0.2, "step": 2}])
    curves = plot.read(tmp_path)
    assert curves.losses["loss"] == [(10, 4.0), (20, 3.5), (30, 2.0)]
    assert curves.losses["loss_mask"] == [(10, 2.0), (20, 1.75), (30, 1.0)]
    assert curves.aps == {"box AP": [(10, 0.1), (30, 0.2)]}
    assert [point[0] for point in curves.rate] == [10, 20, 30]


def test_nothing_was_logged(tmp_path: Path) -> None:
    assert plot.read(tmp_path).rate == []
