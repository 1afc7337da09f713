"""Data sets in COCO's layout for detectron2: checked before hours are spent on them, in batches of like shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ascendet_common.data import DataError, classes_of, find_missing, find_split, read, shorten
from ascendet_common.errors import reporting
from ascendet_common.resume import Draw, seed_draw
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from torch.utils.data import Dataset

from blendmask.mapper import Mapper

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split of a data set.

    name
        What detectron2's catalogs call it.
    file
        Its annotations.
    classes
        Their names, by number.
    categories
        Their ids in the file, by number.
    found
        Its images in detectron2's words, in the order of the file. Crowd regions are in them, as `iscrowd`.
    """

    name: str
    file: Path
    classes: tuple[str, ...]
    categories: tuple[Any, ...]
    found: list[Record]


def load_split(root: Path, kind: str) -> Split:
    """Read a data set's split for `kind` ("train" or "val"), and register it in detectron2's catalogs.

    Raises
    ------
    DataError
        The split is missing, or there twice; its annotations cannot be read, are of no images, or name images that are
        not there.
    """
    split = find_split(root, kind)
    file, folder = root / "annotations" / f"instances_{split}.json", root / split
    content = read(file)
    made = Split(
        name=f"{root.name}_{split}",
        file=file,
        classes=classes_of(content),
        categories=tuple(category["id"] for category in content["categories"]),
        found=_records(content, file, folder),
    )
    if made.name in DatasetCatalog:
        DatasetCatalog.remove(made.name)
        MetadataCatalog.remove(made.name)
    DatasetCatalog.register(made.name, lambda: made.found)
    MetadataCatalog.get(made.name).set(
        thing_classes=list(made.classes), json_file=str(file), image_root=str(folder), evaluator_type="coco"
    )
    return made


def _records(content: Mapping[str, Any], file: Path, folder: Path) -> list[Record]:
    """Return the images of a COCO instances file, classes numbered in the order of the file."""
    try:
        numbers = {category["id"]: number for number, category in enumerate(content["categories"])}
        objects: dict[Any, list[Record]] = {image["id"]: [] for image in content["images"]}
        for one in content["annotations"]:
            if one["image_id"] in objects and one["category_id"] in numbers:
                objects[one["image_id"]].append(
                    {
                        "bbox": one["bbox"],
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": numbers[one["category_id"]],
                        "segmentation": one.get("segmentation") or [],
                        "iscrowd": one.get("iscrowd", 0),
                    }
                )
        found = [
            {
                "file_name": str(folder / image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "annotations": objects[image["id"]],
            }
            for image in content["images"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} is no COCO instances file: {error!r}") from error
    if not found:
        raise DataError(f"{file} has no images")
    if missing := find_missing(folder, (record["file_name"] for record in found)):
        raise DataError(
            f"{file} names {len(missing)} of {len(found)} images that are not in {folder}: {shorten(tuple(missing))}"
        )
    return found


def to_train_on(found: Sequence[Record], file: str) -> list[Record]:
    """Return the images that have an object, not only crowd regions; DataError where none has."""
    kept = [record for record in found if any(not one["iscrowd"] for one in record["annotations"])]
    if not kept:
        raise DataError(f"{file} has no image with an object to train on")
    return kept


class Pictures(Dataset[Record]):
    """Images through the mapper, by index or by draw.

    Parameters
    ----------
    found
        A split's records, or some of them.
    mapper
        Makes a sample of an image.
    """

    def __init__(self, found: Sequence[Record], mapper: Mapper) -> None:
        self.found, self.mapper = found, mapper

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, draw: int | Draw) -> Record:
        """Return the sample of an index or of a draw, which seeds the augmentation; of a damaged picture, the next."""
        with reporting():  # a worker's exception reaches the training as text only
            index = seed_draw(draw) if isinstance(draw, tuple) else draw
            return self.mapper(self.found[index], instead=self.found[(index + 1) % len(self.found)])


class Batches:
    """The batches of a rank, without end: every image once per epoch, in batches of wide or of high images.

    Images of one orientation leave less of a batch empty. What is left at an epoch's end waits for the next one.

    Parameters
    ----------
    found
        A split's records, or some of them.
    size
        Images per batch.
    rank, ranks
        Which part of the images is this rank's.
    seed
        Of the order, and of the augmentation.
    skip
        How many batches are over.
    """

    def __init__(
        self, found: Sequence[Record], size: int, *, rank: int, ranks: int, seed: int, skip: int = 0
    ) -> None:
        self.wide = [record["width"] > record["height"] for record in found]
        self.size, self.rank, self.ranks, self.seed, self.skip = size, rank, ranks, seed, skip

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the draws of one batch after the other."""
        over = 0
        waiting: dict[bool, list[Draw]] = {True: [], False: []}
        for draw in self._draws():
            bucket = waiting[self.wide[draw[2]]]
            bucket.append(draw)
            if len(bucket) == self.size:
                over += 1
                if over > self.skip:
                    yield list(bucket)
                bucket.clear()

    def _draws(self) -> Iterator[Draw]:
        place = 0  # in the sequence of all epochs, of which every `ranks`th is this rank's
        epoch = 0
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.wide))
            for index in order.tolist():
                if place % self.ranks == self.rank:
                    yield (self.seed, epoch, index)
                place += 1
            epoch += 1


def as_list(samples: list[Record]) -> list[Record]:
    """Collate nothing: the model makes a batch of samples itself."""
    return samples


def train_loader(
    pictures: Pictures, batches: Batches, workers: int
) -> torch.utils.data.DataLoader[list[Record]]:
    """Return a loader of training batches, which never ends."""
    return torch.utils.data.DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=as_list,
        persistent_workers=workers > 0,
    )
