"""Stopping and going on, the recipe's batch on any number of devices, and data that cannot be trained on."""

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vitdet
from ascendet_common import images
from ascendet_common.images import ImageError, decode
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS
from PIL import Image
from vitdet.checkpoint import KeepingCheckpointHook
from vitdet.dataset import CheckedCocoDataset, DataError
from vitdet.losses import EXIT_LOSS_NOT_FINITE, LossHook
from vitdet.recipe import RecipeRunner, choose_batch, fit
from vitdet.resume import EXIT_INTERRUPTED, INTERRUPTED, ResumableSampler, SeedEachIterationHook

CONFIGS = Path(vitdet.__file__).parent / "configs"
GENERATOR = Path(__file__).parents[2] / "wheels" / "common" / "ascendet_common" / "shapes.py"


@HOOKS.register_module()
class RecordSteps(Hook):
    """Keep every iteration's loss, exactly; send this process SIGTERM, or spoil a weight, in one iteration."""

    def __init__(self, stop=None, spoil=None):
        self.stop, self.spoil = stop, spoil
        self.losses = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        if runner.iter == self.spoil:
            runner.model.roi_head.mask_head.conv_logits.bias.data.fill_(torch.inf)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter] = float(outputs["loss"].detach())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    command = [sys.executable, GENERATOR, "--out", folder / "shapes", "--train", "6", "--val", "1"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def train(data, monkeypatch):
    """Train ViTDet-tiny on 6 images, 2 at a time; returns the losses by iteration."""
    monkeypatch.setenv("ASCENDET_DATA", str(data))
    handler = signal.getsignal(signal.SIGTERM)

    def run(work_dir, *, stop=None, spoil=None, by_iteration=False, resume=False, **changed):
        cfg = Config.fromfile(CONFIGS / "vitdet-tiny.py")
        cfg.pop("schedule")  # the warm-up as it is stated, not shortened for 8 pictures
        cfg.work_dir, cfg.experiment_name, cfg.resume = (
            str(work_dir),
            f"{work_dir.name}{stop}{resume}",
            resume,
        )
        cfg.train_cfg.update(max_epochs=2, val_begin=9)
        if by_iteration:
            cfg.schedule = None
            cfg.train_cfg = dict(type="ResumableIterLoop", max_iters=2, val_begin=99)
            cfg.default_hooks.checkpoint.update(by_epoch=False, interval=99)
        cfg.merge_from_dict(changed)
        cfg.custom_hooks.append(dict(type="RecordSteps", stop=stop, spoil=spoil))
        runner = RecipeRunner.from_cfg(cfg)
        recorder = next(hook for hook in runner.hooks if isinstance(hook, RecordSteps))
        if stop is None:
            runner.train()
        else:
            with pytest.raises(SystemExit) as ended:
                runner.train()
            assert ended.value.code == EXIT_INTERRUPTED
        return recorder.losses

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_a_training_that_was_stopped_within_an_epoch_repeats_the_uninterrupted_one(
    train, tmp_path, monkeypatch
):
    one_by_one = {"auto_scale_lr.base_batch_size": 2}
    whole = train(tmp_path / "whole", **one_by_one)
    first = train(tmp_path / "parts", stop=3, **one_by_one)
    assert list(first) == [0, 1, 2, 3], "the second epoch's first image pair"
    assert (tmp_path / "parts" / "last_checkpoint").read_text() == str(tmp_path / "parts" / INTERRUPTED)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # what torchrun says to ranks that it starts again
    rest = train(tmp_path / "parts", **one_by_one)
    assert list(rest) == [4, 5]
    assert first | rest == whole


def test_so_does_one_in_iterations_with_accumulation_a_worker_and_mixed_precision(
    train, tmp_path, monkeypatch
):
    # The recipe's 2 steps of 4 images are 4 iterations here; an epoch has 3.
    how = {"by_iteration": True, "train_dataloader.num_workers": 1}
    single = train(tmp_path / "single", stop=0, **how)
    how["amp"] = True
    whole = train(tmp_path / "whole", **how)
    first = train(tmp_path / "parts", stop=0, **how)
    assert list(first) == [0, 1], "the signal came within a step, which ends with the next iteration"
    scaler = torch.load(tmp_path / "parts" / INTERRUPTED, weights_only=True)["optimizer"]["loss_scaler"]
    assert scaler["_growth_tracker"] == 1, "the scaler has made a step"
    rest = train(tmp_path / "parts", resume=True, **how)
    assert list(rest) == [2, 3]
    assert first | rest == whole
    assert first == pytest.approx(single, rel=0.02)
    assert first != single


def test_a_loss_that_is_not_finite_ends_a_training_that_goes_on_at_a_lower_rate(
    train, tmp_path, monkeypatch, capfd
):
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run", spoil=3)
    assert ended.value.code == EXIT_LOSS_NOT_FINITE
    out = capfd.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("error[loss-not-finite]: "))
    assert " loss_mask is nan in iteration 4 of rank 0, " in line
    assert re.search(r" learning rate \S+ \(LR=0\.001\), pictures: \S+/shapes/train/\S+, \S+$", line)
    assert (tmp_path / "run" / "last_checkpoint").read_text() == str(tmp_path / "run" / "epoch_1.pth")
    assert {file.name for file in (tmp_path / "run").glob("*.pth")} == {"epoch_1.pth"}
    assert list(train(tmp_path / "run", resume=True, lr=5e-4)) == [3, 4, 5]
    saved = torch.load(tmp_path / "run" / "epoch_2.pth", weights_only=True)
    assert saved["meta"]["lr"] == 5e-4
    rates = [group["lr"] for group in saved["optimizer"]["param_groups"]]
    assert all(0 < rate < 5e-4 * 0.2 for rate in rates), "the warm-up goes on, at the lower rate"
    assert [group["initial_lr"] for group in saved["optimizer"]["param_groups"]] == pytest.approx(
        [5e-4] * len(rates)
    )


