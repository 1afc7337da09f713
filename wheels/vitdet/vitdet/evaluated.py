"""What an evaluation leaves: scores that choose the best checkpoint, or detections and of which images they are.

The scores are those of these images, not of whatever a file happens to hold.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS, METRICS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from vitdet.dataset import DataError

Json = dict[str, Any]


@METRICS.register_module()
class NumberedCocoMetric(CocoMetric):  # type: ignore[misc]  # mmdet has no types
    """mmdet's COCO metric, whose numbers depend on no id.

    pycocotools takes an object with the id 0 for one that was not found, loses all but one of several that have the
    same id, and fails at ids that are text; so it gets ids of ours. Result files (`format_only`) keep the annotations'
    ids. A model that finds nothing has an AP of 0, where mmdet gives no number.
    """

    def compute_metrics(self, results: list[tuple[Json, Json]]) -> dict[str, float]:
        """Return `bbox_mAP` and the like for pairs of truth and prediction, each with its `img_id`.

        Raises
        ------
        DataError
            Images were predicted that the annotations do not have.
        """
        if self.format_only:
            return super().compute_metrics(results)  # type: ignore[no-any-return]
        named = self._coco_api
        content, images = number(named.dataset if named else self._travelling_truth(results))
        if strange := {truth["img_id"] for truth, _ in results} - images.keys():
            raise DataError(
                f"the annotations to evaluate with lack {len(strange)} images, such as {strange.pop()!r}"
            )
        self._coco_api = Truth(content)
        try:
            return super().compute_metrics(  # type: ignore[no-any-return]
                [tuple(side | {"img_id": images[side["img_id"]]} for side in pair) for pair in results]
            )
        finally:
            # Again from the start at the next evaluation.
            self._coco_api, self.cat_ids, self.img_ids = named, None, None

    def _travelling_truth(self, results: list[tuple[Json, Json]]) -> Json:
        """Return the content of the file that mmdet makes where the truth comes with the images."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.gt_to_coco_json([truth for truth, _ in results], f"{folder}/truth")
            content: Json = json.loads(Path(file).read_text(encoding="utf-8"))
        return {"annotations": []} | content


class Truth(COCO):  # type: ignore[misc]
    """mmdet's COCO from a file's content."""

    def __init__(self, content: Json) -> None:
        super().__init__()
        self.dataset = content
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def loadRes(self, results: list[Json]) -> COCO:
        """Take results in; also none, at which pycocotools raises IndexError."""
        return super().loadRes(results) if results else Truth(self.dataset | {"annotations": []})


def number(annotations: Json) -> tuple[Json, dict[Any, int]]:
    """Return a COCO instances file's content with ids 1, 2, …, and the images' by their old ones.

    Images and categories keep the order of their ids, which decides which of two results of equal score comes first.
    """
    images = _numbers(image["id"] for image in annotations["images"])
    categories = _numbers(category["id"] for category in annotations["categories"])
    objects = annotations["annotations"]
    known = [one for one in objects if one["image_id"] in images and one["category_id"] in categories]
    if len(known) < len(objects):
        print_log(
            f"{len(objects) - len(known)} of {len(objects)} objects do not count: the annotations list no such "
            "category or image",
            logger="current",
            level=30,
        )
    return annotations | {
        "images": [image | {"id": images[image["id"]]} for image in annotations["images"]],
        "categories": [one | {"id": categories[one["id"]]} for one in annotations["categories"]],
        "annotations": [
            one
            | {
                "id": count,
                "image_id": images[one["image_id"]],
                "category_id": categories[one["category_id"]],
            }
            for count, one in enumerate(known, 1)
        ],
    }, images


def _numbers(ids: Iterable[Any]) -> dict[Any, int]:
    """Number ids from 1 in their order, numbers before text."""
    return {
        one: count
        for count, one in enumerate(sorted(set(ids), key=lambda one: (isinstance(one, str), one)), 1)
    }


@HOOKS.register_module()
class PredictionsHook(Hook):
    """Where the environment has OUT, a test writes its results there and is not scored: `make eval` does that.

    mmdet writes `$OUT.bbox.json` and `$OUT.segm.json`. Beside them, `$OUT.images.json` holds `annotations`, the file,
    and `images`, the ids of the test set's images in its order: all of the file's, the first ones (`indices`), or
    those that a training keeps. (By mmengine's command line, a path with a comma would become another one.)
    """

    def before_test(self, runner: Runner) -> None:
        """Tell mmdet's metric, and write the list."""
        out = os.environ.get("OUT")
        if not out:
            return
        metric, dataset = runner.test_evaluator.metrics[0], runner.test_dataloader.dataset
        metric.format_only, metric.outfile_prefix = True, out
        if is_main_process():
            content = {
                "annotations": str(Path(dataset.ann_file).absolute()),
                "images": [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))],
            }
            Path(f"{out}.images.json").write_text(json.dumps(content), encoding="utf-8")
