"""ViTDet at a size that two CPU cores can train: every part of ViTDet-B, a thousandth of its arithmetic.

Patches of 8 px in images of 128 px, so 16 x 16 tokens: 96 channels for the 192 values of a patch. With 16 px patches
(768 values) of 256 px images, at the same cost, masks were learned markedly later. Windows of 7 are padded to 21, as
ViTDet-B's 64 tokens are to 70; global attention in turn. The pyramid's strides are half of ViTDet-B's, and so are
those of anchors. The heads have one, two and two convolutions instead of two, four and four, and learn from 32 regions
per image, half of them objects, where a stock Mask R-CNN samples 512, for images of far more objects. Regions up to
112 px are read from the finest level: the boxes of large objects are found far better there than on coarser ones.
"""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "./_base_/runtime.py"]

# The folder that holds the data sets, each in a folder of its own.
data_root = "{{$ASCENDET_DATA:data}}/{{$DATASET:shapes}}/"

norm_cfg = dict(type="LN2d")
regions = dict(
    out_channels=48, featmap_strides=[2, 4, 8, 16], finest_scale=56, roi_layer=dict(sampling_ratio=2)
)

model = dict(
    data_preprocessor=dict(
        type="FixedShapePreprocessor",
        pad_size_divisor=128,  # whatever an image's shape, in training and in use
        batch_augments=[dict(type="BatchFixedSizePad", size=(128, 128), pad_mask=True)],
    ),
    backbone=dict(
        _delete_=True,
        type="ViT",
        img_size=128,
        patch_size=8,
        embed_dim=96,
        depth=4,
        num_heads=3,
        window_size=7,
        window_block_indexes=[0, 2],
    ),
    neck=dict(_delete_=True, type="SimpleFPN", in_channels=96, out_channels=48, norm_cfg=norm_cfg),
    rpn_head=dict(
        type="FixedShapeRPNHead",
        num_convs=1,
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(strides=[2, 4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=regions,
        bbox_head=dict(
            type="ConvFCBBoxHead",
            num_shared_convs=2,
            num_shared_fcs=1,
            reg_class_agnostic=True,
            in_channels=48,
            conv_out_channels=48,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
        ),
        mask_roi_extractor=regions,
        mask_head=dict(
            num_convs=2, class_agnostic=True, in_channels=48, conv_out_channels=48, norm_cfg=norm_cfg
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadDeferredAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=0,  # in the main process: 8 ms per batch
    persistent_workers=False,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="CheckedCocoDataset",
        data_root=data_root,
        split="train",
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CheckedCocoDataset",
        data_root=data_root,
        split="val",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="NumberedCocoMetric", split="val", metric=["bbox", "segm"])
test_evaluator = val_evaluator

# `make train EPOCHS=…` changes `epochs`; what follows is stated for the `schedule`, that of the data set `shapes`.
epochs = 4
schedule = dict(epochs=4, pictures=600)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayOptimizerConstructor",
    paramwise_cfg=dict(decay_rate=1.0),
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(
        type="CosineAnnealingLR", by_epoch=True, begin=0, end=epochs, eta_min=1e-5, convert_to_iter_based=True
    ),
]
train_cfg = dict(type="ResumableEpochLoop", max_epochs=epochs, val_interval=epochs)

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=25),
    checkpoint=dict(type="KeepingCheckpointHook", interval=1, max_keep_ckpts=3, save_best="coco/bbox_mAP"),
)
auto_scale_lr = dict(base_batch_size=4)
