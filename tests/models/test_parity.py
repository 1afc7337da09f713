"""Ours against theirs on the same random weights and the same batch: outputs, losses, gradients, detections."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stock import stock_mmdet
from vitdet.backbone import resize_positions

JOB = Path(__file__).with_name("loss_job.py")


def _both(name, file, **environ):
    """Run theirs with `environ`, then ours, one process each: both register the same names."""
    for whose, more in (("theirs", environ), ("ours", {})):
        done = subprocess.run(
            [sys.executable, JOB, name, whose, file],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ASCENDET_DATA": "data", **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    content = torch.load(file, weights_only=True)
    return content["state_dict"], content["theirs"], content["ours"]


def _compare(theirs, ours, tolerance):
    """Each tensor relative to its own largest value."""

    def difference(a, b):
        return ((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item()

    assert theirs["losses"].keys() == ours["losses"].keys()
    assert theirs["losses"]["loss_mask"] > 0
    assert theirs["losses"]["loss_rpn_bbox"] > 0
    for kind in ("losses", "gradients"):
        for key, value in theirs[kind].items():
            assert difference(value, ours[kind][key]) <= tolerance, key
    _reorder_detections(theirs, ours)
    for kind in ("backbone", "neck", "gradients of features", "boxes", "scores"):
        for one, other in zip(theirs[kind], ours[kind], strict=True):
            assert one.shape == other.shape, kind
            assert one.numel(), kind
            assert difference(one, other) <= tolerance, kind


def _reorder_detections(theirs, ours):
    """Put ours into the order of theirs, each to the nearest box of its class: equal scores may change places."""
    for image, boxes in enumerate(theirs["boxes"]):
        apart = torch.cdist(boxes, ours["boxes"][image], compute_mode="donot_use_mm_for_euclid_dist")
        of_others = theirs["labels"][image][:, None] != ours["labels"][image]
        order = apart.masked_fill(of_others, torch.inf).argmin(dim=1)
        assert len(order.unique()) == len(order) == len(ours["boxes"][image])
        for kind in ("boxes", "scores"):
            ours[kind][image] = ours[kind][image][order]


def test_our_heads_and_patches_change_no_result(tmp_path):
    """mmdet as published, its region proposals and preprocessing, against ours with our patches."""
    theirs_home = stock_mmdet(tmp_path)
    _, theirs, ours = _both("tiny", tmp_path / "tiny.pth", PYTHONPATH=str(theirs_home))
    assert theirs["mmdet"].startswith(str(tmp_path))
    assert not ours["mmdet"].startswith(str(tmp_path))
    _compare(theirs, ours, 1e-5)


@pytest.mark.skipif(
    "MMDETECTION" not in os.environ,
    reason="needs a checkout of mmdetection v3.3.0, whose ViTDet is in no package: MMDETECTION=/path",
)
def test_vitdet_equals_mmdetection_s(tmp_path):
    """Against mmdetection's own ViTDet and heads, from its checkout; with GELUs for ReLUs on both sides."""
    checkout = Path(os.environ["MMDETECTION"]).resolve()
    weights, theirs, ours = _both("b", tmp_path / "b.pth", PYTHONPATH=str(checkout))
    assert theirs["mmdet"].startswith(str(checkout))
    # Theirs resizes the position embedding in every forward, ours once, when it is loaded: so does its gradient.
    table = weights["backbone.pos_embed"].clone().requires_grad_()
    resize_positions(table, 16).backward(ours["gradients"]["backbone.pos_embed"])
    ours["gradients"]["backbone.pos_embed"] = table.grad
    _compare(theirs, ours, 1e-5)
