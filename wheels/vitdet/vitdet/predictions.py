"""Results of a prediction: scores, which choose the best checkpoint, or files of detections and of their images.

The scores cover exactly the predicted images, whatever else the annotation file holds.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ascendet_common.coco import number
from ascendet_common.data import DataError
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS, METRICS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

Json = dict[str, Any]


@METRICS.register_module()
class NumberedCocoMetric(CocoMetric):
    """mmdet's COCO metric, but its scores do not depend on the ids in the annotation file.

    pycocotools treats an object with the id 0 as not found, keeps only one of several objects with the same id, and
    fails at ids that are text; therefore it gets new ids. Result files (`format_only`) keep the annotations' ids. A
    model that finds nothing has an AP of 0; mmdet reports no number then.
    """

    _coco_api: Any  # mmdet's, the annotations to evaluate with; None if they come with the images

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.collect_device == "cpu" and "WORK_DIR" in os.environ:
            # Where ranks hand over their results: mmengine's choice is the current folder, which may be another user's.
            self.collect_dir = str(Path(os.environ["WORK_DIR"]) / ".results")

    def compute_metrics(self, results: list[tuple[Json, Json]]) -> dict[str, float]:
        """Return `bbox_mAP` and the like for pairs of truth and prediction, each with its `img_id`.

        Raises
        ------
        DataError
            The annotations lack images that were predicted.
        """
        if self.format_only:
            return super().compute_metrics(results)
        named = self._coco_api
        content, images, lost = number(named.dataset if named else self._travelling_truth(results))
        if lost:
            print_log(
                f"{lost} objects do not count: the annotations list no such category or image",
                logger="current",
                level=30,
            )
        if strange := {truth["img_id"] for truth, _ in results} - images.keys():
            raise DataError(
                f"the annotations to evaluate with lack {len(strange)} images, such as {strange.pop()!r}"
            )
        self._coco_api = Truth(content)
        try:
            return super().compute_metrics(
                [tuple(side | {"img_id": images[side["img_id"]]} for side in pair) for pair in results]
            )
        finally:
            # The next evaluation must start from the annotations again.
            self._coco_api, self.cat_ids, self.img_ids = named, None, None

    def _travelling_truth(self, results: list[tuple[Json, Json]]) -> Json:
        """Return the ground truth that came with the images, as the content of the COCO file that mmdet makes of it."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.gt_to_coco_json([truth for truth, _ in results], f"{folder}/truth")
            content: Json = json.loads(Path(file).read_text(encoding="utf-8"))
        return {"annotations": []} | content


class Truth(COCO):
    """mmdet's COCO, made from the content of a file."""

    def __init__(self, content: Json) -> None:
        super().__init__()
        self.dataset = content
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def loadRes(self, results: list[Json]) -> COCO:
        """Return a COCO of the results; an empty list is allowed (pycocotools raises IndexError)."""
        return super().loadRes(results) if results else Truth(self.dataset | {"annotations": []})


@HOOKS.register_module()
class PredictionsHook(Hook):
    """Let mmdet's metric write its results into WORK_DIR instead of scoring them.

    This is a hook and not options of the command line, because mmengine's parser would change a path with a comma.
    """

    def before_test(self, runner: Runner) -> None:
        """Set the metric's output files, and write the list of images."""
        work = Path(runner.work_dir)
        metric, dataset = runner.test_evaluator.metrics[0], runner.test_dataloader.dataset
        metric.format_only, metric.outfile_prefix = True, str(work / "predictions")
        if is_main_process():
            content = {
                "annotations": str(Path(dataset.ann_file).absolute()),
                "images": [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))],
            }
            (work / "images.json").write_text(json.dumps(content), encoding="utf-8")

    def after_test(self, runner: Runner) -> None:
        """Keep only mmdet's file of masks, as predictions.json: it holds the boxes as well."""
        work = Path(runner.work_dir)
        if is_main_process():
            (work / "predictions.segm.json").rename(work / "predictions.json")
            (work / "predictions.bbox.json").unlink()
