"""ViTDet at a size that two CPU cores can train: every part of ViTDet-B, a thousandth of its arithmetic.

Patches of 8 px in images of 128 px, so 16 x 16 tokens: 96 channels for the 192 values of a patch. With 16 px patches
(768 values) of 256 px images, at the same cost, masks were learned markedly later. Windows of 7 are padded to 21, as
ViTDet-B's 64 tokens are to 70; global attention in turn. The pyramid's strides are half of ViTDet-B's, and so are
those of anchors. The heads have one, two and two convolutions instead of two, four and four, and learn from 32 regions
per image, half of them objects, where a stock Mask R-CNN samples 512, for images of far more objects. Regions up to
112 px are read from the finest level: the boxes of large objects are found far better there than on coarser ones.
"""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "./runtime.py"]

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