def _losses_of_one_rank(rank, values, file):
    """Read losses by the hook, in a process group of two; rank 1's are `values`."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    os.environ["LOCAL_RANK"] = str(rank)
    runner = _runner()
    hook = LossHook()
    hook.before_train(runner)
    for runner.iter, value in enumerate(values if rank else [1.0] * len(values)):
        outputs = {"loss": torch.tensor(value), "loss_cls": torch.tensor(value), "acc": torch.tensor(np.nan)}
        if runner.iter == 1:
            del outputs["acc"]  # as in a step without a region
        batch = {"data_samples": [DetDataSample(metainfo={"img_path": f"{rank}/{runner.iter}-\udcd6.jpg"})]}
        hook.after_train_iter(runner, runner.iter, batch, outputs)
    hook.before_val(runner)
    log = runner.message_hub.get_scalar("train/loss_cls").data[0]
    assert log.tolist() == (values if rank else [1.0] * len(values))


def _runner():
    """Of mmengine's runner, what the hook touches."""
    return SimpleNamespace(
        iter=0,
        epoch=0,
        max_epochs=1,
        max_iters=9,
        hooks=[],
        message_hub=MessageHub(f"losses{os.getpid()}"),
        train_dataloader=torch.utils.data.DataLoader(range(99)),
        optim_wrapper=SimpleNamespace(param_groups=[{"lr": 0.01, "initial_lr": 0.1}]),
    )


@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0], [3.0, np.inf, np.nan]])
def test_all_ranks_end_when_the_loss_of_one_is_not_finite(values, tmp_path, capfd):
    context = torch.multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_losses_of_one_rank, args=(rank, values, tmp_path / "store"))
        for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    finite = np.isfinite(values).all()
    assert [rank.exitcode for rank in ranks] == [0 if finite else EXIT_LOSS_NOT_FINITE] * 2
    line = (
        "error[loss-not-finite]: loss_cls is inf in iteration 2 of rank 1, learning rate 0.01 (LR=0.1), "
        "pictures: 1/1-\\xd6.jpg"
    )
    told = [line for line in capfd.readouterr().out.splitlines() if line.startswith("error")]
    assert told == ([] if finite else [line]), "each node's first rank tells it"


