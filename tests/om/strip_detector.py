"""A small real detector of coloured rectangles, as a family: PyTorch's model, its stages as ONNX, its host steps.

Pictures are strips of 320 x 2304 px, so that coordinates and areas are as large as those of real pictures: float16 has
steps of 2 px at the right end, and a box of 256 x 256 px has an area that float16 does not have. Objects are squares
of one pure colour on black, on a grid of 16 px, one pixel smaller on each side.

`faults` are what port reports and issues tell of; a detector without any is right in every precision mode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from staged_om import exporting
from staged_om.host import Batch, Detections, DeviceStep, HostStep, Step
from staged_om.meta import Meta
from torch import Tensor, nn
from torchvision.ops import roi_align

HEIGHT, WIDTH, GRID, SLOTS = 320, 2304, 16, 16
CLASSES = ("blue", "green", "red")  # OpenCV's order of channels
COARSE = 448.0  # side of the boxes that are pooled from the coarse level, px, as FPN's level 5
GAIN = 100.0  # the head's steepness: a box that is 2 px off is lost


def shrink(features: Tensor, by: int) -> Tensor:
    """Return the means of squares; AI Core of 910B has no float32 AveragePool."""
    _, channels, height, width = features.shape
    return features.reshape(1, channels, height // by, by, width // by, by).mean(dim=(3, 5))


class Backbone(nn.Module):
    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fine level, and the coarse one, which answers to wide objects only, as real ones do."""
        window = torch.full((3, 1, 1, 65), 1 / 65)
        return picture + 0.0, nn.functional.conv2d(shrink(picture, 4), window, padding=(0, 32), groups=3)


class Rpn(nn.Module):
    def forward(self, fine: Tensor) -> Tensor:
        return shrink(fine, GRID).amax(dim=1, keepdim=True)


class Levels(nn.Module):
    """Whether a box belongs to the coarse level; `by_area` multiplies width and height."""

    def __init__(self, *, by_area: bool) -> None:
        super().__init__()
        self.by_area = by_area

    def forward(self, rois: Tensor) -> Tensor:
        width, height = rois[:, 3] - rois[:, 1], rois[:, 4] - rois[:, 2]
        if self.by_area:
            return width * height >= COARSE**2
        return torch.log(width + 1e-3) + torch.log(height + 1e-3) >= 2 * float(np.log(COARSE))


class Roi(nn.Module):
    """Class scores [SLOTS, 4] (background first) of boxes; slots without a box are masked.

    `mask` is what is added to the logits of empty slots' classes: the right one is small enough for float16.
    """

    def __init__(self, *, by_area: bool, mask: float) -> None:
        super().__init__()
        self.levels = Levels(by_area=by_area)
        self.mask = mask

    def forward(self, fine: Tensor, coarse: Tensor, rois: Tensor, valid: Tensor) -> Tensor:
        fine_box = roi_align(fine, rois, (7, 7), 1.0, 2, True).mean(dim=(2, 3))
        # 260 px of an object 1150 px wide: 0.943 on average. A smaller object has less: its level is the fine one.
        coarse_box = roi_align(coarse, rois, (7, 7), 0.25, 2, True).mean(dim=(2, 3)) / 0.943
        pooled = torch.where(self.levels(rois)[:, None], coarse_box, fine_box)
        logits = GAIN * (pooled - 0.9)
        logits = logits + (1.0 - valid) * self.mask
        return torch.softmax(torch.cat([torch.zeros_like(valid), logits], dim=1), dim=1)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong with the exported pipeline; nothing by default."""

    scale: float = 255.0
    stride: int = GRID
    swapped: bool = False
    by_area: bool = False
    mask: float = -100.0
    # The exporter slices boxes and picture numbers out of the RoIs: in float16 that would round them before RoiAlign.
    keep_fp32: tuple[str, ...] = ("RoiAlign", "Gather", "Slice", "/levels/")


# -- PyTorch's model, by itself --


def detect_by_torch(picture: np.ndarray) -> Detections:
    """Return what the model finds, in one piece, in PyTorch; `host_steps` must come to the same."""
    image = torch.from_numpy(picture.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        fine, coarse = Backbone()(image)
        found = Rpn()(fine)[0, 0] > 0.3
        boxes = torch.from_numpy(components(found.numpy(), GRID))
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
        scores = Roi(by_area=False, mask=0.0)(fine, coarse, rois, torch.ones(len(boxes), 1))[:, 1:]
    return finished(boxes.numpy(), scores.numpy(), picture.shape[:2])


def components(found: np.ndarray, stride: int) -> np.ndarray:
    """Return the boxes [N, 4] of connected cells of a map, one pixel inside of them."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(found.astype(np.uint8), connectivity=4)
    rows = [
        (left * stride + 1, top * stride + 1, (left + wide) * stride - 1, (top + high) * stride - 1)
        for left, top, wide, high, _ in stats[1:]
    ]
    return np.array(rows[:SLOTS], np.float32).reshape(-1, 4)


def finished(boxes: np.ndarray, scores: np.ndarray, size: tuple[int, ...]) -> Detections:
    """Return the boxes whose best class has a score above 0.05, best first."""
    labels, best = scores.argmax(axis=1), scores.max(axis=1, initial=0)
    order = [index for index in np.argsort(-best, kind="stable") if best[index] > 0.05]
    masks = []
    for index in order:
        pixels = np.zeros(size, np.uint8, order="F")
        x0, y0, x1, y1 = np.clip(boxes[index].round().astype(int), 0, None)
        pixels[y0:y1, x0:x1] = 1
        masks.append(coco_mask.encode(pixels))
    return Detections(
        boxes=boxes[order], scores=best[order], labels=labels[order].astype(np.int64), masks=masks
    )


