"""Which images an evaluation is about: the scores are those of these images, not of whatever a file happens to hold."""

from __future__ import annotations

import json
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class EvaluatedImagesHook(Hook):
    """Where predictions are written to `<prefix>.*.json`, write `<prefix>.images.json` beside them.

    It holds `annotations`, the instances file, and `images`, the ids of the test set's images, in its order: all of the
    file's, the first ones (`indices`), or those that a training keeps.
    """

    @master_only
    def before_test(self, runner: Runner) -> None:
        """Write the list."""
        dataset, metric = runner.test_dataloader.dataset, runner.test_evaluator.metrics[0]
        if metric.outfile_prefix is None:
            return
        content = {
            "annotations": str(Path(dataset.ann_file).absolute()),
            "images": [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))],
        }
        Path(f"{metric.outfile_prefix}.images.json").write_text(json.dumps(content), encoding="utf-8")
