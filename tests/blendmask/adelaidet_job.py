"""What AdelaiDet computes, in a process of its own: it registers models of the same names as ours.

    python adelaidet_job.py CHECKOUT CONFIG OUT

Needs neither its C++ extension, which BlendMask does not call, nor an installation of it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from blendmask_goldens import enlarged, fill_model

IMAGES = 2


def main() -> None:
    checkout, config, out = sys.argv[1:]
    torch.set_num_threads(1)
    sys.path.insert(0, checkout)
    if importlib.util.find_spec("adet") is None:
        sys.exit(f"{checkout} has no package adet")
    if not list(Path(checkout, "adet").glob("_C*.so")):
        sys.modules["adet._C"] = ModuleType("adet._C")

    import adet.modeling  # noqa: F401  # registers its models
    from adet.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(str(Path(checkout, config)))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    fill_model(model)
    found: dict[str, Any] = {}
    with torch.no_grad():
        results = model.eval()([enlarged(number) for number in range(IMAGES)])
    for number, result in enumerate(results):
        objects = result["instances"]
        found |= {
            f"{number}/boxes": objects.pred_boxes.tensor.numpy(),
            f"{number}/scores": objects.scores.numpy(),
            f"{number}/classes": objects.pred_classes.numpy(),
            f"{number}/masks": objects.pred_masks.numpy(),
        }
    losses = model.train()([enlarged(number) for number in range(IMAGES)])
    sum(losses.values()).backward()
    found |= {f"loss/{name}": value.detach().numpy() for name, value in losses.items()}
    found |= {
        f"grad/{name}": value.grad.numpy()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    np.savez(out, **found)


if __name__ == "__main__":
    main()
