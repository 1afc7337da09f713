"""Our model beside AdelaiDet itself, for those who have a checkout of it and may use it: ADELAIDET=/path.

The goldens hold the same comparison for two small images; here it is for larger ones, and for whatever commit is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import blendmask
import numpy as np
import pytest
import torch
from blendmask.config import load
from blendmask.model import BlendMask
from blendmask_goldens import enlarged, fill_model, match
from detectron2.structures import Boxes, Instances

CONFIGS = Path(blendmask.__file__).parent / "configs"
JOB = Path(__file__).with_name("adelaidet_job.py")


def ask(checkout: Path, config: str, out: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What the checkout's model computes with the goldens' weights."""
    done = subprocess.run(
        [sys.executable, JOB, checkout, config, out],
        # With torch_npu imported, SyncBatchNorm refuses the CPU.
        env=os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(out) as file:
        return dict(file)


def compare(model: BlendMask, theirs: dict[str, np.ndarray[Any, Any]]) -> None:
    for number, result in enumerate(model.eval()([enlarged(0), enlarged(1)])):
        expected = {name: theirs[f"{number}/{name}"] for name in ("boxes", "scores", "classes", "masks")}
        match(result["instances"], **expected)
    losses = model.train()([enlarged(0), enlarged(1)])
    expected_losses = {name[5:]: float(value) for name, value in theirs.items() if name.startswith("loss/")}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected_losses, rel=1e-4)
    sum(losses.values()).backward()
    trained = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    gradients = {name[5:]: value for name, value in theirs.items() if name.startswith("grad/")}
    assert trained.keys() == gradients.keys()
    for name, value in gradients.items():
        difference = np.linalg.norm(trained[name].cpu().numpy() - value)
        assert difference <= 1e-3 * np.linalg.norm(value), name


@pytest.mark.parametrize(("ours", "config"), [("r50", "R_50_3x"), ("r101", "R_101_3x")])
def test_a_checkout_of_adelaidet_computes_the_same(
    ours: str, config: str, device: str, tmp_path: Path
) -> None:
    if "ADELAIDET" not in os.environ:
        pytest.skip(
            "ADELAIDET is not set: a checkout of AdelaiDet, for those whom its licence allows to use it"
        )
    checkout = Path(os.environ["ADELAIDET"]).expanduser().resolve()
    theirs = ask(checkout, f"configs/BlendMask/{config}.yaml", tmp_path / "theirs.npz")
    model = BlendMask(load(CONFIGS / f"blendmask-{ours}.yaml")[0])
    fill_model(model)
    compare(model.to(device), theirs)


STAND_IN = """
    from blendmask.config import add_blendmask_config
    from detectron2.config import get_cfg as get_detectron2_cfg

    def get_cfg():
        cfg = get_detectron2_cfg()
        add_blendmask_config(cfg)
        return cfg
"""


@pytest.mark.parametrize("other", [False, True], ids=["same", "other threshold"])
def test_a_difference_is_seen(tmp_path: Path, other: bool) -> None:
    """With our own model in the place of AdelaiDet: what the job reads and what is compared, without a checkout."""
    package = tmp_path / "adet"
    (package / "modeling").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "modeling" / "__init__.py").write_text("from adet import _C\nimport blendmask.model\n")
    (package / "config.py").write_text(textwrap.dedent(STAND_IN))
    tiny = (CONFIGS / "blendmask-tiny.yaml").read_text()
    if other:
        tiny = tiny.replace("  FCOS:\n", "  FCOS:\n    NMS_TH: 0.5\n")
    (tmp_path / "tiny.yaml").write_text(tiny)
    theirs = ask(tmp_path, "tiny.yaml", tmp_path / "theirs.npz")
    assert len(theirs["0/scores"]) > 10
    model = BlendMask(load(CONFIGS / "blendmask-tiny.yaml")[0])
    fill_model(model)
    if other:
        with pytest.raises(AssertionError):
            compare(model, theirs)
    else:
        compare(model, theirs)


def test_masks_are_compared_too() -> None:
    """One pixel in a hundred more is a difference."""
    found = two_objects()
    expected = {
        "boxes": found.pred_boxes.tensor.numpy(),
        "scores": found.scores.numpy(),
        "classes": found.pred_classes.numpy(),
        "masks": found.pred_masks.numpy().copy(),
    }
    match(found, **expected)
    expected["masks"][0, :2] = True
    with pytest.raises(AssertionError):
        match(found, **expected)


def two_objects() -> Instances:
    objects = Instances((50, 50))
    objects.pred_boxes = Boxes(torch.tensor([[0.0, 5.0, 40.0, 45.0], [10.0, 0.0, 30.0, 20.0]]))
    objects.scores = torch.tensor([0.9, 0.8])
    objects.pred_classes = torch.tensor([0, 1])
    masks = torch.zeros(2, 50, 50, dtype=torch.bool)
    masks[0, 5:45, :40] = masks[1, :20, 10:30] = True
    objects.pred_masks = masks
    return objects
