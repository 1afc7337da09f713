"""The learning-rate groups of ViTDet-B, by hand: rate 0.7, 12 blocks, base rate 1e-4, weight decay 0.1."""

import pytest
import torch
from vitdet.optim import LayerDecayOptimizerConstructor, layer_of

NAMES = {
    "backbone.pos_embed": (0, False),
    "backbone.patch_embed.proj.weight": (0, True),
    "backbone.patch_embed.proj.bias": (0, True),
    "backbone.blocks.0.norm1.weight": (1, False),
    "backbone.blocks.0.attn.rel_pos_h": (1, True),
    "backbone.blocks.0.attn.qkv.bias": (1, True),
    "backbone.blocks.11.norm2.bias": (12, False),
    "backbone.blocks.11.mlp.fc2.weight": (12, True),
    "neck.fpn1.1.weight": (13, True),
    "rpn_head.rpn_cls.bias": (13, True),
    "roi_head.mask_head.convs.0.norm_layer.weight": (13, True),
}


class _Node(torch.nn.Module):
    """A module tree of the names above."""

    def put(self, name, parameter):
        first, _, rest = name.partition(".")
        if not rest:
            self.register_parameter(first, parameter)
        else:
            if first not in self._modules:
                self.add_module(first, _Node())
            self._modules[first].put(rest, parameter)

    def __len__(self):
        return 12  # of `blocks`, most of which these names leave out


@pytest.fixture
def groups():
    model = _Node()
    for name in NAMES:
        model.put(name, torch.nn.Parameter(torch.zeros(1)))
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    model.put("neck.frozen", frozen)
    constructor = LayerDecayOptimizerConstructor(
        dict(
            type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1)
        ),
        paramwise_cfg=dict(decay_rate=0.7),
    )
    wrapper = constructor(model)
    return dict(model.named_parameters()), wrapper.optimizer.param_groups


def test_every_trained_parameter_is_in_its_group(groups):
    parameters, param_groups = groups
    found = {id(member): group for group in param_groups for member in group["params"]}
    assert len(found) == len(NAMES)
    for name, (layer, decay) in NAMES.items():
        group = found[id(parameters[name])]
        assert group["lr"] == pytest.approx(1e-4 * 0.7 ** (13 - layer)), name
        assert group["weight_decay"] == (0.1 if decay else 0.0), name
        assert group["name"] == f"layer_{layer}_{'decay' if decay else 'no_decay'}"


def test_rates_by_hand(groups):
    rates = {group["name"]: group["lr"] for group in groups[1]}
    assert rates["layer_13_decay"] == pytest.approx(1e-4)
    assert rates["layer_12_decay"] == pytest.approx(0.7e-4)
    assert rates["layer_0_decay"] == pytest.approx(9.688901e-07)  # 0.7 ** 13 = 0.009688901


def test_the_logged_rate_is_the_recipe_s(groups):
    assert groups[1][0]["lr"] == 1e-4


def test_unknown_backbone_parameters_count_as_last():
    assert layer_of("backbone.norm.weight", 12) == 13
