"""What a prediction leaves: scores that choose the best checkpoint, or detections and of which images they are.

The scores are those of these images, not of whatever a file happens to hold.
"""

from __future__ import annotations

import json
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


@HOOKS.register_module()
class PredictionsHook(Hook):
    """Let mmdet's metric write its results into WORK_DIR instead of scoring them.

    (By mmengine's command line, a path with a comma would become another one.)
    """

    def before_test(self, runner: Runner) -> None:
        """Tell the metric, and write the list of images."""
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
        """Make one file of mmdet's two: that of masks holds the boxes as well."""
        work = Path(runner.work_dir)
        if is_main_process():
            (work / "predictions.segm.json").rename(work / "predictions.json")
            (work / "predictions.bbox.json").unlink()
