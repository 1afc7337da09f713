"""Sessions over the labelled fake: sharing and counting buffers, what is refused by name, and that nothing leaks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ascendet_common.errors import RunError
from conftest import SIZE, Picture, digest, hand_made, hand_made_steps, write_fake_oms
from fake_acl import FakeAcl
from staged_om.device import AclError, Device
from staged_om.host import Batch, HostStep
from staged_om.meta import Meta
from staged_om.schedule import overlapped, run_batch
from staged_om.session import Session


def detect(folder: Path, meta: Meta, pictures: list[np.ndarray]) -> tuple[Session, list[float]]:
    with Device() as device, Session(device, meta, hand_made_steps(meta), folder) as session:
        finished = run_batch(session, session.lanes[0], Batch(pictures=pictures))
        return session, [float(found.scores[0]) for found in finished.batch.detections]


def refused(name: str, folder: Path, meta: Meta) -> RunError:
    with pytest.raises(RunError) as caught, Device() as device:
        Session(device, meta, hand_made_steps(meta), folder)
    assert caught.value.name == name
    return caught.value


def test_stages_share_device_buffers_and_only_what_the_host_reads_is_copied(
    fake: FakeAcl, tmp_path: Path, picture: Picture
) -> None:
    meta = hand_made()
    session, scores = detect(write_fake_oms(tmp_path, meta), meta, [picture(255)])
    # features: mean 1, outputs 1, 2, 3 in their order; head: the mean of 1 and 2 and of rois, which are 3
    assert scores == [pytest.approx(2.0)]
    assert session.copies["to host"] == {"hint": 8, "scores": 4}
    assert session.copies["to device"] == {"image": 3 * SIZE * SIZE * 4, "rois": 20}
    assert session.resident() == {"p2": 4 * SIZE * SIZE * 4, "p3": 4 * SIZE * SIZE * 4}
    assert fake.alive == {}
    assert not fake.started


@pytest.mark.parametrize("lanes", [1, 3])
def test_detections_do_not_change_with_the_lanes_next_batch(
    fake: FakeAcl, tmp_path: Path, picture: Picture, lanes: int
) -> None:
    meta = hand_made()
    folder = write_fake_oms(tmp_path, meta)
    values = [0, 51, 102, 153, 204, 255]
    with Device() as device, Session(device, meta, hand_made_steps(meta), folder, lanes=lanes) as session:
        sources = [lambda value=value: Batch(pictures=[picture(value)]) for value in values]
        found = [done.batch.detections[0].scores[0] for done in overlapped(session, sources)]
    assert found == pytest.approx([value / 255 + 1 for value in values])
    assert fake.alive == {}


def test_a_batch_may_have_fewer_pictures_and_not_more(
    fake: FakeAcl, tmp_path: Path, picture: Picture
) -> None:
    meta = hand_made(batch=2)
    folder = write_fake_oms(tmp_path, meta)
    assert len(detect(folder, meta, [picture(1)])[1]) == 1
    with pytest.raises(RunError) as caught:
        detect(folder, meta, [picture(1)] * 3)
    assert (caught.value.name, caught.value.found) == ("usage", "3 pictures")
    assert fake.alive == {}


def test_whatever_call_fails_nothing_leaks_and_the_error_has_acls_text(
    fake: FakeAcl, tmp_path: Path, picture: Picture
) -> None:
    meta = hand_made()
    folder = write_fake_oms(tmp_path, meta)
    detect(folder, meta, [picture(1)])
    count = len(fake.calls)
    assert count > 60
    for number in range(count):
        fake.calls.clear()
        fake.fail_at = number
        with pytest.raises(AclError) as caught:
            detect(folder, meta, [picture(1)])
        assert caught.value.name == "acl-failed"
        assert caught.value.found == "E19999: the fake was told to fail"
        assert caught.value.function.rpartition(".")[2] == fake.calls[number]
        assert fake.alive == {}, fake.calls[number]
        assert not fake.started


@pytest.mark.parametrize(
    ("code", "name"),
    [(507010, "npu-lost"), (507014, "npu-timeout"), (207018, "npu-out-of-memory"), (145000, "acl-failed")],
)
def test_codes_have_names(fake: FakeAcl, tmp_path: Path, picture: Picture, code: int, name: str) -> None:
    meta = hand_made()
    fake.code, fake.fail_at = code, 12
    with pytest.raises(AclError) as caught:
        detect(write_fake_oms(tmp_path, meta), meta, [picture(1)])
    assert (caught.value.name, caught.value.code) == (name, code)


def test_an_om_of_another_export_is_refused(fake: FakeAcl, tmp_path: Path) -> None:
    folder = write_fake_oms(tmp_path, hand_made())
    error = refused("om-mixed-builds", folder, hand_made(export_id="export-2"))
    assert (error.expected, error.found) == ("export-2", "export-1")


def test_an_om_that_was_copied_from_another_build_is_refused(fake: FakeAcl, tmp_path: Path) -> None:
    meta = hand_made()
    folder = write_fake_oms(tmp_path, meta)
    (folder / "head.om").write_text((folder / "head.om").read_text() + "\n")
    assert "head.om" in refused("om-mixed-builds", folder, meta).what
    assert fake.alive == {}


def test_an_om_with_other_ports_than_the_metadata_is_refused(fake: FakeAcl, tmp_path: Path) -> None:
    folder = write_fake_oms(tmp_path, hand_made(batch=2))
    assert "float32[2,3,8,8]" in str(refused("om-mixed-builds", folder, hand_made()).found)


def test_with_aipp_the_om_takes_bytes_in_nhwc(fake: FakeAcl, tmp_path: Path, picture: Picture) -> None:
    meta = hand_made(host={"aipp": {"image": {"config": "features.aipp.cfg"}}})
    folder = write_fake_oms(tmp_path, meta)
    content = json.loads((folder / "features.om").read_text())
    content["inputs"][0] |= {"dtype": "uint8", "shape": [1, SIZE, SIZE, 3]}
    (folder / "features.om").write_text(json.dumps(content))
    record = json.loads((folder / "om.json").read_text())
    record["stages"]["features"]["sha256"] = digest(folder / "features.om")
    (folder / "om.json").write_text(json.dumps(record))
    _, *rest = hand_made_steps(meta)

    def preprocess(batch: Batch) -> None:
        batch.values["image"] = batch.pictures[0][None]

    steps = (HostStep(name="preprocess", run=preprocess, writes=("image",)), *rest)
    with Device() as device, Session(device, meta, steps, folder) as session:
        finished = run_batch(session, session.lanes[0], Batch(pictures=[picture(3)]))
        assert finished.batch.detections[0].scores[0] == pytest.approx(4.0)  # 3 of the bytes, and 1
        assert session.copies["to device"]["image"] == 3 * SIZE * SIZE


def test_stages_that_disagree_about_a_shared_buffer_are_refused(fake: FakeAcl, tmp_path: Path) -> None:
    meta = hand_made()
    folder = write_fake_oms(tmp_path, meta)
    content = json.loads((folder / "head.om").read_text())
    content["inputs"][0]["dtype"] = "float16"
    (folder / "head.om").write_text(json.dumps(content))
    record = json.loads((folder / "om.json").read_text())
    record["stages"]["head"]["sha256"] = digest(folder / "head.om")
    (folder / "om.json").write_text(json.dumps(record))
    error = refused("om-mixed-builds", folder, meta)
    assert (error.expected, error.found) == ("float32[1,4,8,8]", "float16[1,4,8,8]")
    assert fake.alive == {}


@pytest.mark.parametrize("soc", ["Ascend910_9391", "Ascend310P3"])
def test_an_om_for_another_family_of_socs_is_refused(fake: FakeAcl, tmp_path: Path, soc: str) -> None:
    meta = hand_made()
    error = refused("om-other-soc", write_fake_oms(tmp_path, meta, soc=soc), meta)
    assert error.found == soc


def test_an_om_for_another_variant_of_the_device_is_taken(
    fake: FakeAcl, tmp_path: Path, picture: Picture
) -> None:
    meta = hand_made()
    assert detect(write_fake_oms(tmp_path, meta, soc="Ascend910B4"), meta, [picture(1)])[1]


def test_a_corrupt_om_is_refused(fake: FakeAcl, tmp_path: Path) -> None:
    meta = hand_made()
    folder = write_fake_oms(tmp_path, meta)
    (folder / "head.om").write_text("{")
    refused("om-corrupt", folder, meta)
    assert fake.alive == {}


@pytest.mark.parametrize("missing", ["om.json", "head.om"])
def test_a_missing_file_is_named(fake: FakeAcl, tmp_path: Path, missing: str) -> None:
    meta = hand_made()
    folder = write_fake_oms(tmp_path, meta)
    (folder / missing).unlink()
    assert missing.removesuffix(".om") in refused("om-missing", folder, meta).what


def test_a_device_lost_in_mid_batch_loses_no_result_before_it(
    fake: FakeAcl, tmp_path: Path, picture: Picture
) -> None:
    meta = hand_made()
    folder = write_fake_oms(tmp_path, meta)
    found = []

    def source(number: int) -> Batch:
        if number == 3:
            fake.code, fake.lost, fake.fail_at = 507010, True, len(fake.calls)
        return Batch(pictures=[picture(number)])

    sources = [lambda number=number: source(number) for number in range(9)]
    with (
        pytest.raises(AclError) as caught,
        Device() as device,
        Session(device, meta, hand_made_steps(meta), folder) as session,
    ):
        for done in overlapped(session, sources):
            found.append(done.number)
    assert caught.value.name == "npu-lost"
    assert found in ([0, 1], [0, 1, 2])  # the batch before may run beside the reading of the third
    assert fake.alive == {}


def test_an_environment_without_pyacl_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "acl", None)
    with pytest.raises(RunError, match="no pyACL") as caught:
        Device()
    assert caught.value.name == "acl-failed"


def test_a_device_that_somebody_else_initialised_is_not_finalized(fake: FakeAcl) -> None:
    fake.init = lambda: 100002  # type: ignore[method-assign]
    fake.started = True
    with Device() as device:
        assert device.soc == "Ascend910B3"
    assert fake.started
