"""Published files load key by key, and nothing of a file is run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import blendmask
import numpy as np
import pytest
import torch
from ascendet_common.checkpoints import CheckpointError, CheckpointMismatch
from blendmask import checkpoint
from blendmask.config import load
from blendmask.model import BlendMask
from detectron2.config import CfgNode

CONFIGS = Path(blendmask.__file__).parent / "configs"


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    return load(CONFIGS / "blendmask-r50.yaml")[0]


@pytest.fixture(scope="module")
def model(cfg: CfgNode) -> BlendMask:
    return BlendMask(cfg)


def caffe2(model: BlendMask) -> dict[str, Any]:
    """A backbone as R-50.pkl has it: Caffe2's names, no statistics, a classifier, momentum."""
    draw = np.random.default_rng(0)
    content: dict[str, Any] = {"fc1000_w": np.zeros((1000, 2048), np.float32), "fc1000_b": np.zeros(1000)}
    for name, value in model.state_dict().items():
        if not name.startswith("backbone.bottom_up.") or "running" in name:
            continue
        words = name.removeprefix("backbone.bottom_up.").split(".")
        if words[0] == "stem":
            base = "res_conv1_bn" if words[2] == "norm" else "conv1"
        else:
            branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[words[2]]
            base = f"{words[0]}_{words[1]}_branch{branch}{'_bn' if words[3] == 'norm' else ''}"
        suffix = ({"weight": "s", "bias": "b"} if base.endswith("bn") else {"weight": "w"})[words[-1]]
        content[f"{base}_{suffix}"] = draw.normal(size=value.shape).astype(np.float32)
    content["conv1_w_momentum"] = np.zeros(3, np.float32)
    return content


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_backbone_of_caffe2_loads_completely(
    cfg: CfgNode, model: BlendMask, tmp_path: Path, protocol: int
) -> None:
    content, file = caffe2(model), tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps(content, protocol))
    fresh = BlendMask(cfg)
    report = checkpoint.load_backbone(fresh, file)
    assert report.complete
    assert report.matched == len(content) - 3
    assert set(report.ignored) == {"backbone.bottom_up.fc1000.weight", "backbone.bottom_up.fc1000.bias"}
    assert all("running_" in name for name in report.initialised)
    state = fresh.state_dict()
    for name, key in (
        ("stem.conv1.weight", "conv1_w"),
        ("stem.conv1.norm.weight", "res_conv1_bn_s"),
        ("res2.0.shortcut.norm.bias", "res2_0_branch1_bn_b"),
        ("res5.2.conv3.weight", "res5_2_branch2c_w"),
    ):
        assert torch.equal(state[f"backbone.bottom_up.{name}"], torch.from_numpy(content[key]))


def test_a_backbone_of_detectron2s_zoo_loads_completely(
    cfg: CfgNode, model: BlendMask, tmp_path: Path
) -> None:
    own = {
        name.removeprefix("backbone.bottom_up."): value.numpy()
        for name, value in model.state_dict().items()
        if name.startswith("backbone.bottom_up.")
    }
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps({"model": own, "__author__": "torchvision", "matching_heuristics": True}))
    report = checkpoint.load_backbone(BlendMask(cfg), file)
    assert report.complete
    assert report.matched == len(own)


def test_a_backbone_is_kept_as_safetensors_and_its_pickle_read_once(
    cfg: CfgNode, model: BlendMask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, file, kept = caffe2(model), tmp_path / "R-50.pkl", tmp_path / "R-50.safetensors"
    file.write_bytes(pickle.dumps(content, 4))
    first = checkpoint.load_backbone(BlendMask(cfg), file)
    monkeypatch.setattr(checkpoint, "read", None)
    second = BlendMask(cfg)
    assert checkpoint.load_backbone(second, file) == first
    name = "backbone.bottom_up.res5.2.conv3.weight"
    assert torch.equal(second.state_dict()[name], torch.from_numpy(content["res5_2_branch2c_w"]))
    monkeypatch.undo()
    kept.write_bytes(kept.read_bytes()[:1000])  # damaged
    assert checkpoint.load_backbone(BlendMask(cfg), file) == first
    content["res5_2_branch2c_w"] += 1
    file.write_bytes(pickle.dumps(content, 4))  # another file
    assert checkpoint.load_backbone(second, file) == first
    assert torch.equal(second.state_dict()[name], torch.from_numpy(content["res5_2_branch2c_w"]))
    assert {path.name for path in tmp_path.iterdir()} == {file.name, kept.name}


def test_a_backbone_in_a_folder_that_can_only_be_read_loads(
    cfg: CfgNode, model: BlendMask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container sees it."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("ascendet_common.results.replacing", refuse)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(caffe2(model), 4))
    assert checkpoint.load_backbone(BlendMask(cfg), tmp_path / "R-50.pkl").complete
    assert [path.name for path in tmp_path.iterdir()] == ["R-50.pkl"]


def test_a_backbone_that_was_not_fetched_is_named(model: BlendMask, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"R-50\.pkl has not been fetched") as caught:
        checkpoint.load_backbone(model, tmp_path / "R-50.pkl")
    assert caught.value.name == "checkpoint-missing"


def test_another_depth_is_refused_with_what_is_missing(model: BlendMask, tmp_path: Path) -> None:
    content, file = caffe2(model), tmp_path / "R-50.pkl"
    del content["res3_1_branch2b_w"]
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointMismatch, match=r"missing: backbone\.bottom_up\.res3\.1\.conv2\.weight"):
        checkpoint.load_backbone(model, file)


class Call:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.mark,)