def test_a_loss_that_is_not_finite_explains_an_exception_after_it(train, tmp_path, monkeypatch, capfd):
    def fail(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            raise RuntimeError("boxes that make no sense")

    monkeypatch.setattr(SeedEachIterationHook, "before_train_iter", fail)
    with pytest.raises(RuntimeError, match="no sense"):
        train(tmp_path / "finite")
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run", spoil=1)
    assert ended.value.code == EXIT_LOSS_NOT_FINITE
    assert (
        capfd.readouterr().out.count("error[loss-not-finite]: loss_mask is nan in iteration 2 of rank 0") == 1
    )


def test_all_ranks_check_losses_and_weights_before_the_first_rank_saves(monkeypatch):
    """Comparing losses is a collective, and mmengine calls a checkpoint's hooks on the first rank only."""
    read = []
    hook = LossHook()
    monkeypatch.setattr(hook, "check", read.append)
    monkeypatch.setattr("mmengine.dist.utils.is_main_process", lambda *_: False)
    runner = object.__new__(RecipeRunner)
    runner._hooks = [hook]
    runner.save_checkpoint("folder", "interrupted.pth", meta={}, by_epoch=False)
    assert read == [runner]


def test_weights_that_are_not_finite_are_not_saved(capsys):
    hook, runner = LossHook(), _runner()
    hook.before_train(runner)
    weights = {"good": torch.ones(2), "other": torch.tensor([3.0]), "bad": torch.tensor([1.0, np.nan])}
    runner.model = torch.nn.ParameterDict(weights)
    with pytest.raises(SystemExit) as ended:
        hook.check(runner)
    assert ended.value.code == EXIT_LOSS_NOT_FINITE
    assert (
        "1 of 3 weights are not finite after iteration 0, bad among them; learning" in capsys.readouterr().out
    )


def test_other_devices_go_on_at_the_same_image(train, tmp_path):
    assert list(train(tmp_path / "run", stop=0)) == [0, 1]
    # As on twice the devices: one iteration is a step of 4 images, and the first one is done.
    rest = train(tmp_path / "run", resume=True, **{"train_dataloader.batch_size": 4})
    assert list(rest) == [1, 2, 3]
    saved = torch.load(tmp_path / "run" / "epoch_2.pth", weights_only=True)
    assert saved["meta"]["images_per_iteration"] == 4
    assert [state["last_step"] for state in saved["param_schedulers"]] == [4, 4]


def test_the_sampler_goes_on_within_an_epoch():
    sampler = ResumableSampler(range(7), seed=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    assert sorted(index for _, _, index in whole) == list(range(7))
    assert {draw[:2] for draw in whole} == {(3, 2)}
    sampler.skip = 5
    assert list(sampler) == whole[5:]
    assert list(sampler) == whole, "only once"


@pytest.mark.parametrize(
    ("ranks", "per_rank", "expected"),
    [
        (1, 4, (4, 16, 64)),
        (8, 4, (4, 2, 64)),
        (16, 4, (4, 1, 64)),
        (32, 4, (2, 1, 64)),
        (3, 4, (4, 5, 60)),
        (128, 4, (1, 1, 128)),
    ],
)
def test_the_batch_is_the_recipe_s(ranks, per_rank, expected):
    batch = choose_batch(64, ranks, per_rank)
    assert (batch.per_rank, batch.accumulated, batch.effective) == expected


@pytest.mark.parametrize("ranks", [1, 3, 4, 16, 64])
def test_a_training_sees_as_many_images_on_any_number_of_devices(ranks):
    recipe, cfg = (Config.fromfile(CONFIGS / "vitdet-b.py") for _ in range(2))
    batch = fit(cfg, ranks)
    per_iteration = ranks * cfg.train_dataloader.batch_size
    images = 64 * recipe.train_cfg.max_iters
    assert cfg.train_cfg.max_iters * per_iteration == pytest.approx(images, rel=1e-4)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * batch.effective / 64)
    assert cfg.optim_wrapper.accumulative_counts == batch.accumulated
    warm_up, drops = cfg.param_scheduler
    assert warm_up.end * per_iteration == pytest.approx(64 * 250, rel=0.01)
    for mine, theirs in zip(drops.milestones, recipe.param_scheduler[1].milestones, strict=True):
        assert mine * per_iteration == pytest.approx(64 * theirs, rel=1e-4)
    for interval in (
        cfg.train_cfg.val_interval,
        cfg.default_hooks.checkpoint.interval,
        cfg.train_cfg.max_iters,
    ):
        assert interval % batch.accumulated == 0, "no checkpoint holds half of a step"


def test_a_full_disk_costs_neither_the_last_nor_the_best_checkpoint(tmp_path):
    hook = KeepingCheckpointHook(interval=1, max_keep_ckpts=1, save_best="coco/bbox_mAP", rule="greater")

    class Disk:
        """Of mmengine's runner, what the hook touches."""

        work_dir, epoch, iter = str(tmp_path), 0, 1
        message_hub = MessageHub("keep")
        logger = logging.getLogger("keep")

        def save_checkpoint(self, out_dir, filename, *_, **__):
            if self.epoch > 1:
                raise OSError(28, "No space left on device")
            Path(out_dir, filename).write_text("weights")

    disk = Disk()
    hook.before_train(disk)
    hook._save_checkpoint(disk)
    hook._save_best_checkpoint(disk, {"coco/bbox_mAP": 0.5})
    hook._save_best_checkpoint(disk, {})  # mmdet's numbers where nothing at all was detected
    kept = {file.name for file in tmp_path.glob("*.pth")}
    assert len(kept) == 2
    disk.epoch = 2
    for save in (
        lambda: hook._save_checkpoint(disk),
        lambda: hook._save_best_checkpoint(disk, {"coco/bbox_mAP": 0.6}),
    ):
        with pytest.raises(OSError, match="No space"):
            save()
    assert {file.name for file in tmp_path.glob("*.pth")} == kept


# -- images and annotations --


def encoded(image, **how):
    file = io.BytesIO()
    image.save(file, **how)
    return file.getvalue()


@pytest.fixture(scope="module")
def scene():
    """An image of two colours, 60 wide and 40 high: red on the left, green on the right."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 200
    pixels[:, 30:, 1] = 200
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("RGB", dict(format="JPEG", quality=95)),
        ("CMYK", dict(format="JPEG", quality=95)),
        ("RGBA", dict(format="PNG")),
        ("P", dict(format="PNG")),
    ],
)
def test_odd_images_are_read_in_their_colours(scene, mode, how):
    pixels = decode(encoded(scene.convert(mode), **how), "x")
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[20, 10].astype(int) - [0, 0, 200]).max() < 30, "BGR"
    assert np.abs(pixels[20, 50].astype(int) - [0, 200, 0]).max() < 30


def test_grey_deep_and_tiny_images_are_read(scene):
    grey = decode(encoded(scene.convert("L"), format="JPEG"), "x")
    assert grey.shape == (40, 60, 3)
    assert (grey[..., 0] == grey[..., 2]).all()
    deep = Image.fromarray(np.full((4, 5), 40000, np.uint16))
    assert (decode(encoded(deep, format="PNG"), "x") == 40000 // 256).all()
    assert decode(encoded(scene.resize((1, 1)), format="PNG"), "x").shape == (1, 1, 3)


def test_exif_turns_an_image_unless_its_annotations_were_drawn_before(scene):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    content = encoded(scene, format="JPEG", quality=95, exif=exif)
    assert decode(content, "x").shape == (60, 40, 3)
    assert decode(content, "x", (60, 40)).shape == (60, 40, 3)
    stored = decode(content, "x", (40, 60))
    assert stored.shape == (40, 60, 3)
    assert stored[20, 10, 2] > 150
    with pytest.raises(ImageError, match=r"x: 40 x 60 pixels, annotated as 7 x 7"):
        decode(content, "x", (7, 7))


def test_damaged_images_are_named(scene, tmp_path):
    whole = encoded(scene.resize((300, 200)), format="JPEG")
    assert decode(whole + b"what a camera adds", "x").shape == (200, 300, 3)
    png = encoded(scene, format="PNG")
    for content in (b"", b"no image", whole[: len(whole) // 2], whole[:-2][:20], png[:40]):
        with pytest.raises(ImageError, match=r"^photo\.jpg: "):
            decode(content, "photo.jpg")
    with pytest.raises(ImageError, match="No such file"):
        images.read(tmp_path / "none.jpg")


@pytest.fixture
def annotated(scene, tmp_path):
    """Write annotations, changed by the caller, for three images; build the training set of them."""
    (tmp_path / "train").mkdir()
    for number in (1, 2, 3):
        scene.save(tmp_path / "train" / f"{number}.jpg")
    box = dict(category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0, segmentation=[[5, 5, 25, 5, 25, 25]])
    content = {
        "images": [dict(id=n, file_name=f"{n}.jpg", width=60, height=40) for n in (1, 2, 3)],
        "annotations": [dict(box, id=n, image_id=n) for n in (1, 2, 3)],
        "categories": [dict(id=1, name="red"), dict(id=2, name="green")],
    }

    def build(change=lambda content: None, **more):
        change(content)
        (tmp_path / "a.json").write_text(json.dumps(content))
        load = dict(type="LoadCheckedImage", ignore_empty=more.pop("ignore_empty", False))
        return CheckedCocoDataset(
            ann_file=str(tmp_path / "a.json"),
            data_prefix=dict(img=str(tmp_path / "train")),
            metainfo=dict(classes=("red", "green")),
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=[load],
            **more,
        )

    return build


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda c: c["images"].append(dict(id=9, file_name="9.jpg", width=1, height=1)),
            r"names 1 of 4 images .* 9\.jpg",
        ),
        (lambda c: c["images"].clear(), "has no images"),
        (lambda c: c["annotations"].clear(), "no image with an object to train on"),
        (
            lambda c: c["categories"].pop(),
            r"has other classes than the model: it has 1 \(red\), the model has 2 \(red, green\)",
        ),
        (
            lambda c: c["categories"].reverse(),
            r"it has 2 \(green, red\), the model has 2 \(red, green\)",
        ),
        (lambda c: c["images"][0].pop("file_name"), "is no COCO instances file: KeyError"),
        (lambda c: c["annotations"][0].update(id=2), "not unique"),
    ],
)
def test_annotations_that_cannot_be_used_are_named(annotated, change, reason):
    with pytest.raises(DataError, match=reason):
        annotated(change)


def test_damaged_images_end_a_training_or_are_skipped_as_configured(annotated, tmp_path):
    good = annotated()
    assert good[0]["img"].shape == (40, 60, 3)
    photo = tmp_path / "train" / "1.jpg"
    photo.write_bytes(photo.read_bytes()[:300])
    with pytest.raises(DataError, match=r"damaged picture .*1\.jpg"):
        annotated()[0]
    skipping = annotated(ignore_empty=True)
    assert skipping[0]["img_path"] != str(photo)
