"""What a prediction leaves: its detections, and of which images they are.

The scores are those of these images, not of whatever a file happens to hold.
"""

from __future__ import annotations

import json
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner


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
