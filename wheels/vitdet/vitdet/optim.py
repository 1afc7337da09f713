"""Layer-wise learning-rate decay (BEiT, arXiv 2106.08254; ViTDet, arXiv 2203.16527, appendix A.2); mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from mmengine.device import is_npu_available
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 for the embeddings, 1…depth for the blocks, depth + 1 for everything after.

    >>> [layer_of(name, 12) for name in ("backbone.pos_embed", "backbone.blocks.0.attn.qkv.weight", "neck.fpn2.0.bias")]
    [0, 1, 13]
    """
    if name.startswith(("backbone.patch_embed.", "backbone.pos_embed")):
        return 0
    if name.startswith("backbone.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


def decays(name: str) -> bool:
    """Return whether weight decay applies: to all but the blocks' norms and the position embedding, as published."""
    return name != "backbone.pos_embed" and not (name.startswith("backbone.blocks.") and ".norm" in name)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Give layer n of depth + 2 the learning rate `lr * decay_rate ** (depth + 1 - n)`.

    `paramwise_cfg` holds `decay_rate`; the depth is read from the model.
    """

    def add_params(self, params: list[dict[str, object]], module: nn.Module, **kwargs: object) -> None:
        """Append one group per layer and kind of decay to `params`, the last layers first.

        mmengine logs the learning rate of the first group: this order makes the log show the recipe's.
        """
        depth = len(module.backbone.blocks)
        rate = self.paramwise_cfg["decay_rate"]
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((layer_of(name, depth), decays(name)), []).append(parameter)
        for (layer, decay), members in sorted(groups.items(), reverse=True):
            group = {
                "name": f"layer_{layer}_{'decay' if decay else 'no_decay'}",
                "params": members,
                "lr": self.base_lr * rate ** (depth + 1 - layer),
                "weight_decay": self.base_wd if decay else 0.0,
            }
            params.append(group)
            print_log(
                f"{group['name']}: {len(members)} tensors, lr {group['lr']:.3g}, weight decay {group['weight_decay']}",
                logger="current",
            )


@OPTIM_WRAPPERS.register_module()
class MixedPrecisionOptimWrapper(AmpOptimWrapper):
    """mmengine's `AmpOptimWrapper` (float16 with a dynamic loss scale on NPUs), which also runs on CPUs.

    mmengine's refuses to. On a CPU this is bfloat16, autocast's default there, also with a loss scale.
    """

    def __init__(self, **kwargs: Any) -> None:
        if is_npu_available():
            super().__init__(**kwargs)
        else:
            OptimWrapper.__init__(self, **kwargs)
            self.loss_scaler = torch.amp.GradScaler("cpu")
            self.cast_dtype = self._scale_update_param = None
