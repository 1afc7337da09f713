r"""Detect objects in pictures with one device: drawn pictures, COCO-like results, and where the time goes.

    python -m blendmask.infer --images list.json

Environment: MODEL, DATASET, CHECKPOINT; WORK_DIR, which gets `pictures/` and `results.json`: the detections in pixels
of the picture as it is seen (turned by its EXIF orientation), what was skipped, and milliseconds. `list.json` holds
file names; bytes that are not UTF-8 are lone surrogates there and in the results, as Python has them, and `\xNN` where
they are printed and in the names of drawn pictures. Batch 1, as in the port reports.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import torch
from ascendet_common import fallback
from ascendet_common.checkpoints import CheckpointMismatch
from ascendet_common.data import DataError, describe_difference, known_classes
from ascendet_common.detect import Detections, Detector, detect_all
from ascendet_common.device import synchronize
from ascendet_common.errors import forget, reporting
from ascendet_common.images import ImageError, Pixels
from ascendet_common.options import add_infer_options
from ascendet_common.watch import Watch
from detectron2.config import CfgNode

from blendmask import checkpoint, launch
from blendmask.mapper import Mapper
from blendmask.metric import describe
from blendmask.predict import load_model


class Trained:
    """A trained model on a device.

    Parameters
    ----------
    cfg
        A configuration of the blendmask package.
    file
        A checkpoint of exactly this model. Where the data set is here, it must have its classes.
    device
        Where the model is to be.

    Raises
    ------
    CheckpointError
        A damaged file, or one of another model or other classes.
    DataError
        A file that does not say its classes, and there is no data set that does.
    """

    def __init__(self, cfg: CfgNode, file: str, device: torch.device) -> None:
        self.classes = self._classes(file)
        self.mapper = Mapper(cfg, training=False)
        self.model = load_model(cfg, device, self.classes, file)

    @staticmethod
    def _classes(file: str) -> tuple[str, ...]:
        root = launch.data_root()
        stated, here = checkpoint.classes_in(checkpoint.read(file)), known_classes(root)
        if stated and here and stated != here:
            raise CheckpointMismatch(
                f"the checkpoint is not one of this model: {describe_difference(stated, here)}"
            )
        if not stated and not here:
            raise DataError(f"the checkpoint does not say its classes, and there is no data set {root}")
        return stated or here

    def detect(self, pixels: Pixels, name: str, watch: Watch) -> Detections:
        """Return per object in a picture what `Detector.detect` returns.

        Parameters
        ----------
        pixels
            Shape (height, width, 3), BGR, uint8.
        name
            What the image is called.
        watch
            Gets the milliseconds of all stages but `read`; the copy to the device is in `device`.

        Raises
        ------
        ImageError
            The image's shape leaves nothing after scaling: it is thousands of times wider than high, or the reverse.
        """
        height, width = pixels.shape[:2]
        with watch("preprocess"):
            try:
                sample = self.mapper.sample(pixels, {"height": height, "width": width})
            except (ValueError, ZeroDivisionError, cv2.error) as error:
                raise ImageError(f"{name}: {width} x {height} pixels cannot be scaled") from error
            if not sample["image"].numel():
                raise ImageError(f"{name}: {width} x {height} pixels cannot be scaled")
        with watch("device"):
            (result,) = self.model([sample])
        with watch("postprocess"):
            return [
                {
                    "category": row["category_id"],
                    **{key: row[key] for key in ("score", "bbox", "segmentation")},
                }
                for row in describe(result["instances"], None, self.classes)
            ]


def build_detector(cfg: CfgNode) -> Detector:
    """Return the detector of CHECKPOINT on this process's device; see `Trained` for what it raises."""
    model = Trained(cfg, os.environ["CHECKPOINT"], launch.join_ranks().device)
    fallback.watch()
    return Detector(
        classes=model.classes,
        detect=model.detect,
        synchronize=synchronize,
    )


def main() -> None:
    """Go through the pictures that the command line names."""
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
