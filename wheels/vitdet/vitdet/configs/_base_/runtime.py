"""How every model of ours is trained and evaluated: stopped after any step, on any number of devices."""

_base_ = "mmdet::_base_/default_runtime.py"
custom_imports = dict(imports=["vitdet.register"])
runner_type = "RecipeRunner"  # the same images per step on any number of devices

default_hooks = dict(runtime_info=dict(type="LossHook"))
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
custom_hooks = [
    dict(type="PlainCheckpointHook"),
    dict(type="SeedEachIterationHook"),
    dict(type="InterruptHook"),
    dict(type="ProgressHook"),
    dict(type="DeviceMemoryHook"),
]
randomness = dict(seed=0)
vis_backends = [dict(type="ProgressVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="DetLocalVisualizer", vis_backends=vis_backends, name="visualizer")
