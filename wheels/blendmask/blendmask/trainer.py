"""The training's loop: steps of accumulated batches, losses that are read when needed, checkpoints, validation.

It can stop after any step and go on as if it had not: which images a step has, and their augmentation, depend on the
step alone, and so does the learning rate. Nothing else is random.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from ascendet_common import checkpoints, progress
from ascendet_common.errors import RunError, report
from ascendet_common.images import printable
from ascendet_common.ranks import Interruption, share
from ascendet_common.resume import EXIT_INTERRUPTED, EXIT_LOSS_NOT_FINITE, INTERRUPTED, note_last
from detectron2.config import CfgNode
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from blendmask import checkpoint
from blendmask.data import Batches, Pictures, Record, Split, train_loader
from blendmask.launch import Rank
from blendmask.mapper import Mapper
from blendmask.metric import average_precision
from blendmask.model import BlendMask
from blendmask.predict import predict
from blendmask.recipe import Recipe, Schedule, build_optimizer

BEST = "best.pth"
_LOG = 25  # steps between two rows of progress
_KEEP = 3  # checkpoints besides the best one


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step was about; `values` are its losses, (losses,), on the device until they are read."""

    number: int
    lr: float
    pictures: list[str]
    names: list[str]
    values: Tensor


class Trainer:
    """Train a model by a recipe.

    Parameters
    ----------
    cfg
        As `recipe.fit` leaves it.
    plan
        What `recipe.fit` returns.
    model
        On the rank's device.
    pictures
        The records to train on.
    validating
        The split that AP is measured on.
    rank
        This one.
    work
        The folder for all that is written.
    mixed
        Whether to train in mixed precision: float16 with a dynamic loss scale on an NPU, bfloat16 on a CPU.
    """

    def __init__(
        self,
        *,
        cfg: CfgNode,
        plan: Recipe,
        model: BlendMask,
        pictures: list[Record],
        validating: Split,
        rank: Rank,
        work: Path,
        mixed: bool,
    ) -> None:
        self.cfg, self.plan, self.model, self.pictures = cfg, plan, model, pictures
        self.validating, self.rank, self.work, self.mixed = validating, rank, work, mixed
        self.seed = max(cfg.SEED, 0)
        self.optimizer = build_optimizer(cfg, model)
        self.schedule = Schedule(cfg, self.optimizer)
        on_npu = rank.device.type == "npu"
        self.dtype = torch.float16 if on_npu else torch.bfloat16
        scaler = torch.npu.amp.GradScaler if on_npu else torch.amp.GradScaler
        self.scaler = scaler(enabled=mixed) if on_npu else scaler("cpu", enabled=mixed)
        # Without device_ids: samples stay on the host, the model sends what it needs.
        self.wrapped: nn.Module = (
            DistributedDataParallel(model, broadcast_buffers=False) if rank.count > 1 else model
        )
        self.done = 0
        self.best = -1.0
        self.steps: list[Step] = []  # whose losses are still on the device
        self.unlogged: list[dict[str, float]] = []  # losses that the next row of progress is the mean of
        self._start_clock()

    # -- the loop --

    def train(self) -> None:
        """Train to the end, or until SIGTERM: then SystemExit(EXIT_INTERRUPTED), with `interrupted.pth` written."""
        interruption = Interruption()
        self._check_ranks()
        if self.rank.first:
            mixed = ", mixed precision" if self.mixed else ""
            progress.write("note", text=f"recipe: {self.plan}{mixed}, learning rate {self.plan.lr:g}")
            if self.done:
                progress.write("note", text=f"resumed after step {self.done}")
        batches = Batches(
            self.pictures,
            self.plan.batch.per_rank,
            rank=self.rank.number,
            ranks=self.rank.count,
            seed=self.seed,
            skip=self.done * self.plan.batch.accumulated,
        )
        loader = train_loader(
            Pictures(self.pictures, Mapper(self.cfg, training=True)), batches, self.cfg.DATALOADER.NUM_WORKERS
        )
        self.model.train()
        self._start_clock()
        with self._board() as self.board:
            items = iter(loader)
            while self.done < self.plan.steps:
                self.step(items)
                self._after_step(interruption)

    def step(self, items: Iterator[list[Record]]) -> None:
        """Take one step of the optimizer."""
        lr = self.schedule.set(self.done, self.optimizer)
        accumulated = self.plan.batch.accumulated
        total: dict[str, Tensor] = {}
        names: list[str] = []
        for number in range(accumulated):
            samples = next(items)
            last = number + 1 == accumulated
            waiting = contextlib.nullcontext() if last or self.rank.count == 1 else self.wrapped.no_sync()
            with waiting:
                with torch.autocast(self.rank.device.type, self.dtype, enabled=self.mixed):
                    losses = self.wrapped(samples)
                self.scaler.scale(sum(losses.values()) / accumulated).backward()
            names += [sample["file_name"] for sample in samples]
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / accumulated
        clip = self.cfg.SOLVER.CLIP_GRADIENTS
        if clip.ENABLED:
            self.scaler.unscale_(self.optimizer)
            parameters = [value for value in self.model.parameters() if value.requires_grad]
            if clip.CLIP_TYPE == "norm":
                torch.nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
            else:
                torch.nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.steps.append(
            Step(
                number=self.done,
                lr=lr,
                pictures=names,
                names=list(total),
                values=torch.stack(list(total.values())),
            )
        )

    def _after_step(self, interruption: Interruption) -> None:
        """Log, save, validate and end where it is time to."""
        end = self.done == self.plan.steps
        saving = end or self.done % self.plan.save == 0
        validating = end or self.done % self.plan.validate == 0
        stopping = interruption.is_last(self.done)
        logging = saving or validating or self.done % _LOG == 0
        if logging or stopping:
            self.read_losses()
        if logging and self.rank.first:
            self._log()
        if saving:
            self.save(f"step_{self.done}.pth")
        if stopping and not end:
            self.save(INTERRUPTED)
            message = f"saved {INTERRUPTED} after iteration {self.done}"
            if self.rank.first:
                print(f"error[interrupted]: {message}", flush=True)
            report(RunError("the training was interrupted", name="interrupted", found=message))
            raise SystemExit(EXIT_INTERRUPTED)
        if validating:
            self.validate()

    # -- losses --

    def read_losses(self) -> None:
        """Copy the losses from the device; end all ranks where one is not finite.

        All ranks call it after the same steps. Neither a loss that is not finite nor what it leads to is ever saved.
        """
        steps, self.steps = self.steps, []
        if not steps:
            return
        rows = torch.stack([step.values for step in steps]).tolist()
        bad = [
            (step, name, value)
            for step, row in zip(steps, rows, strict=True)
            for name, value in zip(step.names, row, strict=True)
            if not math.isfinite(value)
        ]
        first = torch.tensor(float(bad[0][0].number) if bad else math.inf, device=self.rank.device)
        if self.rank.count > 1:  # this rank's may be the consequence of another one's, a step earlier
            distributed.all_reduce(first, distributed.ReduceOp.MIN)
        if first.item() < math.inf:
            self._end(self._describe(bad) if bad and bad[0][0].number == first.item() else None)
        if self.rank.first:
            self.unlogged += [
                dict(zip(step.names, row, strict=True)) for step, row in zip(steps, rows, strict=True)
            ]

    def _log(self) -> None:
        """Write a row of progress: the mean of the losses since the last one, also of those before an interruption."""
        seconds = (time.monotonic() - self.since) / (self.done - self.since_step)
        self._start_clock()
        rows, self.unlogged = self.unlogged, []
        losses = {name: sum(row[name] for row in rows) / len(rows) for name in rows[-1]}
        loss, lr = sum(losses.values()), self.optimizer.param_groups[0]["lr"]
        memory = torch.npu.max_memory_allocated() / 2**20 if self.rank.device.type == "npu" else None
        progress.write(
            "train",
            step=self.done,
            of=self.plan.steps,
            epoch=int((self.done - 1) * self.plan.epochs / self.plan.steps) + 1,
            eta=seconds * (self.plan.steps - self.done),
            loss=loss,
            losses=losses,
            lr=lr,
            seconds=seconds,
            memory=round(memory) if memory is not None else None,
        )
        for name, value in {**losses, "loss": loss, "lr": lr, "seconds": seconds}.items():
            self.board.add_scalar(f"train/{name}", value, self.done)

    def _start_clock(self) -> None:
        """Begin to measure the time per step."""
        self.since, self.since_step = time.monotonic(), self.done

    def _describe(self, bad: Sequence[tuple[Step, str, float]]) -> str:
        """Return one line about the losses that are not finite, those of the first such step."""
        step = bad[0][0]
        losses = ", ".join(f"{name} is {value}" for one, name, value in bad if one is step)
        pictures = ", ".join(map(printable, step.pictures))
        return (
            f"{losses} in iteration {step.number} of rank {self.rank.number}, learning rate {step.lr:.3g} "
            f"(LR={self.plan.lr:g}), pictures: {pictures}"
        )

    def _end(self, message: str | None) -> NoReturn:
        """End this rank, as all others do; each machine's first one prints the message that one of them has."""
        message = share(message)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error[loss-not-finite]: {message}", flush=True)
            half = {"LR": f"{self.plan.lr / 2:g}"}
            report(RunError("the training diverges", name="loss-not-finite", found=message, advice=half))
        raise SystemExit(EXIT_LOSS_NOT_FINITE)

    # -- checkpoints --

    def save(self, name: str) -> None:
        """Write a checkpoint and note it as the last one, on the first rank; older ones go afterwards.

        Weights that are not finite, which gradients can make although the losses were finite, end all ranks instead.
        """
        state = {key: value.cpu() for key, value in self.model.state_dict().items()}
        names = [name for name, _ in self.model.named_parameters()]
        spoilt = [name for name in names if not state[name].isfinite().all()]
        if spoilt:  # on every rank: they have the same
            self._end(
                f"{len(spoilt)} of {len(names)} weights are not finite after iteration {self.done}, {spoilt[0]} "
                f"among them; learning rate {self.optimizer.param_groups[0]['lr']:.3g} (LR={self.plan.lr:g})"
            )
        if not self.rank.first:
            return
        content = {
            "model": state,
            "optimizer": _on_host(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "meta": {
                "step": self.done,
                "images_per_step": self.plan.batch.effective,
                "lr": self.plan.lr,
                "classes": list(self.validating.classes),
                "best": self.best,
                "unlogged": self.unlogged,  # of interrupted.pth alone: others are saved after a row of progress
            },
        }
        checkpoints.write(content, self.work / name)
        if name == BEST:
            return
        note_last(self.work, name)
        numbered = sorted(self.work.glob("step_*.pth"), key=lambda file: int(file.stem[5:]))
        for old in numbered[:-_KEEP]:
            old.unlink()
        if name != INTERRUPTED:
            (self.work / INTERRUPTED).unlink(missing_ok=True)

    def resume(self, content: dict[str, Any]) -> None:
        """Go on from a checkpoint of ours, also on another number of devices: then steps are counted anew.

        Raises
        ------
        CheckpointError
            It is one of another model.
        """
        checkpoint.load(self.model, content)
        self.optimizer.load_state_dict(content["optimizer"])
        if self.mixed and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        meta = content["meta"]
        images = self.plan.batch.effective
        self.done = round(meta["step"] * meta["images_per_step"] / images)
        self.best = meta["best"]
        self.unlogged = list(meta.get("unlogged", ()))
        if self.rank.first and (meta["images_per_step"], meta["lr"]) != (images, self.plan.lr):
            progress.write(
                "note",
                text=f"recipe: {meta['images_per_step']} images per step and learning rate {meta['lr']:g} before, "
                f"{images} and {self.plan.lr:g} now",
            )

    # -- validation --

    def validate(self) -> None:
        """Measure AP on the validation split, and keep the weights as the best ones if they are."""
        results = predict(
            self.model, self.cfg, self.validating.found, self.validating.categories, self.rank, "validate"
        )
        ap = torch.zeros(2, device=self.rank.device)
        if self.rank.first:
            images = [record["image_id"] for record in self.validating.found]
            measured = average_precision(self.validating.file, images, results)
            progress.write("validate", step=self.done, AP=measured)
            for name, value in measured.items():
                self.board.add_scalar(f"AP/{name}", value, self.done)
            ap = torch.tensor([measured["bbox"], measured["segm"]], device=self.rank.device)
        if self.rank.count > 1:
            distributed.broadcast(ap, 0)
        if ap[0].item() > self.best:
            self.best = ap[0].item()
            self.save(BEST)
        self._start_clock()

    # -- ranks --

    def _check_ranks(self) -> None:
        """Raise RuntimeError where ranks resumed at different steps."""
        if self.rank.count > 1:
            limits = torch.tensor([float(self.done), -float(self.done)], device=self.rank.device)
            distributed.all_reduce(limits, distributed.ReduceOp.MAX)
            most, least = limits.tolist()
            if most != -least:
                raise RuntimeError(
                    f"ranks are at different steps ({int(-least)} to {int(most)}): every machine must see the same "
                    "work folder to resume"
                )

    @contextlib.contextmanager
    def _board(self) -> Iterator[Any]:
        """Open TensorBoard's log, on the first rank."""
        if not self.rank.first:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.work / "tensorboard"), purge_step=self.done or None) as board:
            yield board


def last_of(work: Path) -> Path | None:
    """Return the checkpoint that a training noted last in its folder, None where there is none."""
    note = work / "last_checkpoint"
    file = work / Path(note.read_text(encoding="utf-8").strip()).name if note.is_file() else None
    return file if file and file.is_file() else None


def _on_host(value: Any) -> Any:
    """Copy a nest of dictionaries and lists with its tensors on the host."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_on_host(item) for item in value]
    return value
