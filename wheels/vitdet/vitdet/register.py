"""Importing this module registers all of ours with mmdetection and mmengine; configurations name it."""

from mmengine.fileio import register_backend
from mmengine.runner.checkpoint import CheckpointLoader

from vitdet.backbone import ViT
from vitdet.checkpoint import AtomicLocalBackend, KeepingCheckpointHook, PlainCheckpointHook, load_from_local
from vitdet.dataset import CheckedCocoDataset, LoadCheckedImage
from vitdet.losses import LossHook
from vitdet.masks import LoadDeferredAnnotations
from vitdet.memory import DeviceMemoryHook
from vitdet.optim import LayerDecayOptimizerConstructor, MixedPrecisionOptimWrapper
from vitdet.predictions import NumberedCocoMetric, PredictionsHook
from vitdet.preprocess import FixedShapePreprocessor
from vitdet.progress import ProgressHook, ProgressVisBackend
from vitdet.pyramid import LN2d, SimpleFPN
from vitdet.recipe import RecipeHook, RecipeRunner
from vitdet.resume import (
    InterruptHook,
    ResumableEpochLoop,
    ResumableIterLoop,
    ResumableSampler,
    SeedEachIterationHook,
)
from vitdet.rpn import FixedShapeRPNHead

__all__ = [
    "CheckedCocoDataset",
    "DeviceMemoryHook",
    "FixedShapePreprocessor",
    "FixedShapeRPNHead",
    "InterruptHook",
    "KeepingCheckpointHook",
    "LN2d",
    "LayerDecayOptimizerConstructor",
    "LoadCheckedImage",
    "LoadDeferredAnnotations",
    "LossHook",
    "MixedPrecisionOptimWrapper",
    "NumberedCocoMetric",
    "PlainCheckpointHook",
    "PredictionsHook",
    "ProgressHook",
    "ProgressVisBackend",
    "RecipeHook",
    "RecipeRunner",
    "ResumableEpochLoop",
    "ResumableIterLoop",
    "ResumableSampler",
    "SeedEachIterationHook",
    "SimpleFPN",
    "ViT",
]

register_backend("local", AtomicLocalBackend, prefixes="", force=True)
CheckpointLoader.register_scheme(prefixes="", loader=load_from_local, force=True)
