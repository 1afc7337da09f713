"""ViTDet-B: Mask R-CNN on a ViT-B/16 from MAE, 1024 px, 100 epochs of large-scale jitter.

The recipe is the one that mmdetection published with its checkpoint for COCO (51.6 box AP, 45.7 mask AP):
16 cards x 4 images; on fewer cards they are accumulated. `vitdet.data` and `vitdet.recipe` fit it to another data set.
"""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "./_base_/runtime.py"]

# The folder that holds the data sets, each in a folder of its own, and weights/.
data = "{{$ASCENDET_DATA:data}}"
data_root = data + "/{{$DATASET:coco}}/"
image_size = (1024, 1024)
norm_cfg = dict(type="LN2d")
grey = dict(img=(114, 114, 114))

model = dict(
    data_preprocessor=dict(
        type="FixedShapePreprocessor",
        pad_size_divisor=32,
        # Every batch has one shape, so an NPU compiles (and caches) each operator once.
        batch_augments=[dict(type="BatchFixedSizePad", size=image_size, pad_mask=True)],
    ),
    backbone=dict(
        _delete_=True,
        type="ViT",
        img_size=1024,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        window_size=14,
        window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10],
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint=data + "/weights/mae_pretrain_vit_base.pth"),
    ),
    neck=dict(_delete_=True, type="SimpleFPN", in_channels=768, out_channels=256, norm_cfg=norm_cfg),
    rpn_head=dict(type="FixedShapeRPNHead", num_convs=2),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadDeferredAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomResize", scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="Pad", size=image_size, pad_val=grey),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="Pad", size=image_size, pad_val=grey),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="CheckedCocoDataset",
        data_root=data_root,
        split="train",
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
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

optim_wrapper = dict(
    # The published training ran with automatic mixed precision (`--amp`); single precision is the safe default.
    type="OptimWrapper",
    constructor="LayerDecayOptimizerConstructor",
    paramwise_cfg=dict(decay_rate=0.7),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
)

# `make train EPOCHS=…` changes `epochs`. What follows is stated for the `schedule`: COCO's train2017 has 117,266
# pictures with objects; 100 epochs of 118,000 at 64 per step, the rate drops after epochs 88 and 96.
epochs = 100
schedule = dict(epochs=100, pictures=117_266)
max_iters = 184375
interval = 5000
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=max_iters, milestones=[163889, 177546], gamma=0.1),
]
train_cfg = dict(
    type="ResumableIterLoop",
    max_iters=max_iters,
    val_interval=interval,
    dynamic_intervals=[(max_iters // interval * interval + 1, max_iters)],  # and once more at the end
)

default_hooks = dict(
    checkpoint=dict(
        type="KeepingCheckpointHook",
        by_epoch=False,
        save_last=True,
        interval=interval,
        max_keep_ckpts=5,
        save_best="coco/bbox_mAP",
    )
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=False)
auto_scale_lr = dict(base_batch_size=64)
