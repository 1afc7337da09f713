"""The docker command of a run, from facts about a host; nothing is started."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from ascendet.containers import container, image
from ascendet.errors import AscendetError

REAL = image.Image(id="sha256:1", tag="ascendet/x:1", size=1, simulated=False)
SIMULATED = replace(REAL, simulated=True)
HOST = container.Host(
    root=Path("/"),
    nodes=(0, 1, 2, 3, 4, 5, 6, 7),
    missing=(),
    groups=(1000,),
    driver=("/usr/local/Ascend/driver/lib64", "/usr/local/dcmi", "/usr/local/bin/npu-smi"),
    runtime=False,
    user=1234,
    group=1235,
)
NO_NPU = replace(HOST, nodes=(), groups=(), driver=())


@pytest.fixture(autouse=True)
def _auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NPU", raising=False)
    monkeypatch.delenv("CANN_SIM_DEVICES", raising=False)


def plan(built: image.Image, host: container.Host, *chosen: int) -> list[str]:
    place = container.make(built, host)
    return place.command(
        chosen,
        ["train.sh"],
        name="n",
        work_dir=Path("/runs/one"),
        inputs=[Path("/data")],
        environ={"MODEL": "m"},
    )


def devices_of(words: list[str]) -> list[str]:
    return [word.partition(":")[2] for word in words if word.startswith("--device=")]


def test_only_what_is_needed_is_given() -> None:
    words = plan(REAL, HOST, 6, 7)
    assert devices_of(words) == [
        "/dev/davinci6",
        "/dev/davinci7",
        "/dev/davinci_manager",
        "/dev/devmm_svm",
        "/dev/hisi_hdc",
    ]
    assert not [
        word for word in words if re.search("privileged|cap-add|--network|--ipc|seccomp|docker.sock", word)
    ]
    assert {"--cap-drop=ALL", "--read-only", "--security-opt=no-new-privileges", "--init"} <= set(words)
    assert {"--user=1234:1235", "--group-add=1000", "--shm-size=4g"} <= set(words)
    mounts = [word for word in words if word.startswith("--mount=")]
    writable = [word for word in mounts if not word.endswith(",readonly")]
    assert writable == ["--mount=type=bind,source=/runs/one,target=/runs/one"]
    assert sum(path in mount for path in HOST.driver for mount in mounts) == len(HOST.driver)
    assert words[-2:] == ["ascendet/x:1", "train.sh"]


@pytest.mark.parametrize(
    ("nodes", "chosen", "physical"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7), (6, 7), ["davinci6", "davinci7"]),
        ((2, 6, 7), (1, 2), ["davinci6", "davinci7"]),  # cards 0 and 1 are broken or somebody else's
        ((4, 5), (0,), ["davinci4"]),
    ],
)
def test_device_numbers_are_translated_once(
    nodes: tuple[int, ...], chosen: tuple[int, ...], physical: list[str]
) -> None:
    """Logical on the host, physical for docker, logical again inside, where the runtime sees only what it was given."""
    host = replace(HOST, nodes=nodes)
    words = plan(REAL, host, *chosen)
    assert [Path(path).name for path in devices_of(words)][: len(chosen)] == physical
    inside = ",".join(map(str, range(len(chosen))))
    assert f"--env=DEVICES={inside}" in words
    assert not [word for word in words if "VISIBLE_DEVICES" in word]
    words = plan(REAL, replace(host, runtime=True), *chosen)
    visible = ",".join(name.removeprefix("davinci") for name in physical)
    assert {f"--env=ASCEND_VISIBLE_DEVICES={visible}", f"--env=DEVICES={inside}", "--runtime=ascend"} <= set(
        words
    )
    assert not devices_of(words)
    assert not [word for word in words if "driver" in word]


def test_variables_of_the_callers_shell_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "6,7")
    assert "ASCEND_RT_VISIBLE_DEVICES" not in " ".join(plan(REAL, HOST, 6, 7))


def test_simulated_image_has_as_many_devices_as_were_chosen() -> None:
    words = plan(SIMULATED, NO_NPU, 6, 7)
    assert {"--env=DEVICES=0,1", "--env=CANN_SIM_DEVICES=2"} <= set(words)
    assert not devices_of(words)
    assert not [word for word in words if word.startswith("--group-add")]


@pytest.mark.parametrize(
    ("name", "npu", "built", "host"),
    [
        ("npu-missing", "auto", REAL, NO_NPU),
        ("npu-missing", "sim", REAL, HOST),
        ("npu-missing", "real", SIMULATED, NO_NPU),
        ("npu-missing", "auto", REAL, replace(HOST, missing=("hisi_hdc",))),
        ("driver-missing", "auto", REAL, replace(HOST, driver=("/usr/local/dcmi",))),
    ],
)
def test_what_cannot_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, npu: str, built: image.Image, host: container.Host
) -> None:
    monkeypatch.setenv("NPU", npu)
    with pytest.raises(AscendetError) as caught:
        container.make(built, host)
    assert caught.value.name == name


def test_host_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("davinci10", "davinci2", "davinci_manager", "devmm_svm", "hisi_hdc"):
        (tmp_path / "dev" / name).touch()
        (tmp_path / "dev" / name).chmod(0o660)
    (tmp_path / "usr/local/sbin").mkdir(parents=True)
    (tmp_path / "usr/local/sbin/npu-smi").touch()
    monkeypatch.setenv("SUDO_UID", "1001")
    monkeypatch.setenv("SUDO_GID", "1002")
    found = container.look_at_host(runtime=False, root=tmp_path)
    assert found.nodes == (2, 10)
    assert found.missing == ()
    assert found.groups == (os.getgid(),)
    assert found.driver == ("/usr/local/sbin/npu-smi",)
    as_root = os.getuid() == 0
    assert (found.user, found.group) == ((1001, 1002) if as_root else (os.getuid(), os.getgid()))
    (tmp_path / "dev/davinci2").chmod(0o600)
    with pytest.raises(AscendetError) as caught:
        container.look_at_host(runtime=False, root=tmp_path)
    assert caught.value.name == "device-permission"
    assert "chgrp HwHiAiUser" in caught.value.hint


def test_no_root_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert container.look_at_host(runtime=False, root=tmp_path).user != 0
