"""The fusion passes that decide speed and accuracy: LayerNorm, GELU, and convolutions with what follows them.

Which forms match is what CANN's documents and the public sources of its passes say; where these leave open whether
today's closed library does the same, the site is marked as uncertain. A site that looks like a LayerNorm or a GELU and
does not fuse is reported, too, with the reason: it is what costs time on a card.
"""

from __future__ import annotations

import numpy as np

from cann_sim.atc.gelus import GELU, GELU_ONNX, fuse_gelus
from cann_sim.atc.kernels import Soc
from cann_sim.atc.layer_norms import LAYER_NORM, LAYER_NORM_ONNX, fuse_layer_norms
from cann_sim.atc.matching import ALL, Site, View
from cann_sim.atc.network import Network, Node

CONV_BATCH_NORM = "ConvBatchnormFusionPass"
CONV_RELU = "TbeConvCommonRules0FusionPass"
GRAPH_PASSES = frozenset((CONV_BATCH_NORM, LAYER_NORM, LAYER_NORM_ONNX, GELU, GELU_ONNX))
# Fusions of kernels in the unified buffer: fusion_result.json lists them apart; they change no value.
UB_PASSES = frozenset((CONV_RELU,))


def fuse(network: Network, soc: Soc, off: frozenset[str]) -> tuple[Site, ...]:
    """Fuse what the passes of a SoC fuse, except for those `off`, and return the sites in the graph's order."""
    sites = [
        Site(kind="LayerNorm", name=node.name, nodes=(node.name,), fused_by="LayerNormalization")
        for node in network.nodes
        if node.operator == "LayerNormalization"
    ]
    if not off & {ALL, CONV_BATCH_NORM}:
        _fold_batch_norms(network)
    order = {name: index for index, node in enumerate(network.nodes) for name in (node.name, *node.outputs)}
    sites += fuse_layer_norms(network, soc, off)
    sites += fuse_gelus(network, soc, off)
    if not off & {ALL, CONV_RELU}:
        _name_relus(network)
    network.drop_unused()
    return tuple(sorted(sites, key=lambda site: order[site.name]))


def _fold_batch_norms(network: Network) -> None:
    """Fold a BatchNormalization with constants into the convolution before it."""
    view = View(network)
    for norm in list(network.nodes):
        if norm.operator != "BatchNormalization" or len([name for name in norm.outputs if name]) != 1:
            continue
        conv = view.made(norm.inputs[0], "Conv")
        names = [*norm.inputs[1:5], *(conv.inputs[1:] if conv else ())]
        if (
            conv is None
            or not view.inside(conv, [norm])
            or any(name not in network.constants for name in names)
        ):
            continue
        scale, shift, mean, variance = (
            network.constants[name].astype(np.float64) for name in norm.inputs[1:5]
        )
        factor = scale / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
        weight = network.constants[conv.inputs[1]]
        bias = (
            network.constants[conv.inputs[2]]
            if len(conv.inputs) > 2 and conv.inputs[2]
            else np.zeros(len(scale))
        )
        folded = {
            f"{norm.name}@weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)).astype(weight.dtype),
            f"{norm.name}@bias": ((bias - mean) * factor + shift).astype(weight.dtype),
        }
        for name, value in folded.items():
            network.constants[name] = value
            network.dtypes[name], network.shapes[name] = value.dtype.name, value.shape
        fused = Node(
            name=norm.name, operator="Conv", inputs=[conv.inputs[0], *folded], outputs=list(norm.outputs),
            attributes=conv.attributes, passes=[CONV_BATCH_NORM],
        )  # fmt: skip
        network.replace([conv, norm], fused)
        view = View(network)


def _name_relus(network: Network) -> None:
    """Note which Relu runs within the kernel of the convolution before it: no value changes."""
    view = View(network)
    for node in network.nodes:
        conv = view.made(node.inputs[0], "Conv") if node.operator == "Relu" else None
        if conv is not None and view.inside(conv, [node]):
            node.passes.append(CONV_RELU)
            node.uncertain = f"it runs within the kernel of {conv.name}"