@pytest.mark.parametrize("name", ["R-50.pkl", "R_50_3x.pth"])
def test_a_file_that_wants_to_call_something_is_refused(tmp_path: Path, name: str) -> None:
    mark, file = tmp_path / "ran", tmp_path / name
    content = {"conv1_w": np.zeros(3, np.float32), "more": Call(mark)}
    if name.endswith(".pth"):
        torch.save({"model": content}, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="refused, because reading it could run code") as caught:
        checkpoint.read(file)
    assert caught.value.name == "checkpoint-unreadable"
    assert re.search("mkdir|getattr", str(caught.value)), "a pickle asks for Path.mkdir in two ways"
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cos\nsystem\n(S'touch ran'\ntR.", r"os\.system"),
        (pickle.dumps({"conv1_w": np.array([{}], dtype=object)}), "O8"),
        (pickle.dumps({"conv1_w": np.array(["text"])}), "U4"),
    ],
)
def test_anything_but_arrays_of_numbers_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "R-50.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"refused, because reading it could run code: .*{said}"):
        checkpoint.read(tmp_path / "R-50.pkl")


def test_a_checkpoint_with_a_global_of_its_own_is_refused(tmp_path: Path) -> None:
    """torch's format is a zip with a pickle in it, which may name any function."""
    file = tmp_path / "R_50_3x.pth"
    torch.save({"model": {"weight": torch.zeros(3)}}, file)
    with zipfile.ZipFile(file) as before:
        members = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(file, "w") as after:
        for name, content in members.items():
            after.writestr(
                name, b"cposix\nsystem\n(S'touch ran'\ntR." if name.endswith("data.pkl") else content
            )
    with pytest.raises(CheckpointError, match=r"refused, because reading it could run code: .*posix\.system"):
        checkpoint.read(file)


@pytest.mark.parametrize("name", ["R-50.pkl", "R_50_3x.pth"])
@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, length: int) -> None:
    file = tmp_path / name
    whole = pickle.dumps({"conv1_w": np.arange(3000.0)}, 4)
    file.write_bytes(whole[:length] if name.endswith("pkl") else b"PK\x03\x04"[:length] * 9)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.read(file)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoint.read(tmp_path / f"no-{name}")


def test_a_published_checkpoint_loads_with_an_empty_report(
    cfg: CfgNode, model: BlendMask, tmp_path: Path
) -> None:
    """As detectron2's checkpointer writes: with an optimizer, a scheduler, and numpy's numbers in it."""
    file = tmp_path / "R_50_3x.pth"
    torch.save(
        {
            "model": OrderedDict(model.state_dict()),
            "optimizer": {
                "state": {0: {"momentum_buffer": torch.zeros(3)}},
                "param_groups": [{"lr": np.float64(0.1)}],
            },
            "scheduler": {"milestones": (1, 2), "last_epoch": 2},
            "iteration": 269999,
        },
        file,
    )
    fresh = BlendMask(cfg)
    report = checkpoint.load(fresh, checkpoint.read(file))
    assert report.complete
    assert report.matched == len(model.state_dict())
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_of_another_model_is_refused(model: BlendMask) -> None:
    weights = dict(model.state_dict())
    weights["spare"] = weights.pop("top_layer.bias")
    with pytest.raises(CheckpointMismatch) as caught:
        checkpoint.load(model, {"model": weights})
    assert "missing: top_layer.bias" in str(caught.value)
    assert "unexpected: spare" in str(caught.value)


def test_a_training_starts_from_other_classes(cfg: CfgNode, model: BlendMask) -> None:
    three = cfg.clone()
    three.MODEL.FCOS.NUM_CLASSES = three.MODEL.BASIS_MODULE.NUM_CLASSES = 3
    fresh = BlendMask(three)
    report, made_anew = checkpoint.load_to_start(fresh, {"model": model.state_dict()}, other_classes=False)
    assert made_anew == ("proposal_generator.fcos_head.cls_logits", "basis_module.seg_head.6")
    assert len(report.missing) == 4
    assert torch.equal(fresh.top_layer.weight, model.top_layer.weight)
    with pytest.raises(CheckpointMismatch, match="nothing of it fits"):
        checkpoint.load_to_start(fresh, {"model": {"other": torch.zeros(1)}}, other_classes=False)
