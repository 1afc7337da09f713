"""What ATC will make of ViTDet's real graphs: every LayerNorm and GELU is found, and fuses by its form."""

import io
from pathlib import Path

import onnx
import pytest
import torch
import vitdet
from cann_sim.atc.forecast import forecast
from cann_sim.atc.kernels import Soc
from cann_sim.atc.lowering import fusion_counts, lower
from cann_sim.atc.precision import Precision
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from staged_om import exporting
from vitdet import stages
from vitdet.pyramid import LN2d
from vitdet.stages import Options

A2 = Soc(name="Ascend910B3", family="910B")
SIZE = (128, 128)


@pytest.fixture(scope="module")
def graphs():
    """Return a function that gives vitdet-tiny's backbone as ONNX, and its numbers of LayerNorms and GELUs."""
    init_default_scope("mmdet")
    torch.manual_seed(0)
    cfg = Config.fromfile(Path(vitdet.__file__).parent / "configs" / "vitdet-tiny.py")

    def make(opset, *without):
        model = MODELS.build(cfg.model).eval()
        parts = [*model.backbone.modules(), *model.neck.modules()]
        norms = sum(isinstance(part, torch.nn.LayerNorm | LN2d) for part in parts)
        gelus = sum(isinstance(part, torch.nn.GELU) for part in parts) + len(model.backbone.blocks)
        module = stages.build(model, Options(size=SIZE, without=without))["backbone"]
        buffer = io.BytesIO()
        picture = torch.randn(1, 3, *SIZE)
        torch.onnx.export(
            module, (picture,), buffer, opset_version=opset, dynamo=False, input_names=["picture"]
        )
        graph = onnx.load_from_string(buffer.getvalue())
        exporting.clean(graph)
        return graph, norms, gelus

    return make


def lowered(graph, mode="force_fp16"):
    return lower(graph, soc=A2, precision=Precision(mode=mode), shapes={"picture": (1, 3, *SIZE)})


def test_every_layer_norm_of_the_backbone_is_one_kernel_at_opset_17(graphs):
    graph, norms, gelus = graphs(17)
    found = lowered(graph)
    kernels = [operation.kernel for operation in found.program.operations]
    assert norms > 0
    assert kernels.count("LayerNorm") == norms
    assert kernels.count("Gelu") == gelus
    assert fusion_counts(found.findings) == {"GeluONNXFusionPass": gelus}
    assert all(operation.engine != "AiCpu" for operation in found.program.operations)


def test_at_opset_16_they_depend_on_a_pass_that_may_not_be_there(graphs):
    graph, norms, _ = graphs(16)
    sites = [site for site in lowered(graph).sites if site.kind == "LayerNorm"]
    assert len(sites) == norms
    assert {(site.fused_by, site.uncertain) for site in sites} == {("LayerNormONNXFusionPass", True)}


def test_layer_norms_over_channels_stay_in_pieces_without_their_rewrite(graphs):
    graph, norms, _ = graphs(17, "layer-norm")
    made = forecast(graph, "backbone", soc=A2, precision=Precision())
    sites = [site for site in made.sites if site.kind == "LayerNorm"]
    apart = [site for site in sites if not site.fused_by]
    assert len(sites) == norms
    assert apart
    assert all("over axis 1 of 4" in site.reason for site in apart)
