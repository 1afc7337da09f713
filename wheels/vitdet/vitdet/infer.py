r"""Detect objects in pictures with one device: draw them, write COCO-like results, and measure where the time goes.

    python -m vitdet.infer --images list.json

Environment: MODEL, DATASET, CHECKPOINT and WORK_DIR, where `pictures/` and `results.json` are written. The results are
the detections in pixels of the picture as it is seen (turned by its EXIF orientation), the skipped files, and
milliseconds. `list.json` holds file names. Bytes of a name that are not UTF-8 are lone surrogates there and in the
results, as in Python, and `\xNN` in messages and in the names of drawn pictures. The batch size is 1, as in the port
reports.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ascendet_common import fallback
from ascendet_common.checkpoints import CheckpointMismatch
from ascendet_common.detect import Detections, Detector, detect_all
from ascendet_common.device import synchronize
from ascendet_common.errors import forget, reporting
from ascendet_common.images import ImageError, Pixels
from ascendet_common.options import add_infer_options
from ascendet_common.watch import Watch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from vitdet import launch
from vitdet.checkpoint import compare, read, weights_of
from vitdet.data import DataError, describe_difference, known_classes, meta_classes, set_classes


class Trained:
    """A trained model on this process's device.

    Parameters
    ----------
    cfg
        A configuration of the vitdet package. If its data set exists, the checkpoint must have the same classes.
    checkpoint
        A checkpoint file of exactly this model.

    Raises
    ------
    CheckpointError
        The file is damaged, or belongs to another model or other classes.
    DataError
        The file does not say its classes, and the data set, which would, does not exist.
    """

    def __init__(self, cfg: Config, checkpoint: str) -> None:
        init_default_scope("mmdet")
        cfg.model.backbone.pop("init_cfg", None)  # the weights that training starts from
        content = read(checkpoint)
        classes = self._classes(content.get("meta") or {}, Path(cfg.data_root))
        set_classes(cfg, classes)
        self.model = MODELS.build(cfg.model)
        self._load(self.model, weights_of(content))
        self.model.to(torch.device(get_device())).eval()
        # Pixels come from `images.read`; there are no annotations.
        steps = [step for step in cfg.test_pipeline if not step["type"].startswith("Load")]
        self.pipeline = Compose(steps)
        self.classes = classes

    @staticmethod
    def _classes(meta: dict[str, Any], root: Path) -> tuple[str, ...]:
        stated, here = meta_classes(meta), known_classes(root)
        if stated and here and stated != here:
            raise CheckpointMismatch(
                f"the checkpoint is not one of this model: {describe_difference(stated, here)}"
            )
        if not stated and not here:
            raise DataError(f"the checkpoint does not say its classes, and there is no data set {root}")
        return stated or here

    @staticmethod
    def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
        report = compare(model, weights)
        if not report.complete:
            raise CheckpointMismatch(f"the checkpoint is not one of this model\n{report}")
        model.load_state_dict(weights)

    @torch.no_grad()
    def predict(self, pixels: Pixels, name: str, watch: Watch) -> DetDataSample:
        """Return mmdet's sample of a picture, on the device.

        Parameters
        ----------
        pixels
            Shape (height, width, 3), BGR, uint8.
        name
            The picture's name in messages.
        watch
            Measures preprocess and device.

        Raises
        ------
        ImageError
            The picture cannot be scaled because it is thousands of times wider than high, or the reverse.
        """
        shape = pixels.shape[:2]
        with watch("preprocess"):
            entry = dict(img=pixels, img_path=name, img_id=0, img_shape=shape, ori_shape=shape)
            try:
                data = self.pipeline(entry)
            except cv2.error as error:
                raise ImageError(f"{name}: {shape[1]} x {shape[0]} pixels cannot be scaled") from error
            data = self.model.data_preprocessor(pseudo_collate([data]))
        with watch("device"):
            return self.model(**data, mode="predict")[0]

    def detect(self, pixels: Pixels, name: str, watch: Watch) -> Detections:
        """Return per object in a picture what `Detector.detect` returns; parameters and errors are `predict`'s."""
        sample = self.predict(pixels, name, watch)
        with watch("postprocess"):
            return self._describe(sample.cpu().pred_instances)

    def _describe(self, objects: Any) -> list[dict[str, Any]]:
        masks = coco_mask.encode(np.asfortranarray(objects.masks.numpy().transpose(1, 2, 0).astype(np.uint8)))
        rows = zip(
            objects.labels.tolist(), objects.scores.tolist(), objects.bboxes.tolist(), masks, strict=True
        )
        found = [
            {
                "category": self.classes[label],
                "score": score,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
            }
            for label, score, (x0, y0, x1, y1), mask in rows
        ]
        return sorted(found, key=lambda item: -item["score"])


def build_detector(cfg: Config) -> Detector:
    """Return the detector of CHECKPOINT on this process's device; see `Trained` for what it raises."""
    model = Trained(cfg, os.environ["CHECKPOINT"])
    fallback.watch()
    return Detector(
        classes=model.classes,
        detect=model.detect,
        synchronize=synchronize,
    )


def main() -> None:
    """Detect objects in the pictures that the command line names."""
    parser = launch.parser("Detect objects in pictures.")
    add_infer_options(parser)
    args = parser.parse_args()
    forget()
    with reporting():
        detector = build_detector(launch.load_config(args))
        files = json.loads(args.images.read_text(encoding="utf-8"))
        detect_all(detector, files, Path(os.environ["WORK_DIR"]), args.score, args.bad)


if __name__ == "__main__":
    main()
