"""Step time on the NPU, simulated or real, against the same model on this machine's CPU.

One process, one training step (forward, backward, optimizer) of each device in turn, the same batches, medians.
CPU time is what the process's threads computed: on a busy machine it is the steadier of the two.
On cann_sim the ratio is what the simulation costs: its kernels are the CPU's. It says nothing about an NPU's speed.

    python tests/bench/bench_step_time.py [--models vitdet-tiny vitdet-b mask-rcnn] [--steps 20]
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch_npu  # noqa: F401  registers the device
import vitdet
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from vitdet.data import fill

GENERATOR = Path(__file__).parents[2] / "wheels" / "common" / "ascendet_common" / "shapes.py"
BATCHES = 4
# The measured steps of a model by default, and its images.
MODELS = {
    "vitdet-tiny": (20, "the shapes data set, 128 px"),
    "vitdet-b": (5, "1 random image of 512 px"),
    "mask-rcnn": (7, "1 random image of 512 px, ResNet-50 FPN"),
}


class Training:
    """A model on a device with its optimizer."""

    def __init__(self, model, device, cfg):
        from mmengine.optim import build_optim_wrapper

        self.device = device
        self.model = copy.deepcopy(model).to(torch.device(device)).train()
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.seconds, self.cpu_seconds = [], []
        self.losses = []

    def step(self, batch):
        """Train on one batch and keep its wall time, device included."""
        torch.manual_seed(0)
        start, cpu_start = time.perf_counter(), time.process_time()
        losses = self.model.train_step(copy.deepcopy(batch), self.optimizer)
        if self.device != "cpu":
            torch.npu.synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)
        self.losses.append(float(losses["loss"].detach()))


def load(name):
    """The configuration, the model with seeded weights and the batches."""
    init_default_scope("mmdet")
    from mmdet.registry import MODELS as REGISTRY
    from mmdet.testing import demo_mm_inputs

    MMLogger.get_current_instance().setLevel("ERROR")  # it tells how each of the weights was initialised
    configs = Path(vitdet.__file__).parent / "configs"
    torch.manual_seed(0)
    if name == "vitdet-tiny":
        with tempfile.TemporaryDirectory() as data:
            command = [sys.executable, GENERATOR, "--out", f"{data}/shapes", "--train", "16", "--val", "1"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            os.environ["ASCENDET_DATA"] = data
            cfg = Config.fromfile(configs / "vitdet-tiny.py")
            fill(cfg)
            loader = iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))
            batches = [next(loader) for _ in range(BATCHES)]
    else:
        if name == "vitdet-b":
            cfg = Config.fromfile(configs / "vitdet-b.py")
            cfg.model.backbone.update(img_size=512, init_cfg=None, drop_path_rate=0.0)
            cfg.model.data_preprocessor.batch_augments[0].size = (512, 512)
        else:
            cfg = Config.fromfile(
                Path(vitdet.__file__).parents[1] / "mmdet/.mim/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
            )
            cfg.model.backbone.init_cfg = None
        batches = [
            demo_mm_inputs(1, [(3, 512, 512)], num_items=[8], num_classes=80, with_mask=True)
            for _ in range(BATCHES)
        ]
    model = REGISTRY.build(cfg.model)
    model.init_weights()
    return cfg, model, batches


def measure(name, steps):
    """Print the medians of one model."""
    cfg, model, batches = load(name)
    cpu, npu = Training(model, "cpu", cfg), Training(model, "npu:0", cfg)
    warm_up = 2 * BATCHES if name == "vitdet-tiny" else 1
    for index in range(warm_up + steps):
        # Neither is always the first, nor the one that follows the other's cache.
        for training in (cpu, npu) if index % 2 else (npu, cpu):
            training.step(batches[index % BATCHES])
    wall, busy = (
        {t.device: statistics.median(getattr(t, kind)[warm_up:]) for t in (cpu, npu)}
        for kind in ("seconds", "cpu_seconds")
    )
    simulated = " (simulated by cann_sim)" if "cann_sim" in os.environ.get("ASCEND_HOME_PATH", "") else ""
    print(f"{name}, {MODELS[name][1]}, median of {steps} interleaved steps")
    print(f"{'':40}{'wall':>10}{'CPU time':>12}")
    for device, label in (
        ("cpu", f"CPU, {torch.get_num_threads()} threads"),
        ("npu:0", torch.npu.get_device_name(0) + simulated),
    ):
        print(f"  {label:<38}{wall[device] * 1e3:>7.0f} ms{busy[device] * 1e3:>9.0f} ms")
    print(f"  {'NPU / CPU':<38}{wall['npu:0'] / wall['cpu']:>10.3f}{busy['npu:0'] / busy['cpu']:>12.3f}")
    first = abs(npu.losses[0] - cpu.losses[0]) / cpu.losses[0]
    print(
        f"  first loss: CPU {cpu.losses[0]:.6f}, NPU {npu.losses[0]:.6f}, relative difference {first:.1e}",
        flush=True,
    )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--steps", type=int, help="measured steps per device and model")
    args = parser.parse_args()
    for name in args.models:
        measure(name, args.steps or MODELS[name][0])


if __name__ == "__main__":
    main()
