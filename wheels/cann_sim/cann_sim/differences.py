"""`python -m cann_sim differences`: show where torch_npu computes something else than torch; write the page of it.

Every call of differences.toml runs on the CPU and on the NPU in this process, at level all, where torch_npu's own
kernels run whatever they give; one that gives the same on both is an error: the page stays true.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from cann_sim import gate


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--markdown", type=Path, help="write the page to this file")


def execute(args: argparse.Namespace) -> int:
    """Run all calls and print or write the page; return 1 if one of them gives the same on both devices."""
    os.environ["CANN_SIM_LEVEL"] = "all"
    os.environ["TASK_QUEUE_ENABLE"] = "0"
    shown = [(entry, *show(entry["call"])) for entry in gate.differences()]
    same = [entry["title"] for entry, cpu, npu in shown if entry["call"] and cpu == npu]
    for title in same:
        print(f"error: no difference any more: {title}", file=sys.stderr)
    text = page(shown)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 1 if same else 0


def show(call: str) -> tuple[str, str]:
    """Return what a call gives on the CPU and on the NPU, as text; empty texts for no call."""
    return (_evaluate(call, "cpu"), _evaluate(call, "npu")) if call else ("", "")


def _evaluate(call: str, device: str) -> str:
    import torch
    import torch_npu  # noqa: F401  # registers the device type `npu`

    names: dict[str, Any] = {
        "torch": torch,
        "F": torch.nn.functional,
        "x": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).to(device),
        "s": torch.tensor([1.0, 2.0, 2.0, 3.0]).to(device),
        "m": torch.arange(16.0).view(1, 1, 4, 4).to(device),
        "a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(device).requires_grad_(),
        "b": torch.arange(8.0).view(2, 2, 2).to(device),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = eval(call, names)  # noqa: S307  # a line of our own table
        except Exception as error:  # what one of the devices refuses is a difference, too
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return str(result.cpu() if isinstance(result, torch.Tensor) else result).removeprefix("torch.")


def page(shown: list[tuple[dict[str, Any], str, str]]) -> str:
    """Return the text of DIFFERENCES.md."""
    versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torch_npu"))
    lines = [
        "# Where torch_npu differs from torch",
        "",
        f"Made by `python -m cann_sim differences` with {versions}; every call ran, at level all. These are",
        "torch_npu's own: its kernels reach CANN with these arguments on a card, too. **Simulated**: the CPU's values.",
        "Those marked are held back: cann_sim gives torch's values unless CANN_SIM_LEVEL=all is set.",
        "",
        "| what | on the CPU | on the NPU | write instead | where in torch_npu |",
        "|---|---|---|---|---|",
    ]
    for entry, cpu, npu in shown:
        what = entry["title"] + (f": `{entry['call']}`" if entry["call"] else "")
        what += {"both": " (at level aten too)", "all": " (held back)", "aclnn": ""}[entry["level"]]
        cells = (what, f"`{cpu}`" if cpu else "", f"`{npu}`" if npu else "", entry["instead"], entry["proof"])
        lines.append("| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
