"""ViTDet-B on 32 images, over and over: a port that learns drives the loss to zero and the AP to one.

The images are evaluated that were trained on, each as it was seen, so nothing but the port is tested. On one card it
takes minutes instead of the days of vitdet-b.
"""

_base_ = "./vitdet-b.py"

image_size = (1024, 1024)
grey = dict(img=(114, 114, 114))

model = dict(backbone=dict(drop_path_rate=0.0))

train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadDeferredAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="Pad", size=image_size, pad_val=grey),
    dict(type="PackDetInputs"),
]
# The truth travels with the images ("instances"): the annotation file is the whole split's.
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="Pad", size=image_size, pad_val=grey),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "instances"),
    ),
]

train_dataloader = dict(batch_size=2, num_workers=2, dataset=dict(indices=32, pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        split="train",
        # Leave out the images that training leaves out, so that both take the same 32.
        test_mode=False,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        indices=32,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type="NumberedCocoMetric", metric=["bbox", "segm"])
test_evaluator = dict(split="train")

param_scheduler = [dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=50)]
schedule = dict(epochs=100, pictures=32)
train_cfg = dict(_delete_=True, type="ResumableEpochLoop", max_epochs=100, val_interval=20)
default_hooks = dict(
    checkpoint=dict(
        _delete_=True, type="KeepingCheckpointHook", interval=20, max_keep_ckpts=1, save_best="coco/bbox_mAP"
    ),
    logger=dict(interval=8),
)
log_processor = dict(window_size=16, by_epoch=True)
auto_scale_lr = dict(base_batch_size=2)
