"""COCO data sets that are checked before training starts, and pictures that are checked when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ascendet_common.data import find_missing
from ascendet_common.errors import reporting
from ascendet_common.images import ImageError, read
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.logging import print_log

from vitdet.data import DataError, classes_of, shorten
from vitdet.resume import Draw, seed_draw

__all__ = ["CheckedCocoDataset", "DataError", "LoadCheckedImage"]


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's COCO data set, checked when it is built. It takes indices, or the draws of `ResumableSampler`.

    Raises
    ------
    DataError
        The annotation file is no COCO instances file, has no pictures (for training: none that can be used), names
        pictures that do not exist, or has other classes than the model. mmdet would silently number the classes by
        their order in the file, or leave some out.
    """

    def COCOAPI(self, file: str) -> COCO:  # mmdet's name for what reads a file
        """Read annotations, and check that their classes are the model's, in the same order."""
        coco = COCO(file)
        found, wanted = classes_of(coco.dataset), tuple(self.metainfo["classes"])
        if found != wanted:
            raise DataError(
                f"{file} has other classes than the model: it has {len(found)} ({shorten(found)}), "
                f"the model has {len(wanted)} ({shorten(wanted)})"
            )
        return coco

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return the annotations after checking them against the pictures and the classes."""
        try:
            entries = super().load_data_list()
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise DataError(f"{self.ann_file} is no COCO instances file: {error!r}") from error
        if not entries:
            raise DataError(f"{self.ann_file} has no images")
        folder = Path(self.data_prefix["img"])
        if missing := find_missing(folder, (entry["img_path"] for entry in entries)):
            raise DataError(
                f"{self.ann_file} names {len(missing)} of {len(entries)} images that are not in {folder}: "
                f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
            )
        return entries

    def filter_data(self) -> list[dict[str, Any]]:
        """Return the entries that mmdet keeps; raise DataError if none is left."""
        kept = super().filter_data()
        if not kept:
            raise DataError(f"{self.ann_file} has no image with an object to train on")
        return kept

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """Return the pipeline's result for the picture of an index, or of a draw, which also seeds the augmentation."""
        with reporting():  # an exception of a data loader's worker reaches the training as text only
            return super().__getitem__(seed_draw(draw) if isinstance(draw, tuple) else draw)


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's loading, but a damaged picture ends the run with `DataError`: mmcv reads a truncated JPEG as partly grey.

    With `ignore_empty` a training logs the damaged picture and takes another one; an evaluation cannot.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Add `img`, (height, width, 3), BGR, uint8, and its shape to `results`; return None to skip the image."""
        try:
            image = read(results["img_path"], (results["height"], results["width"]))
        except ImageError as error:
            if not self.ignore_empty:
                raise DataError(f"damaged picture {error}", name="image-damaged") from None
            print_log(f"skipped a damaged picture: {error}", logger="current", level=30)
            return None
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results
