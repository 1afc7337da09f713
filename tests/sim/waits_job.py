"""Counts for test_waits.py what ViTDet-tiny asks of an NPU: python waits_job.py OUT. One key of OUT per part."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch_npu  # noqa: F401  registers the device
import vitdet
from cann_sim import counters
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from vitdet.data import fill
from vitdet.losses import LossHook

STEPS = {"backbone": 4, "region proposals": 6, "training": 4, "mixed precision": 2}
CONFIGS = Path(vitdet.__file__).parent / "configs"


def tiny() -> Config:
    """The tiny model with ViTDet-B's augmentation and drop path, at the tiny model's image size."""
    cfg = Config.fromfile(str(CONFIGS / "vitdet-tiny.py"))
    fill(cfg)
    recipe = Config.fromfile(str(CONFIGS / "vitdet-b.py"))
    size = (cfg.model.backbone.img_size,) * 2
    pipeline = copy.deepcopy(recipe.train_pipeline)
    for transform in pipeline:
        for key in {"scale", "crop_size", "size"} & transform.keys():
            transform[key] = size
    cfg.train_dataloader.dataset.pipeline = pipeline
    cfg.train_dataloader.batch_size = 2
    cfg.model.backbone.drop_path_rate = recipe.model.backbone.drop_path_rate
    cfg.optim_wrapper.pop("clip_grad")  # the recipe has none
    return cfg


def count(step: Callable[[int], None], steps: int) -> dict[str, Any]:
    """The counters of `steps` steps."""
    torch.npu.synchronize()
    counters.start()
    for index in range(steps):
        step(index)
        counters.step()
    counters.stop()
    return counters.snapshot()


def main() -> None:
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    cfg = tiny()
    set_random_seed(0)
    device = torch.device("npu:0")
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    batches = list(loader)
    results = {}

    for attention in ("fused", "plain"):
        cfg.model.backbone.attention = attention
        model = MODELS.build(cfg.model).to(device).train()
        image = torch.randn(2, 3, *[cfg.model.backbone.img_size] * 2).to(device)

        def backbone_and_neck(_: int, model: Any = model, image: torch.Tensor = image) -> None:
            sum(level.square().mean() for level in model.extract_feat(image)).backward()
            model.zero_grad(set_to_none=True)

        results[f"{attention} backbone"] = count(backbone_and_neck, STEPS["backbone"])
    cfg.model.backbone.attention = "fused"

    def region_proposals(index: int) -> None:
        batch = model.data_preprocessor(copy.deepcopy(batches[index]), True)
        losses, _ = model.rpn_head.loss_and_predict(
            model.extract_feat(batch["inputs"]), batch["data_samples"], model.train_cfg.rpn_proposal
        )
        sum(losses.values()).backward()
        model.zero_grad(set_to_none=True)

    model = MODELS.build(cfg.model).to(device).train()
    results["region proposals"] = count(region_proposals, STEPS["region proposals"])

    for name, wrapper in (("training", "OptimWrapper"), ("mixed precision", "MixedPrecisionOptimWrapper")):
        set_random_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        model = model.to(device).train()
        # A scale that no gradient overflows at: the first one of a dynamic scale skips steps until it fits.
        scale = {"loss_scale": 128.0} if name == "mixed precision" else {}
        optimizer = build_optim_wrapper(model, {**cfg.optim_wrapper, "type": wrapper, **scale})
        hook = LossHook()
        runner = SimpleNamespace(  # of mmengine's, what the hook touches
            epoch=0,
            iter=0,
            max_epochs=1,
            max_iters=len(batches),
            hooks=[],
            message_hub=MessageHub(name),
            train_dataloader=loader,
            optim_wrapper=optimizer,
        )
        hook.before_train(runner)

        def train(index: int, model: Any = model, hook: Any = hook, runner: Any = runner) -> None:
            set_random_seed(index)
            batch = copy.deepcopy(batches[index])
            outputs = model.train_step(batch, runner.optim_wrapper)
            hook.after_train_iter(runner, index, batch, outputs)

        results[name] = count(train, STEPS[name])
        hook.read(runner)
        results[name]["losses"] = runner.message_hub.get_scalar("train/loss").data[0].tolist()
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
