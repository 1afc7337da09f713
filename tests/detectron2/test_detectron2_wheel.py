"""What our patches make of detectron2 0.6: it works with today's packages, on NPUs, and says what it lacks."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build as data_build
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.engine.hooks import TorchMemoryStats
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.layers import DeformConv, ROIAlignRotated
from detectron2.layers.rotated_boxes import pairwise_iou_rotated
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.array_pickle import ArrayUnpickler
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.events import CommonMetricPrinter, EventStorage
from detectron2.utils.memory import retry_if_cuda_oom
from pycocotools.coco import COCO
from torch import nn


def small_mask_rcnn() -> CfgNode:
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    # Every anchor and proposal is sampled, so that no random choice lies between two devices.
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 100_000
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 5_000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    return cfg


def sample(seed: int, boxes: list[list[float]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 255, (3, 96, 128), generator=generator, dtype=torch.uint8)
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 5
    masks = torch.zeros(len(boxes), 96, 128, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    instances.gt_masks = BitMasks(masks)
    return {"image": image, "instances": instances, "height": 192, "width": 256}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """The same Mask R-CNN on the CPU and on the NPU."""
    torch.manual_seed(0)
    cfg = small_mask_rcnn()
    model = build_model(cfg)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.data *= 0.5
    return model, copy.deepcopy(model).to("npu")


def test_mask_rcnn_trains_and_detects_on_an_npu_as_on_the_cpu(pair: tuple[nn.Module, nn.Module]) -> None:
    samples = [sample(0, [[10, 12, 70, 80], [40, 30, 120, 90]]), sample(1, [])]
    losses = []
    for model in pair:
        model.train()
        with EventStorage():
            found = model(samples)
            sum(found.values()).backward()
        losses.append({name: float(value.detach()) for name, value in found.items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-5)
    for (name, cpu), npu in zip(pair[0].named_parameters(), pair[1].parameters(), strict=True):
        if cpu.grad is not None:
            assert float((npu.grad.cpu() - cpu.grad).norm()) <= 1e-3 * float(cpu.grad.norm()) + 1e-5, name
    results = []
    for model in pair:
        model.eval()
        with torch.no_grad():
            results.append(model(samples[:1])[0]["instances"].to("cpu"))
    cpu, npu = results
    assert len(cpu) == len(npu) > 0
    torch.testing.assert_close(npu.scores, cpu.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(npu.pred_boxes.tensor, cpu.pred_boxes.tensor, rtol=1e-3, atol=1e-2)
    assert npu.pred_masks.shape == cpu.pred_masks.shape == (len(cpu), 192, 256)


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.types: set[torch.dtype] = set()

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        result = self.layer(batch.to(self.layer.weight.device))
        self.types.add(result.dtype)
        return {"loss": result.float().square().mean()}


@pytest.mark.parametrize(("device", "dtype"), [("npu", torch.float16), ("cpu", torch.bfloat16)])
def test_mixed_precision_trains_on_the_device_of_the_model(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Regression().to(device)
    batches = [torch.randn(8, 4) for _ in range(20)]
    trainer = AMPTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.1))
    with EventStorage() as storage:
        trainer.iter, trainer.storage = 0, storage
        first = [parameter.detach().clone() for parameter in model.parameters()]
        for _ in range(10):  # the first ones find a scale of the loss under which nothing overflows
            trainer.run_step()
    assert model.types == {dtype}
    assert any(not before.equal(after) for before, after in zip(first, model.parameters(), strict=True))


def test_the_log_names_the_memory_of_the_npu(caplog: pytest.LogCaptureFixture) -> None:
    torch.ones(2**20).npu()
    with EventStorage(7) as storage, caplog.at_level(logging.INFO):
        CommonMetricPrinter(10).write()
        hook = TorchMemoryStats(period=1)
        hook.trainer = SimpleTrainer(
            Regression(), [torch.ones(1)], torch.optim.SGD(Regression().parameters(), lr=1)
        )
        hook.trainer.iter, hook.trainer.max_iter, hook.trainer.storage = 0, 1, storage
        hook.after_step()
    assert "max_mem: " in caplog.text
    assert "max_allocated_mem: " in caplog.text


def test_a_training_of_very_few_iterations_ends_without_an_error() -> None:
    with EventStorage(1):
        printer = CommonMetricPrinter(3)
        printer.write()
        printer.write()


def test_the_report_of_the_environment_names_the_npus() -> None:
    assert "Ascend910" in next(
        line for line in collect_env_info().splitlines() if line.startswith("NPU available")
    )


def test_out_of_memory_on_an_npu_is_tried_again_on_the_cpu() -> None:
    devices = []

    @retry_if_cuda_oom
    def hungry(value: torch.Tensor) -> torch.Tensor:
        devices.append(value.device.type)
        if value.device.type == "npu":
            raise RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB")
        return value + 1

    assert hungry(torch.ones(1).npu()).item() == 2
    assert devices == ["npu", "npu", "cpu"]


def test_what_needs_the_extension_says_so_when_it_is_used() -> None:
    boxes = torch.tensor([[5.0, 5.0, 4.0, 4.0, 30.0]])
    with pytest.raises(RuntimeError, match=r"detectron2\._C\.box_iou_rotated is not there"):
        pairwise_iou_rotated(boxes, boxes)
    with pytest.raises(RuntimeError, match=r"detectron2\._C\.roi_align_rotated_forward is not there"):
        ROIAlignRotated(2, 1.0, 2)(torch.ones(1, 1, 8, 8), torch.cat((torch.zeros(1, 1), boxes), dim=1))
    offset = torch.zeros(1, 18, 6, 6)
    assert DeformConv(1, 1, 3)(torch.ones(1, 1, 8, 8), offset).shape == (
        1,
        1,
        6,
        6,
    )  # torchvision's, on the CPU


def test_coco_evaluation_without_the_extension_is_pycocotools(tmp_path: Path) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0}
    truth = COCO()
    truth.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [annotation]}
    truth.createIndex()
    found = [{"image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 8], "score": 0.9}]
    scored = _evaluate_predictions_on_coco(truth, found, "bbox", use_fast_impl=True)
    assert scored.stats[0] == pytest.approx(1.0)
    with pytest.raises(RuntimeError, match=r"detectron2\._C\.InstanceAnnotation is not there"):
        COCOeval_opt(truth, truth.loadRes(found), "bbox").evaluate()


def test_weights_of_the_zoo_are_read_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    content = {
        "model": {name: value.detach().numpy() for name, value in layer.state_dict().items()},
        "__author__": "somebody",
        "scale": np.float64(2.0),
    }
    for protocol in (2, 4):
        (tmp_path / "good.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        other = nn.Linear(2, 2)
        DetectionCheckpointer(other).load(str(tmp_path / "good.pkl"))
        assert other.weight.equal(layer.weight)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Evil()}))
    for read in (
        lambda: DetectionCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "evil.pkl")),
        lambda: data_build.load_proposals_into_dataset([], str(tmp_path / "evil.pkl")),
    ):
        with pytest.raises(pickle.UnpicklingError, match="mkdir"):
            read()
    assert not marker.exists()
    with (tmp_path / "codec.pkl").open("wb") as file:
        file.write(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.")
    with (tmp_path / "codec.pkl").open("rb") as file, pytest.raises(pickle.UnpicklingError, match="rot13"):
        ArrayUnpickler(file).load()


class Reduced:
    """Pickles as whatever call it is told."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


