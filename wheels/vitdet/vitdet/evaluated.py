"""What an evaluation leaves: its detections, and of which images they are.

The scores are those of these images, not of whatever a file happens to hold.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner


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
