"""What a model makes of one batch, for test_parity.py: python loss_job.py tiny|b ours|theirs FILE.

`tiny theirs` is ViTDet-tiny with mmdet's own region proposal head and preprocessing; which mmdet that is, PYTHONPATH
says. `b theirs` is mmdetection's ViTDet-B out of the checkout that MMDETECTION names, on a narrow and shallow backbone
and small images; `b` has a smooth activation on both sides. Theirs has random weights and writes them to FILE with
everything else, ours reads them there and adds its own. Samplers take all that there is, so that nothing is left to
chance.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
sys.modules["torch_npu"] = None

import torch  # noqa: E402

_LIBRARY = importlib.metadata.distribution("torch_npu").locate_file("torch_npu/lib/libtorch_npu.so")
ctypes.CDLL(str(_LIBRARY), mode=ctypes.RTLD_GLOBAL)

import mmdet  # noqa: E402
import numpy as np  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

THEIR_B = "projects/ViTDet/configs/vitdet_mask-rcnn_vit-b-mae_lsj-100e.py"


def configuration(model: str, whose: str) -> Any:
    """The model's configuration, small and without chance."""
    if (model, whose) == ("b", "theirs"):
        checkout = Path(os.environ["MMDETECTION"])
        cfg = Config.fromfile(str(checkout / THEIR_B)).model
        cfg.neck.update(backbone_channel=96, in_channels=[24, 48, 96, 96])
    else:
        import vitdet.data

        whole = Config.fromfile(str(Path(vitdet.__file__).parent / "configs" / f"vitdet-{model}.py"))
        if model == "tiny":
            vitdet.data.set_classes(whole, ("triangle", "rectangle", "star"))
        cfg = whole.model
        cfg.neck.in_channels = 96
    if model == "b":
        # Windows of 7 in a map of 16, so that they are padded, as ViTDet-B's are.
        cfg.backbone.update(img_size=256, embed_dim=96, depth=4, num_heads=3, window_size=7)
        cfg.backbone.update(window_block_indexes=[0, 2], drop_path_rate=0.0, init_cfg=None)
        cfg.data_preprocessor.batch_augments[0].size = (256, 256)
    elif whose == "theirs":
        cfg.data_preprocessor.type = "DetDataPreprocessor"
        cfg.rpn_head.type = "RPNHead"
    for part in (cfg.train_cfg.rpn, cfg.train_cfg.rcnn):
        part.sampler.num = 100_000
    # Few proposals: of thousands two would lie so close that rounding decides which one suppresses the other.
    for part in (cfg.train_cfg.rpn_proposal, cfg.test_cfg.rpn):
        part.update(nms_pre=100, max_per_img=100)
    cfg.test_cfg.rcnn.score_thr = 0.0
    return cfg


def random_batch(size: int, classes: int, counts: tuple[int, ...] = (3, 40)) -> dict[str, Any]:
    """Images of `size` pixels a side with so many boxes each (40: more than a block holds), half of each box a mask."""
    random = np.random.default_rng(0)
    samples = []
    for count in counts:
        corner, side = random.uniform(0, size * 0.7, (count, 2)), random.uniform(4, size * 0.3, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        masks = np.zeros((count, size, size), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
            mask[top : bottom + 1, left : (left + right) // 2 + 1] = 1
        meta = dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0))
        samples.append(DetDataSample(metainfo=meta))
        samples[-1].gt_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.from_numpy(boxes)),
            labels=torch.from_numpy(random.integers(classes, size=count)),
            masks=BitmapMasks(masks, size, size),
        )
        samples[-1].ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)),
            labels=torch.zeros(0).long(),
            masks=BitmapMasks(masks[:0], size, size),
        )
    images = [torch.from_numpy(random.integers(0, 256, (3, size, size), np.uint8)) for _ in samples]
    return {"inputs": images, "data_samples": samples}


def randomise(model: torch.nn.Module) -> None:
    """Draw all weights anew; the same ones for equal models."""
    torch.manual_seed(0)
    for key, value in model.named_parameters():
        with torch.no_grad():
            if value.ndim == 1:  # norms and biases
                value.normal_(1.0 if key.endswith("weight") else 0.0, 0.05)
            else:  # of its inputs' size, so that no score is so near to 1 that it equals another one
                value.normal_(0.0, value[0].numel() ** -0.5)


def use_smooth_activation() -> None:
    """Make every ReLU a GELU: modules and heads call `torch.nn.functional.relu` by this name.

    Two programs that place a proposal one ulp apart give some unit an input of 1e-7 and of -1e-7, and a ReLU's gradient
    is 1 and 0 there: the comparison would be one of rounding.
    """
    functional = torch.nn.functional
    functional.relu = lambda input, inplace=False: functional.gelu(input)


def main() -> None:
    name, whose, file = sys.argv[1:]
    if name == "b":
        use_smooth_activation()
    init_default_scope("mmdet")
    cfg = configuration(name, whose)
    from mmdet.registry import MODELS

    model = MODELS.build(cfg).train()
    content = torch.load(file, weights_only=True) if whose == "ours" else {}
    if whose == "ours":
        from vitdet.checkpoint import compare

        report = compare(model, content["state_dict"])
        assert report.complete, str(report)
        model.load_state_dict(content["state_dict"])
    else:
        randomise(model)
        content["state_dict"] = {key: value.clone() for key, value in model.state_dict().items()}
    size = cfg.backbone.img_size
    batch = model.data_preprocessor(random_batch(size, cfg.roi_head.bbox_head.num_classes), True)
    features = model.backbone(batch["inputs"])
    levels = list(model.extract_feat(batch["inputs"]))
    sum((level * torch.linspace(-1, 1, level.numel()).view_as(level)).sum() for level in levels).backward()
    # The heads get the same features to the last bit: a unit whose input is 1e-7 on one side and -1e-7 on the other has
    # another gradient, and then the comparison would be one of rounding.
    features_of_heads = [
        one.detach().requires_grad_() for one in (content.get("theirs") or {"neck": levels})["neck"]
    ]
    model.extract_feat = lambda _: features_of_heads
    losses = model(**batch, mode="loss")
    total, parts = model.parse_losses(losses)
    total.backward()
    model.eval()
    with torch.no_grad():
        found = model(**batch, mode="predict")
    content[whose] = {
        "mmdet": mmdet.__file__,
        "backbone": [features[0] if isinstance(features, (tuple, list)) else features],
        "neck": levels,
        "losses": dict(parts),
        "gradients": {key: value.grad for key, value in model.named_parameters()},
        "gradients of features": [one.grad for one in features_of_heads],
        "boxes": [one.pred_instances.bboxes for one in found],
        "labels": [one.pred_instances.labels for one in found],
        "scores": [one.pred_instances.scores for one in found],
    }
    torch.save(content, file)


if __name__ == "__main__":
    main()
