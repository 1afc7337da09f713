"""ViTDet-tiny on COCO: the whole of COCO's pipeline at a size that needs no accelerator. Not a model to compare."""

_base_ = "./vitdet-tiny_shapes.py"

data_root = "{{$ASCENDET_DATA:data}}/coco/"

model = dict(roi_head=dict(bbox_head=dict(num_classes=80), mask_head=dict(num_classes=80)))
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=None,  # COCO's own classes
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=None,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
