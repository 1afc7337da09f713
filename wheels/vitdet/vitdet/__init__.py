"""ViTDet for mmdetection 3.3: training, evaluation, export, and inference with OM files.

Written from the papers: ViTDet (arXiv 2203.16527), MAE (2111.06377), MViTv2 (2112.01526). The state dict's keys are
those of mmdetection's project of the same name, so its published checkpoints load.

This module imports nothing, because `vitdet.om` runs where neither PyTorch nor mmdetection is installed; a
configuration's `custom_imports = dict(imports=["vitdet.register"])` registers the rest with mmdetection.
"""
