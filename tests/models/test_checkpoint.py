import errno
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import vitdet.register
from ascendet_common.checkpoints import CheckpointError, Discarded
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint, save_checkpoint
from torch import nn
from vitdet.backbone import ViT
from vitdet.checkpoint import compare, load_pretrained, plain, read

CONFIGS = Path(vitdet.__file__).parent / "configs"
FIXTURES = Path(__file__).parents[1] / "fixtures"


def _vit(**changed):
    shape = dict(img_size=64, embed_dim=24, depth=2, num_heads=2, window_size=3, window_block_indexes=[0])
    return ViT(**shape | changed)


def _mae(depth=2, dim=24):
    """The keys and shapes of MAE's pre-training checkpoint, as its README's file has them."""
    keys = {"cls_token": (1, 1, dim), "pos_embed": (1, 197, dim)}
    keys |= {"patch_embed.proj.weight": (dim, 3, 16, 16), "patch_embed.proj.bias": (dim,)}
    for block in range(depth):
        for layer, shape in {
            "norm1": (dim,),
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "norm2": (dim,),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }.items():
            keys |= {f"blocks.{block}.{layer}.weight": shape, f"blocks.{block}.{layer}.bias": shape[:1]}
    keys |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    return {key: torch.randn(shape) for key, shape in keys.items()}


def _build(name):
    init_default_scope("mmdet")
    from mmdet.registry import MODELS

    return MODELS.build(Config.fromfile(CONFIGS / f"{name}.py").model)


# --- what fits -----------------------------------------------------------------------------------------------


def test_vitdet_b_has_the_published_keys_and_shapes():
    """The list is made from the published architecture; its position embedding is MAE's 14 x 14 and class token."""
    lines = (FIXTURES / "vitdet-b_state_dict.txt").read_text().splitlines()
    published = {}
    for line in lines:
        if not line.startswith("#"):
            key, shape = line.split(" ", 1)
            published[key] = torch.empty([int(size) for size in re.findall(r"\d+", shape)], device="meta")
    with torch.device("meta"):
        model = _build("vitdet-b")
    report = compare(model, published)
    assert report.complete, str(report)
    assert report.matched == len(published) == 245
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    fitted = {key for key, value in published.items() if own[key] != tuple(value.shape)}
    assert fitted == {"backbone.pos_embed"}
    assert round(sum(value.numel() for value in published.values()) / 1e6, 1) == 110.9


def test_mae_loads_with_nothing_missing(tmp_path):
    weights = _mae()
    torch.save({"model": weights}, tmp_path / "mae.pth")
    model = _vit(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "mae.pth")))
    model.init_weights()
    report = load_pretrained(model, str(tmp_path / "mae.pth"))
    assert report.complete
    assert report.ignored == ("cls_token", "norm.weight", "norm.bias")
    assert set(report.initialised) == {f"blocks.{n}.attn.rel_pos_{axis}" for n in (0, 1) for axis in "hw"}
    assert torch.equal(model.blocks[1].mlp.fc2.weight, weights["blocks.1.mlp.fc2.weight"])
    assert model.pos_embed.shape == (1, 16, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mae: mae.pop("blocks.1.mlp.fc2.bias"), "missing: blocks.1.mlp.fc2.bias"),
        (lambda mae: mae.update({"blocks.2.norm1.bias": torch.zeros(24)}), "unexpected: blocks.2.norm1.bias"),
        (
            lambda mae: mae.update({"patch_embed.proj.bias": torch.zeros(32)}),
            r"mismatched: patch_embed.proj.bias \(32,\) -> \(24,\)",
        ),
    ],
)
def test_weights_of_another_backbone_are_refused(tmp_path, change, message):
    weights = _mae()
    change(weights)
    torch.save({"model": weights}, tmp_path / "mae.pth")
    model = _vit()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, str(tmp_path / "mae.pth"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_backbone_that_was_not_fetched_has_a_name(tmp_path):
    model = _vit(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "mae.pth")))
    with pytest.raises(CheckpointError, match=r"mae.pth has not been fetched") as caught:
        model.init_weights()
    assert (caught.value.name, caught.value.expected) == ("checkpoint-missing", str(tmp_path / "mae.pth"))


# --- what is safe --------------------------------------------------------------------------------------------


def _checkpoint_of(file, pickled):
    """A checkpoint whose pickle is `pickled`, byte by byte: what an attacker would write."""
    torch.save({"state_dict": {}}, file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)


class _RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path, new_format):
    file, proof = tmp_path / "evil.pth", tmp_path / "proof"
    content = {"state_dict": {"a": torch.zeros(1)}, "meta": _RunsACommand(f"touch {proof}")}
    torch.save(content, file, _use_new_zipfile_serialization=new_format)
    for load in (read, lambda path: CheckpointLoader.load_checkpoint(path, "cpu")):
        with pytest.raises(CheckpointError, match="refused, because reading it could run code"):
            load(str(file))
    assert not proof.exists()
    torch.load(file, weights_only=False)
    assert proof.exists()  # so the file was a real attack


