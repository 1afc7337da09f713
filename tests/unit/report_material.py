"""A run folder and what the stages leave in it, small enough for tests of `make report`; every number is made up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.report.charts import Charts
from ascendet.run.score import NAMES

MODEL, DATASET, RUN = "vitdet-tiny", "shapes", "first"
CHECKPOINT = hashlib.sha256(b"weights").hexdigest()
ANNOTATIONS = "eefc2594d48871291fa901187cf859001069a45b15f7c7b1fa8ff8d030c01ab7"  # of requirements/bands
WHERE = "2 x Ascend910B3 (simulated, cann_sim) in build/venv/vitdet"
SVG = b'<svg viewBox="0 0 9 9" xmlns="http://www.w3.org/2000/svg"><text style="fill: #777777">a</text></svg>'
# 1 x 1 px
JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300030202020202030202020303030304060404040404080606050609080a0a090809"
    "090a0c0f0c0a0b0e0b09090d110d0e0f101011100a0c12131210130f101010ffc9000b080001000101011100ffcc000600101005ffda0008010100"
    "003f00d2cf20ffd9"
)
STAGES = {"read": 1.0, "preprocess": 2.0, "device": 30.0, "postprocess": 4.0, "total": 37.0}
CALLS = {"calls": 9, "p50": STAGES, "p90": STAGES, "images_per_second": 27.0}


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def home() -> Path:
    return paths.BUILD / "runs" / f"{MODEL}_{DATASET}"


def common(stage: str, command: list[str]) -> dict[str, Any]:
    argv = ["__main__.py", stage, "--stack", "vitdet", "--model", MODEL, "--dataset", DATASET, *command]
    return {
        "stage": stage,
        "command": argv,
        "where": WHERE,
        "simulated": True,
        "cpu_fallbacks": [],
        "versions": {"python": "3.11", "torch": "2.8.0", "torch_npu": "2.8.0", "mmdet": "3.3.0"},
        "machine": {
            "arch": "aarch64",
            "kernel": "5.10",
            "system": "openEuler",
            "cores": 192,
            "memory": 2**40,
        },
    }


def add_run(name: str = RUN, **more: Any) -> Path:
    """Write a finished training, and make it the latest."""
    run = home() / name
    inputs = {
        "model": MODEL,
        "dataset": DATASET,
        "data": "d" * 16,
        "amp": False,
        "lr": None,
        "wheels": {"mmcv": "e" * 64},
    }
    content = {
        **common("train", ["--devices", "0,1", "--epochs", "2", "--lr", ""]),
        "started": "2026-11-29T14:42:56+00:00",
        "state": "finished",
        "seconds": 404.7,
        "devices": [0, 1],
        "inputs": inputs,
        "outputs": {"epoch_2.pth": CHECKPOINT},
    }
    write(run / "manifest.json", content | more)
    write(run / "epoch_2.pth", "weights")
    write(run / "last_checkpoint", "epoch_2.pth")
    rows: list[dict[str, Any]] = [
        {
            "phase": "note",
            "text": "recipe: 4 images per step = 2 devices x 2 images x 1 accumulated (recipe: 4), learning rate 0.001",
        },
        {"phase": "warning", "text": "a class without objects"},
    ]
    rows += [
        {
            "phase": "train",
            "step": step,
            "of": 100,
            "epoch": 1 + step // 51,
            "eta": 9.0,
            "loss": 100 / step,
            "losses": {"loss_cls": 50 / step},
            "lr": 0.001,
            "seconds": 0.5,
            "memory": 78,
        }
        for step in (25, 50, 75, 100)
    ]
    rows.append({"phase": "validate", "step": 100, "AP": {"bbox": 0.68, "segm": 0.65}})
    write(run / "progress.jsonl", "".join(json.dumps(row | {"time": 1.0}) + "\n" for row in rows))
    write(run / "train.log", "runtime: NPU_FALLBACK=error\nruntime: OMP_NUM_THREADS=1\n")
    (home() / "latest").unlink(missing_ok=True)
    (home() / "latest").symlink_to(name)
    return run


def add_eval(folder: Path, box: float = 0.68, digest: str = CHECKPOINT, **more: Any) -> Path:
    """Write an evaluation into `folder`."""
    numbers = {kind: dict.fromkeys(NAMES, value) for kind, value in (("bbox", box), ("segm", 0.65))}
    content = {
        **common("evaluate", ["--devices", "0,1", "--images", ""]),
        "started": "2026-11-29T14:50:04+00:00",
        "checkpoint": "build/runs/vitdet-tiny_shapes/first/epoch_2.pth",
        "seconds": 22.5,
        "inputs": {"annotations": ANNOTATIONS, "checkpoint": digest, "images": 120},
        "metrics": numbers,
        "official": None,
    }
    write(folder / "manifest.json", content | more)
    write(folder / "metrics.json", numbers)
    write(folder / "classes.json", {"<script>alert(1)</script>": {"objects": 7, "bbox": 0.5, "segm": -1.0}})
    write(folder / "images.json", {"annotations": "/nowhere/instances_val.json", "images": [1, 2]})
    write(folder / "predictions.json", [])
    return folder


def add_speed(folder: Path, **more: Any) -> Path:
    """Write what `make speed` leaves."""
    memory = {"allocated": 3 * 2**30, "reserved": 2**32}
    fixed = {
        "width": 640,
        "height": 427,
        "first_call": STAGES,
        "steady": CALLS,
        "objects": 2,
        "memory": memory,
    }
    calls = [{"width": 640, "height": 480, "objects": 1, "milliseconds": STAGES}]
    speed = {"fixed": fixed, "pictures": {"times": CALLS, "memory": memory, "calls": calls}}
    content = common("speed", []) | {
        "speed": speed,
        "inputs": {"checkpoint": CHECKPOINT},
        "checkpoint": "epoch_2.pth",
    }
    content["started"] = "2026-11-29T15:10:00+00:00"
    write(folder / "manifest.json", content | more)
    return folder


def add_om(checkpoint: str = CHECKPOINT, holds: bool = True) -> Path:
    """Write an export, its conversion, its comparison and a precision sweep."""
    folder = paths.BUILD / "om" / f"{MODEL}-{DATASET}-128x128-b1"
    stage = {"name": "backbone", "file": "backbone.onnx", "opset": 17, "keep_fp32": ["/Gather"]}
    meta = {
        "checkpoint_sha256": checkpoint,
        "export_id": "x",
        "height": 128,
        "width": 128,
        "batch": 1,
        "stages": [stage],
    }
    write(folder / "export_meta.json", meta)
    write(folder / "backbone.onnx", "onnx")
    check = {
        "backbone": {
            "compared": True,
            "tolerance": 1e-3,
            "outputs": {"p2": {"difference": 4e-6, "largest": 4.2}},
        }
    }
    write(folder / "export_check.json", check)
    write(folder / "manifest.json", common("export", []) | {"simulated": None, "where": "the CPU"})
    converted = folder / "Ascend910B3-origin"
    record = {
        "export_id": "x",
        "soc": "Ascend910B3",
        "soc_source": "npu-smi",
        "precision": "origin",
        "atc_version": "8.5.0",
    }
    write(
        converted / "om.json",
        record | {"simulated": True, "stages": {"backbone": {"om": "backbone.om", "seconds": 1.0}}},
    )
    side = {"raw_count": 8, "after_dedup": 3, "after_score_thr": 2}
    pairs = {"count": 400, "only_om": 0, "only_pytorch": 0, "box": 0.019, "score": 4e-4, "mask": 0.997}
    ap = {"om": {"bbox": 0.6739}, "pytorch": {"bbox": 0.6745}, "difference": {"bbox": -0.0006}}
    rung = {
        "rung": "om-origin",
        "against": "onnx",
        "holds": holds,
        "broken": {} if holds else {"box": [4.0, 0.1]},
    }
    comparison = {
        "compare_with_pytorch": {
            "score_thr": 0.3,
            "om": side,
            "pytorch": side,
            "delta": dict.fromkeys(side, 0),
        },
        "pairs": {"from_score_thr": pairs},
        "AP": ap,
        "pictures": [{}, {}],
        "ladder": [rung],
    }
    write(folder / "compare-Ascend910B3-origin" / "compare.json", comparison)
    cost = {"nodes": 3, "of": 90, "multiply_adds": 0.01, "bytes": 0.02, "compute": 1.0, "memory": 1.0}
    search = {
        "loss": 0.001,
        "loss_without_any": 0.1,
        "loss_with_all": 0.0,
        "cost": cost,
        "groups": [{"stage": "roi", "name": "x"}],
    }
    modes = [
        {"mode": "fp16", "AP": {"bbox": 0.6}, "loss": 0.07},
        {"mode": "mixed_bfloat16", "AP": None, "loss": None},
    ]
    sweep = {
        "pictures": 120,
        "reference": {"bbox": 0.67},
        "modes": modes,
        "mode": "fp16",
        "bound": 0.002,
        "search": search,
    }
    write(folder / "precision-Ascend910B3-fp16" / "precision.json", sweep)
    return folder


def add_counters(run: Path) -> None:
    """Write the counters of two ranks."""
    for rank in (0, 1):
        content = {
            "launches": {"aten::mm": 5},
            "signatures": [{}, {}],
            "host_syncs": [{"line": "a.py:3", "call": "item", "count": 4}],
            "copies": [{"line": "a.py:3", "direction": "d2h", "count": 2, "bytes": 3_000_000}],
            "cpu_fallbacks": {"npu::slow": 1},
            "steps": [{}],
        }
        write(run / f"counters.rank{rank}.json", content)


def everything() -> Path:
    """Write a run with all that the stages leave."""
    run = add_run()
    add_eval(run / "eval")
    add_speed(run / "speed")
    add_om()
    add_counters(run)
    return run


def drawn(name: str = "a|b <script>.png") -> Charts:
    """Return charts as a stack's environment would draw them, about a picture of this name."""
    counts = dict.fromkeys(("correct", "class", "place", "both", "duplicate", "background", "missed"), 3)
    picture = {
        "role": "best",
        "file": "picture-best-1.jpg",
        "file_name": name,
        "correct": 4,
        "missed": 0,
        "wrong": 1,
        "quality": 0.9,
    }
    findings = {
        "images": 120,
        "objects": 523,
        "shown": 410,
        "score": 0.3,
        "errors": {"bbox": {"counts": counts}},
        "notes": [
            "pictures that are not there or cannot be read: 1 (<b>.png); make data-check DATASET=… says why"
        ],
    }
    charts = dict.fromkeys(("precision_recall", "confusion", "errors"), SVG)
    curves = dict.fromkeys(("loss", "ap", "step"), SVG)
    return Charts(curves=curves, findings=findings, charts=charts, pictures=[(picture, JPEG)])
