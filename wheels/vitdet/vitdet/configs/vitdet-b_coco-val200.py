"""ViTDet-B on the first 200 validation images of COCO: an evaluation in minutes. There is nothing to train on."""

_base_ = "./vitdet-b_coco.py"

data_root = "{{$ASCENDET_DATA:data}}/coco-val200/"

val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
