"""ViTDet-tiny's training step and inference on the NPU, simulated or real: what it waits for, and how long it takes.

With ViTDet-B's augmentation, at the tiny model's image size, stock mmdet (no patches, its own region proposal head and
preprocessing) beside ours, and step times beside this machine's CPU. On cann_sim everything is counted: host
synchronisations and copies by source line, kernel launches, signatures (operator, dtypes, shapes; on a card each may be
a compilation). Its times are those of the CPU's kernels and of the simulation, they say nothing about an NPU's speed.
On a card there are no counters, only times.

    python tests/bench/bench_train.py [--steps 100]
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "sim"), str(TESTS / "models")]

import torch  # noqa: E402
import torch_npu  # noqa: E402, F401  registers the device

SIMULATED = "cann_sim" in os.environ.get("ASCEND_HOME_PATH", "")
FIELDS = ("launches", "host_syncs", "h2d_bytes", "d2h_bytes", "new_signatures")
# What the parts of a step are in the model; the rest of it is the batch's way to the device and the optimizer.
PARTS = {
    "backbone and neck": ("extract_feat",),
    "region proposals": ("rpn_head.loss_and_predict", "rpn_head.predict"),
    "heads of regions": ("roi_head.loss", "roi_head.predict"),
}
INFERENCES = 20
LATE = 3  # steps after which one would like to see no new signature


class Parts:
    """Counts by part: each function of PARTS, and `backward`, is measured by the counters before and after it."""

    def __init__(self, model, optimizer):
        from cann_sim import counters

        self.counters, self.counts = counters, Counter()
        for name, functions in PARTS.items():
            for function in functions:
                *owner, attribute = function.split(".")
                self.wrap(getattr(model, owner[0]) if owner else model, attribute, name)
        self.wrap(optimizer, "backward", "backward")

    def wrap(self, owner, attribute, name):
        inner = getattr(owner, attribute)

        def measured(*args, **kwargs):
            before = self.totals()
            result = inner(*args, **kwargs)
            for field, value in self.totals().items():
                self.counts[name, field] += value - before[field]
            return result

        setattr(owner, attribute, measured)

    def totals(self):
        steps = self.counters.snapshot()["steps"]
        return {field: sum(step[field] for step in steps) for field in FIELDS}


def build(cfg, whose):
    """The model on the CPU, with seeded weights."""
    from mmdet.registry import MODELS
    from mmengine.runner import set_random_seed

    if whose == "stock":
        cfg.model.data_preprocessor.type = "DetDataPreprocessor"
        cfg.model.rpn_head.type = "RPNHead"
    set_random_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.train()


def timed(action, batch, device):
    """The wall time of one step, device included."""
    start = time.perf_counter()
    action(batch)
    if device != "cpu":
        torch.npu.synchronize()
    return time.perf_counter() - start


def measure(whose, device, steps):
    """Train and infer `steps` times on `device`; the counters of both, and median seconds."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner
    from waits_job import tiny

    init_default_scope("mmdet")
    cfg = tiny()
    model = build(cfg, whose).to(torch.device(device))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    cfg.test_dataloader.batch_size = 1
    actions = {
        "training": (cfg.train_dataloader, lambda batch: model.train_step(batch, optimizer)),
        "inference": (cfg.test_dataloader, torch.no_grad()(model.test_step)),
    }
    result = {}
    for name, (loader, action) in actions.items():
        batches = list(Runner.build_dataloader(loader, seed=0))
        model.train(name == "training")
        seconds = []
        count = SIMULATED and device != "cpu"
        if count:
            from cann_sim import counters

            parts = Parts(model, optimizer)
            counters.start()
        for index in range(steps if name == "training" else min(steps, INFERENCES)):
            batch = copy.deepcopy(batches[index % len(batches)])
            seconds.append(timed(action, batch, device))
            if count:
                counters.step()
        result[name] = {"seconds": statistics.median(seconds[min(LATE, steps - 1) :])}
        if count:
            counters.stop()
            result[name] |= {"counters": counters.snapshot()}
            result[name] |= {"parts": [[*key, value] for key, value in parts.counts.items()]}
    return result


