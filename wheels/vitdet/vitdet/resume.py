"""Training that can stop after any step and resume exactly: order of pictures, random numbers, loops.

mmengine 0.10 can resume only at the end of an epoch, or loads all earlier pictures again. Here each picture is drawn as
(seed, epoch, index), which also seeds its augmentation in the process that loads it; each iteration seeds the random
numbers of the model; and a loop that resumes asks the sampler for the rest of the epoch.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from ascendet_common.errors import RunError, report
from mmdet.registry import DATA_SAMPLERS, HOOKS, LOOPS
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, set_random_seed
from mmengine.runner.loops import _InfiniteDataloaderIterator

# The same as errors.EXIT_CODES["interrupted"] of the tool, which cannot be imported here.
EXIT_INTERRUPTED = 25
INTERRUPTED = "interrupted.pth"

Draw = tuple[int, int, int]


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """mmengine's sampler, shuffled by seed and epoch, which can also start within an epoch.

    It passes draws (seed, epoch, index) to a `CheckedCocoDataset`. `skip` is the number of this rank's pictures to
    leave out of the next pass, and of that pass only.
    """

    skip = 0

    def __iter__(self) -> Iterator[Draw]:
        """Return the draws of this rank's part of the epoch that are left after `skip`."""
        skip, self.skip = self.skip, 0
        return iter([(self.seed, self.epoch, index) for index in super().__iter__()][skip:])


def seed_draw(draw: Draw) -> int:
    """Seed the generators that augmentations use for one picture of one epoch, and return the picture's index."""
    random.seed("{} {} {}".format(*draw))
    np.random.seed(draw)  # mmcv's transforms use numpy's generator
    return draw[2]


@HOOKS.register_module()
class SeedEachIterationHook(Hook):
    """Seed all random generators by the run's seed, the iteration and the rank, before each iteration."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the generators for the iteration that begins."""
        set_random_seed(runner.seed + runner.iter * runner.world_size, diff_rank_seed=True)


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, but an epoch that was interrupted resumes where it stopped."""

    def run_epoch(self) -> None:
        """Iterate over the rest of one epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.sampler.skip = done * self.dataloader.batch_size
        for index, batch in enumerate(self.dataloader, done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


class _SkippedItems:
    """Yields None for the first `count` items instead of loading them, then the items of an iterator."""

    def __init__(self, items: Iterator[Any], count: int) -> None:
        self.items, self.count = items, count

    def __next__(self) -> Any:
        if self.count:
            self.count -= 1
            return None
        return next(self.items)


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations, but a resumed training does not load earlier pictures again."""

    def run(self) -> Any:
        """Run the loop; continue from the current iteration when resuming."""
        if self._iter:
            sampler, length = self.dataloader.sampler, len(self.dataloader)
            epoch, done = divmod(self._iter, length)
            sampler.set_epoch(epoch)
            sampler.skip = done * self.dataloader.batch_size
            items = _InfiniteDataloaderIterator(self.dataloader)
            items._epoch = epoch
            self.dataloader_iterator = _SkippedItems(items, self._iter)
        return super().run()


@HOOKS.register_module()
class InterruptHook(Hook):
    """On SIGTERM (from an operator, Kubernetes' pre-emption or torchrun) finish the step, save a checkpoint, and end.

    Ranks receive the signal at different times, or only on one node, but must end after the same step, or some would
    wait for the gradients of others. The first rank that sees the signal writes the number of the last step into the
    process group's store: the second end of an optimizer step from now. No rank can be past it, because a forward pass
    needs the weights of the step before, and these need the gradients of the rank that wrote the number. This costs one
    request to the store per step, and nothing on the device.

    The training ends with SystemExit(EXIT_INTERRUPTED) and `interrupted.pth` in the work folder.
    """

    priority = "LOWEST"  # after the schedulers' step, and after a checkpoint of the same iteration

    def before_train(self, runner: Runner) -> None:
        """Install the signal handler, and check that all ranks start at the same iteration."""
        self.asked = False
        signal.signal(signal.SIGTERM, self._take)
        limits = [torch.tensor(float(value)) for value in (runner.iter, -runner.iter)]
        for limit in limits:
            all_reduce(limit, "max")
        if limits[0] != -limits[1]:
            raise RuntimeError(
                f"ranks are at different iterations ({int(-limits[1])} to {int(limits[0])}): "
                "every node must see the same work folder to resume"
            )

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save a checkpoint and end, if this is the step that the ranks agreed on."""
        accumulated = runner.optim_wrapper._accumulative_counts
        done = runner.iter + 1
        if done % accumulated or not self._is_last(done, accumulated):
            return
        runner.save_checkpoint(
            runner.work_dir, INTERRUPTED, meta={"epoch": runner.epoch, "iter": done}, by_epoch=False
        )
        if is_main_process():
            note_last(Path(runner.work_dir), INTERRUPTED)
        print_log(f"error[interrupted]: saved {INTERRUPTED} after iteration {done}", logger="current")
        report(
            RunError(
                "the training was interrupted",
                name="interrupted",
                found=f"saved {INTERRUPTED} after iteration {done}",
            )
        )
        raise SystemExit(EXIT_INTERRUPTED)

    def _is_last(self, done: int, accumulated: int) -> bool:
        if get_world_size() == 1:
            return self.asked
        store = torch.distributed.distributed_c10d._get_default_store()
        if self.asked:
            store.compare_set("ascendet/last", "", str(done + 2 * accumulated))
        return bool(store.check(["ascendet/last"]) and done >= int(store.get("ascendet/last")))


def note_last(folder: Path, name: str) -> None:
    """Write the name of the checkpoint to resume from to `last_checkpoint`, as mmengine does, but in one step."""
    temp = folder / ".last_checkpoint"
    temp.write_text(str(folder / name), encoding="utf-8")
    temp.rename(folder / "last_checkpoint")
