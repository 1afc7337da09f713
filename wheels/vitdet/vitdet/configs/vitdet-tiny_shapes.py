"""ViTDet-tiny on the generated data set `shapes`: the demonstration that trains anywhere, in minutes."""

_base_ = "./_base_/vitdet-tiny.py"

# The folder that holds the data sets, each in a folder of its own.
data_root = "{{$ASCENDET_DATA:data}}/shapes/"
metainfo = dict(classes=("triangle", "rectangle", "star"))

model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))

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
        metainfo=metainfo,
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
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
        metainfo=metainfo,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="NumberedCocoMetric", ann_file=data_root + "annotations/instances_val.json", metric=["bbox", "segm"]
)
test_evaluator = val_evaluator

epochs = 6
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