def tables(found):
    """Print stock beside ours."""
    for name in ("training", "inference"):
        both = [found[whose][name] for whose in ("stock", "ours")]
        counted = [one["counters"] for one in both]
        steps = len(counted[0]["steps"]) - 1  # the last entry is what followed the last step
        print(f"\n{name}, per step{'':<30}{'stock':>12}{'ours':>12}")
        for field in FIELDS:
            values = [sum(step[field] for step in one["steps"]) / steps for one in counted]
            print(f"  {field:<44}{values[0]:>12.1f}{values[1]:>12.1f}")
        late = [sum(step["new_signatures"] for step in one["steps"][LATE:]) for one in counted]
        print(f"  {f'new signatures after step {LATE}, in all':<44}{late[0]:>12}{late[1]:>12}")
        for field in ("host_syncs", "launches", "new_signatures"):
            print(f"  {field} by part")
            by_part = [{part: value for part, of, value in one["parts"] if of == field} for one in both]
            for part in by_part[0]:
                values = [one.get(part, 0) / steps for one in by_part]
                print(f"    {part:<42}{values[0]:>12.1f}{values[1]:>12.1f}")
        for section, unit in (("host_syncs", "count"), ("copies", "bytes")):
            print(f"  {section} by line ({unit})")
            by_line = [Counter(), Counter()]
            for rows, one in zip(by_line, counted, strict=True):
                for row in one[section]:
                    kind = row.get("direction") or row["call"].replace(
                        "aclrtSynchronizeStream", "copy or item"
                    )
                    line = row["line"].rpartition("site-packages/")[2].rpartition("/mmdet/")
                    rows[f"{(line[1] + line[2]).lstrip('/')}  {kind}"] += row[unit]
            lines = sorted(
                by_line[0].keys() | by_line[1].keys(), key=lambda key: -by_line[0][key] - by_line[1][key]
            )
            for line in lines:
                values = [rows[line] / steps for rows in by_line]
                print(f"    {line:<90}{values[0]:>12.2f}{values[1]:>12.2f}")


def main():
    """Measure each in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="training steps of each")
    parser.add_argument("--measure", nargs=3, metavar=("WHOSE", "DEVICE", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        whose, device, file = args.measure
        Path(file).write_text(json.dumps(measure(whose, device, args.steps)))
        return
    from stock import stock_mmdet

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data, stock = Path(folder) / "data", Path(folder) / "stock"
        generator = TESTS.parent / "wheels" / "common" / "ascendet_common" / "shapes.py"
        command = [sys.executable, generator, "--out", data / "shapes", "--train", "64", "--val", "8"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        stock.mkdir()
        paths = {"stock": f"{stock_mmdet(stock)}:", "ours": ""}
        for name, whose, device in (
            ("stock", "stock", "npu:0"),
            ("ours", "ours", "npu:0"),
            ("cpu", "ours", "cpu"),
        ):
            file = Path(folder) / f"{name}.json"
            steps = args.steps if device != "cpu" else min(args.steps, 20)
            command = [sys.executable, __file__, "--steps", str(steps), "--measure", whose, device, file]
            environ = {**os.environ, "ASCENDET_DATA": str(data)}
            # Equal in every run, and with torch_npu's queue no count would belong to the line that asked for it.
            environ |= {
                "PYTHONPATH": paths[whose] + os.environ.get("PYTHONPATH", ""),
                "TASK_QUEUE_ENABLE": "0",
            }
            done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            found[name] = json.loads(file.read_text())
    device = f"{torch.npu.get_device_name(0)}{' (simulated by cann_sim)' if SIMULATED else ''}"
    print(
        f"vitdet-tiny with large-scale jitter, {args.steps} steps of 2 images, inference of 1 image, on {device}"
    )
    if SIMULATED:
        tables(found)
    print(
        f"\nmedian seconds per step{' (with counters on)' if SIMULATED else ''}; CPU: {torch.get_num_threads()} threads"
    )
    for name, title in (("stock", "NPU, stock mmdet"), ("ours", "NPU, ours"), ("cpu", "CPU, ours")):
        times = "  ".join(f"{kind} {found[name][kind]['seconds']:.3f}" for kind in ("training", "inference"))
        print(f"  {title:<18}{times}")


if __name__ == "__main__":
    main()
