"""Random numbers that a resumed training repeats."""

from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed


@HOOKS.register_module()
class SeedEachEpochHook(Hook):
    """Seed every generator by the run's seed, the epoch and the rank.

    So a training that is continued at an epoch's end sees the same flips, samples and dropped paths as one that was
    never interrupted. It covers what is drawn in the main process: load data there (`num_workers=0`).
    """

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed for the epoch that begins."""
        set_random_seed(runner.seed + runner.epoch * runner.world_size, diff_rank_seed=True)
