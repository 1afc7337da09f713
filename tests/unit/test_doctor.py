"""The doctor on made-up machines: every problem is found, named and comes with a fix; only what matters blocks."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core.stack import Stack
from ascendet.errors import AscendetError
from ascendet.machine import doctor, host, needs

STACK = Stack.load("vitdet")
GOOD = {
    "g++": "12.2.0\n",
    "make": "GNU Make 4.3\n",
    "git": "git version 2.39.5\n",
    "npu-smi": "| 0     910B3               | OK            | 93.6        35\n| 1     910B3  | OK  |\n",
    "docker": "27.0.1\n",
}


def machine(root: Path, *, npus: int = 0, cann: str | None = None, managers: bool = True) -> Path:
    """A file system with some of what an NPU host has."""
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:       32000000 kB\nMemAvailable:   30000000 kB\n")
    (root / "dev").mkdir()
    for number in range(npus):
        (root / f"dev/davinci{number}").touch()
    if npus and managers:
        for name in ("davinci_manager", "devmm_svm", "hisi_hdc"):
            (root / "dev" / name).touch()
    if cann:
        home = root / f"usr/local/Ascend/cann-{cann}"
        (home / "lib64").mkdir(parents=True)
        (home / "lib64/libascendcl.so").touch()
        (home / "version.cfg").write_text(f"runtime_running_version=[7.7.0:{cann}]\n")
        driver = root / "usr/local/Ascend/driver"
        driver.mkdir(parents=True)
        (driver / "version.info").write_text("Version=25.2.0\nascendhal_version=7.35\n")
    return root


def examine(
    root: Path,
    npu: host.NpuKind,
    answers: dict[str, str] = GOOD,
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> dict[str, doctor.Check]:
    def run(command: list[str]) -> str | None:
        return "yes\n" if "-c" in command else answers.get(command[0])

    return {check.name: check for check in doctor.diagnose(STACK, npu, root, run)}


@pytest.fixture(autouse=True)
def _clean(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(needs, "DISK_GIB", {})


def blocking(checks: dict[str, doctor.Check]) -> set[str]:
    return {name for name, check in checks.items() if check.status == "blocks" and "disk" not in name}


def test_bare_machine_needs_neither_cann_nor_docker(tmp_path: Path) -> None:
    answers = {name: text for name, text in GOOD.items() if name not in ("docker", "npu-smi")}
    checks = examine(machine(tmp_path / "root"), "sim", answers)
    assert blocking(checks) == set()
    unused = {"docker", "cann", "driver", "devices", "npu-smi"}
    assert {name for name, check in checks.items() if check.status == "unused"} == unused


def test_good_npu_host(tmp_path: Path) -> None:
    checks = examine(machine(tmp_path / "root", npus=2, cann="8.5.0"), "real")
    assert {check.status for name, check in checks.items() if "disk" not in name} == {"ok"}
    assert checks["cann"].found.startswith("8.5.0 in ")
    assert checks["driver"].found == "25.2.0"
    assert checks["devices"].found == "2: davinci0 to davinci1"
    assert checks["npu-smi"].found == "2 NPUs OK"


def test_all_problems_at_once_each_with_a_fix(tmp_path: Path) -> None:
    checks = examine(machine(tmp_path / "root"), "real", {})
    expected = {"compiler", "make", "git", "cann", "driver", "devices", "device nodes"}
    assert blocking(checks) == expected
    assert all(checks[name].fix for name in expected)


@pytest.mark.parametrize("code", ["-8005", "-8020"])
def test_device_that_another_container_holds(tmp_path: Path, code: str) -> None:
    answers = GOOD | {
        "npu-smi": f"DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)\ndcmi error, ret is {code}\n"
    }
    check = examine(machine(tmp_path / "root", npus=1, cann="8.5.0"), "real", answers)["npu-smi"]
    assert (check.status, check.found) == ("blocks", f"error {code}")
    assert "another container" in (check.fix or "")


def test_unhealthy_device_is_a_warning(tmp_path: Path) -> None:
    answers = GOOD | {"npu-smi": "| 0  910B3 | OK |\n| 1  910B3 | Critical |\n"}
    check = examine(machine(tmp_path / "root", npus=2, cann="8.5.0"), "real", answers)["npu-smi"]
    assert (check.status, check.found) == ("warning", "1 NPUs are not OK")


def test_missing_manager_nodes(tmp_path: Path) -> None:
    check = examine(machine(tmp_path / "root", npus=1, cann="8.5.0", managers=False), "real")["device nodes"]
    assert check.status == "blocks"
    assert "--device /dev/hisi_hdc" in (check.fix or "")


def test_device_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine(tmp_path / "root", npus=1, cann="8.5.0")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **_: "davinci" not in str(path) and real(path, mode))
    check = examine(root, "real")["device group"]
    assert check.status == "blocks"
    assert "HwHiAiUser" in (check.fix or "")


def test_other_cann_is_a_warning_with_the_right_image(tmp_path: Path) -> None:
    check = examine(machine(tmp_path / "root", npus=1, cann="8.3.RC1"), "real")["cann"]
    assert check.status == "warning"
    assert STACK.image in (check.fix or "")


def test_npus_without_cann_are_pointed_out(tmp_path: Path) -> None:
    check = examine(machine(tmp_path / "root", npus=8), "sim")["cann"]
    assert check.status == "warning"
    assert check.fix


@pytest.mark.parametrize("version", ["8.4.0\n", "9.2.0\n", "", None])
def test_old_or_no_compiler(tmp_path: Path, version: str | None) -> None:
    answers = {name: text for name, text in GOOD.items() if name != "g++"}
    answers |= {} if version is None else {"g++": version}
    assert blocking(examine(machine(tmp_path / "root"), "sim", answers)) == {"compiler"}


def test_compiler_of_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "other-g++")
    root = machine(tmp_path / "root")
    check = examine(root, "sim", GOOD | {"other-g++": "9.3.0\n"})["compiler"]
    assert (check.status, check.found) == ("ok", "other-g++ 9.3.0")
    for printed in ("clang version 14.0.6\n", "9.2.1\n"):
        check = examine(root, "sim", GOOD | {"other-g++": printed})["compiler"]
        assert check.status == "blocks"
        assert "unset CXX" in (check.fix or "")


def test_docker_of_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER", "podman")
    assert (
        examine(machine(tmp_path / "root"), "sim", GOOD | {"podman": "5.0.1\n"})["docker"].found
        == "engine 5.0.1"
    )


def test_shell_and_compose_have_the_same_manager_nodes() -> None:
    entry = (paths.ROOT / "docker/entrypoint.sh").read_text()
    (listed,) = re.findall(r'for node in "\$\{nodes\[@\]\}" (.*); do', entry)
    assert tuple(listed.split()) == tuple(f"/dev/{name}" for name in host.MANAGERS)
    compose = (paths.ROOT / "docker/compose.yaml").read_text()
    assert re.findall(r"^ +- /dev/(?!davinci\d)(\w+)$", compose, re.MULTILINE) == list(host.MANAGERS)


def test_little_memory_is_a_warning(tmp_path: Path) -> None:
    root = machine(tmp_path / "root")
    (root / "proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 2000000 kB\n")
    check = examine(root, "sim")["memory"]
    assert check.status == "warning"
    assert "MAX_JOBS=1" in (check.fix or "")


def test_small_disk_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "DISK_GIB", dict.fromkeys(("x86_64", "aarch64"), 10**9))
    assert examine(machine(tmp_path / "root"), "sim")["disk build"].status == "blocks"


def test_torch_of_another_stack_blocks(tmp_path: Path) -> None:
    site = paths.BUILD / "venv/vitdet/lib/python3.11/site-packages"
    for name in ("torch-2.9.0+cpu", "torchvision-0.23.0", "torch_npu-2.8.0", "torchgen-1"):
        (site / f"{name}.dist-info").mkdir(parents=True)
    check = examine(machine(tmp_path / "root"), "sim")["torch pair"]
    assert check.status == "blocks"
    assert check.found.startswith("torch 2.9.0, torchvision 0.23.0, torch_npu 2.8.0;")


def test_report_and_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check = doctor.Check(name="cann", status="blocks", found="none", fix="install it")
    monkeypatch.setattr(doctor, "diagnose", lambda *_: iter([check]))
    with pytest.raises(AscendetError, match="not ready") as caught:
        doctor.execute(argparse.Namespace(stack="vitdet", json=True))
    assert caught.value.name == "doctor-blocked"
    report = json.loads(capsys.readouterr().out)
    assert report["checks"] == [{"name": "cann", "status": "blocks", "found": "none", "fix": "install it"}]
    with pytest.raises(AscendetError):
        doctor.execute(argparse.Namespace(stack="vitdet", json=False))
    assert "BLOCKS   cann           none\n                        fix: install it" in capsys.readouterr().out


def test_which_npus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, full = machine(tmp_path / "bare"), machine(tmp_path / "full", npus=1, cann="8.5.0")
    monkeypatch.delenv("NPU", raising=False)
    assert host.npu_kind(bare) == "sim"
    assert host.npu_kind(full) == "real"
    monkeypatch.setenv("NPU", "sim")
    assert host.npu_kind(full) == "sim"
    monkeypatch.setenv("NPU", "real")
    assert host.npu_kind(full) == "real"
    assert doctor.choose_npu(bare) == "real"
    with pytest.raises(AscendetError) as caught:
        host.npu_kind(bare)
    assert caught.value.name == "npu-missing"
    monkeypatch.setenv("NPU", "fake")
    with pytest.raises(AscendetError) as caught:
        host.npu_kind(bare)
    assert caught.value.name == "npu-unknown"


def test_device_nodes_are_in_order_of_number(tmp_path: Path) -> None:
    root = machine(tmp_path / "root", npus=11)
    assert [node.name for node in host.device_nodes(root)] == [f"davinci{number}" for number in range(11)]