# numpy's own unpickling reads these eight bytes as the address of an object, and the process dies.
_WITHOUT_OBJECTS = Reduced(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            Reduced(
                np.zeros(0).__reduce__()[0],
                (np.ndarray, (0,), b"b"),
                (1, (1,), _WITHOUT_OBJECTS, False, b"A" * 8),
            ),
            "O8",
        ),
        (np.array([{}], dtype=object), "O8"),
        (np.array(["text"]), "U4"),
        (np.zeros(2, [("a", "i4")]), "V4"),
        (np.ma.array([1.0]), "numpy.ma.core"),
        (
            Reduced(
                np.zeros(0).__reduce__()[0],
                (np.ndarray, (0,), b"b"),
                (1, (9,), np.dtype("f4"), False, b"A" * 8),
            ),
            "8 bytes",
        ),
        (Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b")), "without content"),
        (Reduced(os.system, ("exit",)), "system"),
    ],
)
def test_an_array_of_anything_but_numbers_is_refused(content: object, said: str) -> None:
    file = io.BytesIO(pickle.dumps({"model": [content]}, 4))
    with pytest.raises(pickle.UnpicklingError, match=f"refused: .*{said}"):
        ArrayUnpickler(file).load()


def test_arrays_of_numbers_come_back_as_they_were() -> None:
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3, dtype=">i4"),
        np.array([True, False]),
        np.zeros((0, 3), np.float16),
    ]
    for array, found in zip(arrays, ArrayUnpickler(io.BytesIO(pickle.dumps(arrays, 4))).load(), strict=True):
        assert np.array_equal(array, found)
        assert (array.dtype, found.flags.writeable) == (found.dtype, True)


LAUNCH = """
from detectron2.engine import launch
if __name__ == "__main__":
    launch(print, 2, dist_url="auto")
"""


def test_launch_refuses_several_ranks_on_npus_by_name(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(LAUNCH)
    done = subprocess.run([sys.executable, job], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert (
        "launch() starts ranks with NCCL, which npu devices do not have: start them by torchrun"
        in done.stderr
    )


RANKS = """
import os, torch, torch.distributed as dist
from detectron2.utils import comm
rank = int(os.environ["RANK"])
torch.npu.set_device(rank)
dist.init_process_group("hccl")
comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
comm.synchronize()
gathered = comm.gather({"rank": rank, "text": "x" * (rank + 1)})
assert gathered == ([{"rank": 0, "text": "x"}, {"rank": 1, "text": "xx"}] if rank == 0 else [])
assert comm.all_gather(rank) == [0, 1]
reduced = comm.reduce_dict({"loss": torch.tensor(float(rank)).npu()})
print("rank", rank, dist.get_backend(comm._get_global_gloo_group()), float(reduced["loss"]), flush=True)
dist.destroy_process_group()
"""


def test_ranks_on_npus_gather_objects_by_gloo(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 0 gloo 0.5" in done.stdout
    assert "rank 1 gloo" in done.stdout
