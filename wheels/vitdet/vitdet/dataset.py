"""COCO data sets that are checked before a training spends hours on them, and images that are checked when read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.logging import print_log

from vitdet.data import DataError, classes_of, few
from vitdet.images import ImageError, read
from vitdet.resume import Draw, seed_draw

__all__ = ["CheckedCocoDataset", "DataError", "LoadCheckedImage"]


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):  # type: ignore[misc]  # mmdet has no types
    """mmdet's COCO data set; takes indices, and draws of `ResumableSampler`, which seed the augmentation.

    Raises
    ------
    DataError
        When it is built: an annotation file that is no COCO instances file, without images (or, for training, without
        any that can be used), that names images which are not there, or whose classes are not the model's: mmdet would
        number them by their order in the file, or leave some out, silently.
    """

    def COCOAPI(self, file: str) -> COCO:  # mmdet's name for what reads a file
        """Read annotations whose classes are the model's, in its order."""
        coco = COCO(file)
        found, wanted = classes_of(coco.dataset), tuple(self.metainfo["classes"])
        if found != wanted:
            raise DataError(
                f"{file} has other classes than the model: {len(found)}: {few(found)}; not {len(wanted)}: {few(wanted)}"
            )
        return coco

    def load_data_list(self) -> list[dict[str, Any]]:
        """The annotations, once they are known to fit the images and the classes."""
        try:
            entries = super().load_data_list()
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise DataError(f"{self.ann_file} is no COCO instances file: {error!r}") from error
        if not entries:
            raise DataError(f"{self.ann_file} has no images")
        folder = Path(self.data_prefix["img"])
        here = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        names = [Path(entry["img_path"]).relative_to(folder) for entry in entries]
        missing = [
            str(name)
            for name in names
            if (name.name not in here if len(name.parts) == 1 else not (folder / name).is_file())
        ]
        if missing:
            raise DataError(
                f"{self.ann_file} names {len(missing)} of {len(entries)} images that are not in {folder}: "
                f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
            )
        return entries  # type: ignore[no-any-return]

    def filter_data(self) -> list[dict[str, Any]]:
        """What mmdet keeps; for training that must be something."""
        kept = super().filter_data()
        if not kept:
            raise DataError(f"{self.ann_file} has no image with an object to train on")
        return kept  # type: ignore[no-any-return]

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """The image of an index or of a draw, through the pipeline."""
        return super().__getitem__(seed_draw(draw) if isinstance(draw, tuple) else draw)  # type: ignore[no-any-return]


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):  # type: ignore[misc]
    """mmcv's loading, which takes a truncated JPEG for a whole one that is grey below.

    A damaged image ends the run with `DataError`. With `ignore_empty` a training takes another image instead, and says
    so; an evaluation cannot.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Add `img` (height, width, 3), BGR, uint8, and its shape."""
        try:
            image = read(results["img_path"], (results["height"], results["width"]))
        except ImageError as error:
            if not self.ignore_empty:
                raise DataError(f"damaged image {error}") from None
            print_log(f"skipped a damaged image: {error}", logger="current", level=30)
            return None
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results
