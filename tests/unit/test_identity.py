"""What a manifest says of the machine: from the files that say it, and nothing that is not known."""

from __future__ import annotations

from pathlib import Path

from ascendet.machine import identity


def test_a_machine_with_npus_tells_its_driver_and_cann(tmp_path: Path) -> None:
    for name, text in {
        "etc/os-release": 'NAME="openEuler"\nPRETTY_NAME="openEuler 24.03 (LTS)"\n',
        "proc/meminfo": "MemTotal:       32000000 kB\n",
        "proc/cpuinfo": "processor : 0\nmodel name : Kunpeng-920\n",
        "usr/local/Ascend/driver/version.info": "Version=25.2.0\nascendhal_version=7.35\n",
        "usr/local/Ascend/cann-8.5.0/lib64/libascendcl.so": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = identity.describe("real", tmp_path)
    assert found["system"] == "openEuler 24.03 (LTS)"
    assert found["cpu"] == "Kunpeng-920"
    assert found["memory"] == 32_000_000 * 1024
    assert found["driver"] == "25.2.0"
    assert found["cann"] == "8.5.0"
    assert "cann" not in identity.describe("sim", tmp_path)  # that of the stack is simulated


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    assert identity.describe("sim", tmp_path).keys() <= {"arch", "kernel", "cores", "revision"}