# -- the exported model --


def export(folder: Path, faults: Faults = Faults()) -> Meta:
    """Write the stages of a detector with these faults, and its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    fine, coarse = Backbone()(picture)
    rois = torch.tensor([[0.0, 8 * slot, slot, 8 * slot + 20, slot + 15] for slot in range(SLOTS)])
    valid = torch.ones(SLOTS, 1)
    valid[SLOTS // 2 :] = 0
    head = {"fine": fine, "coarse": coarse, "rois": rois, "valid": valid}
    stages = [
        exporting.Module(
            name="backbone",
            module=Backbone(),
            inputs={"picture": picture},
            outputs=["fine", "coarse"],
            opset=16,
        ),
        exporting.Module(name="rpn", module=Rpn(), inputs={"fine": fine}, outputs=["objectness"], opset=16),
        exporting.Module(
            name="roi",
            module=Roi(by_area=faults.by_area, mask=faults.mask),
            inputs=head,
            outputs=["scores"],
            opset=16,
            keep_fp32=faults.keep_fp32,
        ),
    ]
    made = tuple(exporting.write(stage, folder)[0] for stage in stages)
    meta = Meta(
        family="strips",
        model="strips",
        checkpoint="strips.pth",
        checkpoint_sha256="0",
        height=HEIGHT,
        width=WIDTH,
        batch=1,
        classes=CLASSES,
        category_ids=(1, 2, 3),
        stages=made,
        host={"scale": faults.scale, "stride": faults.stride, "swapped": faults.swapped},
        export_id=exporting.export_id(made),
    )
    meta.write(folder)
    return meta


def pipeline(meta: Meta) -> tuple[Step, ...]:
    """Return the steps, by what the metadata says."""
    facts = meta.host

    def preprocess(batch: Batch) -> None:
        (picture,) = batch.pictures
        values = picture.astype(np.float32) / np.float32(facts["scale"])
        batch.values["picture"] = np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def propose(batch: Batch) -> None:
        boxes = components(batch.values["objectness"][0, 0] > 0.3, facts["stride"])
        rois, valid = np.zeros((SLOTS, 5), np.float32), np.zeros((SLOTS, 1), np.float32)
        rois[: len(boxes), 1:] = boxes[:, [1, 0, 3, 2]] if facts["swapped"] else boxes
        rois[len(boxes) :, 3:] = 1
        valid[: len(boxes)] = 1
        batch.values |= {"rois": rois, "valid": valid, "boxes": boxes}

    def paste(batch: Batch) -> None:
        boxes = batch.values["boxes"]
        batch.detections.append(
            finished(boxes, batch.values["scores"][: len(boxes), 1:], batch.pictures[0].shape[:2])
        )

    return (
        HostStep(name="preprocess", run=preprocess, writes=("picture",)),
        DeviceStep(stage="backbone"),
        DeviceStep(stage="rpn"),
        HostStep(name="propose", run=propose, reads=("objectness",), writes=("rois", "valid")),
        DeviceStep(stage="roi"),
        HostStep(name="paste", run=paste, reads=("scores",)),
    )


def modules(meta: Meta, faults: Faults) -> dict[str, nn.Module]:
    """Return the modules that were exported."""
    assert [stage.name for stage in meta.stages] == ["backbone", "rpn", "roi"]
    return {"backbone": Backbone(), "rpn": Rpn(), "roi": Roi(by_area=faults.by_area, mask=faults.mask)}


def family(faults: Faults) -> dict[str, ModuleType]:
    """Return the modules of the package `strips`, as the tool's programs look for them."""

    def module(name: str, **content: Any) -> ModuleType:
        made = ModuleType(f"strips.{name}")
        made.__dict__.update(content)
        return made

    def detect(picture: np.ndarray, _name: str, _watch: Any) -> list[dict[str, Any]]:
        found = detect_by_torch(picture)
        return [
            {
                "category": CLASSES[int(label)],
                "score": float(score),
                "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
                "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
            }
            for box, score, label, mask in zip(
                found.boxes, found.scores, found.labels, found.masks, strict=True
            )
        ]

    detector = SimpleNamespace(detect=detect, synchronize=lambda: None)
    parser = SimpleNamespace(parse_args=lambda _: None)
    return {
        "strips": ModuleType("strips"),
        "strips.launch": module("launch", parser=lambda _: parser, load_config=lambda _: None),
        "strips.infer": module("infer", build_detector=lambda _: detector),
        "strips.export": module("export", torch_stages=lambda meta, _: modules(meta, faults)),
        "strips.om": module("om", pipeline=pipeline),
    }


def install(faults: Faults, set_item: Callable[[Any, Any, Any], None]) -> None:
    """Make the package `strips` importable, by monkeypatch's `setitem`."""
    for name, module in family(faults).items():
        set_item(sys.modules, name, module)


def picture(*objects: tuple[int, int, int, int, int]) -> np.ndarray:
    """Return a strip with objects of (left, top, width, height) in cells of the grid, and a class."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for left, top, width, height, label in objects:
        x0, y0 = left * GRID + 1, top * GRID + 1
        pixels[y0 : (top + height) * GRID - 1, x0 : (left + width) * GRID - 1, label] = 255
    return pixels


# A small object at each end, one of 288 x 288 px (float16 has no such area), one of 288 x 1152 px on the coarse level.
PICTURE = picture((1, 1, 2, 2, 0), (140, 5, 1, 1, 1), (10, 1, 18, 18, 2), (40, 1, 72, 18, 1))


def changed(meta: Meta, folder: Path, **host: Any) -> Meta:
    """Write metadata of the same export whose host steps are told something else."""
    made = replace(meta, host=meta.host | host)
    made.write(folder)
    return made