# mmengine's checkpoints name `getattr`. The real one reaches from an allowed class to its module's globals, and from
# there to every builtin.
_GETATTR = b"cbuiltins\ngetattr\n"
_BUFFER = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"


def _unicode(text):
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _get(thing, name):
    return _GETATTR + b"(" + thing + _unicode(name) + b"tR"


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cos\nsystem\n(" + _unicode("touch {proof}") + b"tR.",
        b"\x80\x02cbuiltins\neval\n(" + _unicode("open('{proof}', 'w')") + b"tR.",
        b"\x80\x02" + _GETATTR + b"(cos\nsystem\n" + _unicode("__call__") + b"tR.",
    ],
    ids=["os.system", "eval", "getattr of os"],
)
def test_forbidden_globals_are_refused(tmp_path, pickled):
    _checkpoint_of(tmp_path / "evil.pth", pickled)
    with pytest.raises(CheckpointError, match="could run code"):
        read(str(tmp_path / "evil.pth"))


def test_getattr_in_a_checkpoint_gets_nothing(tmp_path):
    """The stand-in for `builtins.getattr` yields a thing that does nothing and cannot be called by the file."""
    function = _get(_get(_BUFFER, "mean"), "__globals__")
    _checkpoint_of(tmp_path / "odd.pth", b"\x80\x02}" + _unicode("meta") + function + b"s.")
    assert type(read(str(tmp_path / "odd.pth"))["meta"]) is Discarded
    called = function + b"(" + _unicode("x") + b"tR"
    _checkpoint_of(tmp_path / "evil.pth", b"\x80\x02}" + _unicode("meta") + called + b"s.")
    with pytest.raises(CheckpointError, match="could run code"):
        read(str(tmp_path / "evil.pth"))


def test_reading_leaves_nothing_allowed():
    before = set(map(str, torch.serialization.get_safe_globals()))
    with pytest.raises(FileNotFoundError):
        read("no/such/file.pth")
    assert set(map(str, torch.serialization.get_safe_globals())) == before
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_checkpoint_of_plain_mmengine_is_read_without_its_log(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        "meta": {"epoch": 3, "iter": 30},
        "state_dict": OrderedDict(a=torch.ones(2)),
        "message_hub": {
            "log_scalars": OrderedDict(loss=buffer),
            "runtime_info": OrderedDict(iter=30, lr=np.float64(0.1), table=np.arange(3)),
            "resumed_keys": OrderedDict(loss=True, iter=True, lr=True, table=True),
        },
    }
    torch.save(content, tmp_path / "mmengine.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "mmengine.pth", weights_only=True)  # so the case is a real one
    got = read(str(tmp_path / "mmengine.pth"))
    assert got["meta"] == {"epoch": 3, "iter": 30}
    assert torch.equal(got["state_dict"]["a"], torch.ones(2))
    assert got["message_hub"]["log_scalars"] == {}
    assert got["message_hub"]["runtime_info"] == {"iter": 30}


def test_what_we_write_reads_back(tmp_path):
    buffer = HistoryBuffer([1.5, 2.5], [1, 2], max_length=7)
    hub = {
        "log_scalars": OrderedDict(loss=buffer),
        "runtime_info": OrderedDict(lr=np.float64(0.5), table=np.arange(3), name="x"),
        "resumed_keys": OrderedDict(loss=True),
    }
    torch.save({"state_dict": {}, "message_hub": plain(hub)}, tmp_path / "ours.pth")
    torch.load(tmp_path / "ours.pth", weights_only=True)  # by PyTorch's own rules, with nothing allowed
    got = read(str(tmp_path / "ours.pth"))["message_hub"]
    restored = got["log_scalars"]["loss"]
    assert isinstance(restored, HistoryBuffer)
    assert [array.tolist() for array in restored.data] == [array.tolist() for array in buffer.data]
    assert restored.max_length == 7
    assert got["runtime_info"]["lr"] == 0.5
    assert got["runtime_info"]["table"].tolist() == [0, 1, 2]


def test_a_checkpoint_on_a_full_disk_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "epoch_1.pth"
    save_checkpoint({"state_dict": {"weight": torch.zeros(3)}}, str(path))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    for name in ("epoch_1.pth", "epoch_2.pth"):
        with pytest.raises(OSError, match="full"):
            save_checkpoint({"state_dict": {"weight": torch.ones(3)}}, str(tmp_path / name))
    assert [file.name for file in tmp_path.iterdir()] == ["epoch_1.pth"]
    assert torch.load(path, weights_only=True)["state_dict"]["weight"].sum() == 0


def test_what_cannot_be_stored_is_named():
    with pytest.raises(TypeError, match=r"meta\['hooks'\]\[1\] is a Linear"):
        plain({"hooks": [1, nn.Linear(1, 1)]}, "meta")


@pytest.mark.parametrize("size", [0, 10, 2000])
def test_a_truncated_file_is_named(tmp_path, size):
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    assert size < len(content)
    (tmp_path / "cut.pth").write_bytes(content[:size])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        read(str(tmp_path / "cut.pth"))


def test_a_file_without_weights_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / "list.pth"))
