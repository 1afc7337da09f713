"""Step time of ViTDet-tiny on the NPU, simulated or real, against the same model on this machine's CPU.

One process, one training step (forward, backward, optimizer) of each device in turn, the same batches, medians.
On cann_sim the ratio is what the simulation costs: its kernels are the CPU's. It says nothing about an NPU's speed.

    python tests/bench/bench_train.py [--steps 20]
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
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

GENERATOR = Path(__file__).parents[2] / "scripts" / "ascendet" / "shapes.py"
BATCHES = 4


class Training:
    """A model on a device with its optimizer."""

    def __init__(self, model, device, cfg):
        from mmdet.registry import MODELS  # noqa: F401  its scope is the default one by now
        from mmengine.optim import build_optim_wrapper

        self.device = device
        self.model = copy.deepcopy(model).to(torch.device(device)).train()
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.seconds = []
        self.losses = []

    def step(self, batch):
        """Train on one batch and keep its wall time, device included."""
        torch.manual_seed(0)
        start = time.perf_counter()
        losses = self.model.train_step(copy.deepcopy(batch), self.optimizer)
        if self.device != "cpu":
            torch.npu.synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(float(losses["loss"].detach()))


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="measured steps per device")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, GENERATOR, "--out", f"{data}/shapes", "--train", "16", "--val", "1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        os.environ["ASCENDET_DATA"] = data
        cfg = Config.fromfile(Path(vitdet.__file__).parent / "configs" / "vitdet-tiny_shapes.py")
        init_default_scope("mmdet")
        loader = iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))
        batches = [next(loader) for _ in range(BATCHES)]
    from mmdet.registry import MODELS

    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    cpu, npu = Training(model, "cpu", cfg), Training(model, "npu:0", cfg)
    warm_up = 2 * BATCHES
    for index in range(warm_up + args.steps):
        # Neither is always the first, nor the one that follows the other's cache.
        for training in (cpu, npu) if index % 2 else (npu, cpu):
            training.step(batches[index % BATCHES])
    times = {
        name: statistics.median(training.seconds[warm_up:]) for name, training in (("cpu", cpu), ("npu", npu))
    }
    simulated = " (simulated by cann_sim)" if "cann_sim" in os.environ.get("ASCEND_HOME_PATH", "") else ""
    name = f"{torch.npu.get_device_name(0)}{simulated}"
    print(
        f"vitdet-tiny, {cfg.train_dataloader.batch_size} images per step, median of {args.steps} interleaved steps"
    )
    print(f"  CPU, {torch.get_num_threads()} threads  {times['cpu'] * 1e3:8.1f} ms")
    print(f"  {name}  {times['npu'] * 1e3:8.1f} ms")
    print(f"  NPU / CPU  {times['npu'] / times['cpu']:8.3f}")
    first = abs(npu.losses[0] - cpu.losses[0]) / cpu.losses[0]
    print(f"  first loss: CPU {cpu.losses[0]:.6f}, NPU {npu.losses[0]:.6f}, relative difference {first:.1e}")


if __name__ == "__main__":
    main()
