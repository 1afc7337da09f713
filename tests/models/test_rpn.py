"""Region proposals of fixed shapes, against mmdet's own head and against the definition of its steps."""

import copy

import pytest
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from vitdet.preprocess import BOX_BLOCK, pad_boxes
from vitdet.rpn import FixedShapeRPNHead, assign

SIZES = [(16, 16), (8, 8)]
CONFIG = dict(
    type="FixedShapeRPNHead",
    in_channels=8,
    feat_channels=8,
    anchor_generator=dict(type="AnchorGenerator", scales=[4], ratios=[0.5, 1.0, 2.0], strides=[8, 16]),
    bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
    loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
    loss_bbox=dict(type="L1Loss"),
    train_cfg=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.7,
            neg_iou_thr=0.3,
            min_pos_iou=0.3,
            match_low_quality=True,
            ignore_iof_thr=-1,
        ),
        sampler=dict(
            type="RandomSampler", num=64, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False
        ),
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(nms_pre=100, max_per_img=50, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
)


def _head(**train_cfg):
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    config = Config(copy.deepcopy(CONFIG))
    config.merge_from_dict({f"train_cfg.{key}": value for key, value in train_cfg.items()})
    return MODELS.build(config)


def _boxes(count, size=128):
    corner, side = torch.rand(count, 2) * size * 0.7, torch.rand(count, 2) * size * 0.4 + 4
    return torch.cat([corner, corner + side], dim=1)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 80])
def test_boxes_come_in_whole_blocks(count):
    boxes = _boxes(count)
    blocks = pad_boxes(boxes)
    assert blocks.shape == (max(1, -(-count // BOX_BLOCK)), BOX_BLOCK, 4)
    assert torch.equal(blocks.flatten(0, 1)[:count], boxes)
    assert not blocks.flatten(0, 1)[count:].any()


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5, 70])
def test_anchors_are_assigned_as_mmdet_assigns_them(count, low_quality):
    """The 70 are more than two blocks; equal boxes among them are equally good for an anchor."""
    anchors, boxes = _boxes(400), _boxes(count)
    if count:
        anchors[7] = boxes[0]
    if count > 4:
        boxes[3] = boxes[1]
        anchors[9] = boxes[1]
    theirs = MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.3, match_low_quality=low_quality)
    instances = InstanceData(bboxes=boxes, labels=torch.zeros(count, dtype=torch.long))
    expected = theirs.assign(InstanceData(priors=anchors), instances).gt_inds
    found = assign(anchors, pad_boxes(boxes), 0.7, 0.3, 0.3 if low_quality else None)
    assert torch.equal(found.long(), expected)
    assert (expected == 0).any()
    assert count == 0 or (expected > 0).any()


def test_a_draw_is_the_sampler_s():
    """32 of 40 positives, or all of 5; negatives for the rest; none twice, ignored ones never, each equally often."""
    head = _head()
    _, keys = head.grid([torch.zeros(1, 3, *size) for size in SIZES])
    count = len(keys) // 2
    times = torch.zeros(count)
    for positives, expected in ((5, 5), (40, 32)):
        assigned = torch.full((count,), -1)
        places = torch.randperm(count)
        assigned[places[:positives]] = 1
        assigned[places[positives : positives + 500]] = 0
        for _ in range(100):
            positive, negative, is_positive, is_negative = head.draw(assigned, keys)
            positive, negative = positive[is_positive], negative[is_negative]
            assert len(positive) == len(positive.unique()) == expected
            assert len(negative) == len(negative.unique()) == 64 - expected
            assert (assigned[positive] == 1).all()
            assert (assigned[negative] == 0).all()
            if positives == 40:
                times[positive] += 1
    drawn = times[times > 0]
    assert len(drawn) == 40
    assert drawn.min() > 60  # of 100; 80 are expected, with a deviation of 4
    assert drawn.max() < 98


def test_too_few_anchors_leave_places_without_weight():
    head = _head()
    _, keys = head.grid([torch.zeros(1, 3, *size) for size in SIZES])
    assigned = torch.full((len(keys) // 2,), -1)
    assigned[:3] = 1
    assigned[3:7] = 0
    _, _, is_positive, is_negative = head.draw(assigned, keys)
    assert is_positive.sum() == 3
    assert is_negative.sum() == 4


def test_losses_without_objects_are_finite_and_train():
    head = _head()
    scores = [torch.randn(1, 3, *size, requires_grad=True) for size in SIZES]
    deltas = [torch.randn(1, 12, *size, requires_grad=True) for size in SIZES]
    losses = head.fixed_shape_loss(scores, deltas, [pad_boxes(torch.zeros(0, 4))])
    assert losses["loss_rpn_bbox"] == 0
    assert losses["loss_rpn_cls"] > 0
    sum(losses.values()).backward()
    assert scores[0].grad.isfinite().all()
    assert scores[0].grad.any()
    assert not deltas[0].grad.any()


def test_proposals_are_mmdet_s():
    """Also boxes that decode to nothing: theirs leaves them out before, ours after nms."""
    from mmdet.models.dense_heads import RPNHead

    head = _head()
    scores = [torch.randn(2, 3, *size) for size in SIZES]
    deltas = [torch.randn(2, 12, *size) for size in SIZES]
    deltas[0][0, 0::4, :, :3] = -60.0  # far out of the image: clipped to a width of zero
    scores[0][0, :, :, :3] += 5
    metas = [dict(img_shape=(128, 128), scale_factor=(1.0, 1.0))] * 2
    expected = RPNHead.__mro__[1].predict_by_feat(head, scores, deltas, batch_img_metas=metas)
    found = head.predict_by_feat(scores, deltas, batch_img_metas=metas)
    for one, other in zip(expected, found, strict=True):
        assert 0 < len(one) == len(other)
        assert torch.equal(one.bboxes, other.bboxes)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    "change",
    [
        {"sampler.neg_pos_ub": 3},
        {"assigner.ignore_iof_thr": 0.5},
        {"assigner.min_pos_iou": 0.0},
        {"allowed_border": 0},
        {"pos_weight": 2.0},
    ],
)
def test_what_it_does_not_do_is_refused(change):
    with pytest.raises(ValueError, match="use RPNHead"):
        _head(**change)


def test_the_batch_is_mmdet_s_and_carries_padded_boxes():
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    images = [torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8) for _ in range(2)]
    common = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True, pad_size_divisor=32)
    ours, theirs = (
        MODELS.build(dict(type=kind, **common)) for kind in ("FixedShapePreprocessor", "DetDataPreprocessor")
    )

    def batch(inputs):
        samples = []
        for count in (3, 40):
            samples.append(DetDataSample(metainfo=dict(img_shape=(32, 48))))
            samples[-1].gt_instances = InstanceData(bboxes=HorizontalBoxes(_boxes(count)))
        return {"inputs": inputs, "data_samples": samples}

    for inputs in (images, torch.stack(images)):
        made = ours(batch(inputs), training=True)
        assert torch.equal(made["inputs"], theirs(batch(inputs), training=True)["inputs"])
        assert [len(one.padded_boxes.bboxes) for one in made["data_samples"]] == [1, 2]
        assert "padded_boxes" not in ours(batch(inputs), training=False)["data_samples"][0]


def test_the_head_has_mmdet_s_parameters():
    from mmdet.registry import MODELS

    theirs = MODELS.build(Config(CONFIG | {"type": "RPNHead"}))
    assert isinstance(_head(), FixedShapeRPNHead)
    assert _head().state_dict().keys() == theirs.state_dict().keys()
