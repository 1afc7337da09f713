"""What a build is made of: base, tag, secrets, SBOM, and that the files for other tools say the same; no engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ascendet import paths
from ascendet.containers import base_image, container, image, sbom
from ascendet.core.stack import Stack, load_all
from ascendet.envs import venv
from ascendet.errors import AscendetError
from ascendet.machine import arch, engine
from ascendet.supply import lock

STACK = Stack.load("vitdet")
NAME = "quay.io/ascend/cann:8.5.0-910b-ubuntu22.04-py3.11"
GOOD, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An engine with `local` images, which pulls what is in `remote`."""
    state: dict[str, Any] = {"local": {}, "remote": {}, "pulled": []}

    def run(*words: str) -> str:
        assert words[0] == "pull"
        name = words[-1]
        state["pulled"].append(name)
        if name not in state["remote"]:
            raise AscendetError("base-missing", "no", found="manifest unknown", hint="x")
        state["local"][name] = state["remote"][name]
        return ""

    def inspect(kind: str, names: list[str]) -> list[Any]:
        return [state["local"][name] for name in names if name in state["local"]]

    monkeypatch.setattr(engine, "run", run)
    monkeypatch.setattr(engine, "inspect", inspect)
    return state


def facts(*digests: str, architecture: str = "amd64") -> dict[str, Any]:
    known = [f"quay.io/ascend/cann@{digest}" for digest in digests]
    return {"Id": "sha256:1", "RepoDigests": known, "Architecture": architecture}


def test_unpinned_base_is_pulled_by_tag_and_said(
    registry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    registry["remote"][NAME] = facts(GOOD)
    assert base_image.find(NAME, "x86_64", None)["Id"] == "sha256:1"
    assert registry["pulled"] == [NAME]
    assert "is not pinned; `make relock`" in capsys.readouterr().out


def test_pinned_base_is_pulled_by_digest(
    registry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    registry["remote"][f"quay.io/ascend/cann@{GOOD}"] = facts(GOOD)
    base_image.find(NAME, "x86_64", GOOD)
    assert registry["pulled"] == [f"quay.io/ascend/cann@{GOOD}"]
    assert "not pinned" not in capsys.readouterr().out


@pytest.mark.parametrize("digests", [(OTHER,), ()], ids=["another one", "made here"])
def test_another_base_of_the_same_name_is_refused(registry: dict[str, Any], digests: tuple[str, ...]) -> None:
    registry["local"][NAME] = facts(*digests)
    with pytest.raises(AscendetError) as caught:
        base_image.find(NAME, "x86_64", GOOD)
    assert (caught.value.name, caught.value.expected) == ("base-mismatch", GOOD)
    assert f"docker pull quay.io/ascend/cann@{GOOD}" in caught.value.hint


def test_missing_base_says_which(registry: dict[str, Any]) -> None:
    with pytest.raises(AscendetError) as caught:
        base_image.find(NAME, "aarch64", None)
    assert caught.value.found == f"{NAME}: manifest unknown"


def test_base_of_another_architecture_is_refused(registry: dict[str, Any]) -> None:
    registry["local"][NAME] = facts(GOOD)
    with pytest.raises(AscendetError) as caught:
        base_image.find(NAME, "aarch64", None)
    assert (caught.value.name, caught.value.found) == ("base-mismatch", "linux/amd64")


def test_relock_keeps_and_adds_digests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "LOCK", tmp_path)
    other = NAME.replace("910b", "a3")
    (tmp_path / "images.toml").write_text(f'"{NAME}" = "{GOOD}"\n"gone:1" = "{GOOD}"\n')
    monkeypatch.setattr(lock, "_pulled_digest", lambda name: OTHER if name == other else None)
    (tmp_path / "images.toml").write_text(lock._images())
    assert (
        base_image.pinned_digest(NAME),
        base_image.pinned_digest(other),
        base_image.pinned_digest("gone:1"),
    ) == (
        GOOD,
        OTHER,
        None,
    )


def test_soc_chooses_the_base() -> None:
    assert STACK.base_image() == NAME == STACK.base_image("Ascend910B4")
    assert STACK.base_image("Ascend910_9391") == NAME.replace("910b", "a3")
    with pytest.raises(AscendetError, match="soc-unknown"):
        STACK.base_image("Ascend310P3")


def test_tag_tells_images_apart() -> None:
    tags = {
        image.make_tag(stack, soc, machine, simulated)
        for stack in load_all().values()
        for soc in stack.soc
        for machine in arch.KNOWN
        for simulated in (False, True)
    }
    assert len(tags) == sum(len({stack.chip(soc) for soc in stack.soc}) for stack in load_all().values()) * 4
    assert all(re.fullmatch(r"ascendet/[a-z0-9.-]+:[\w.-]{1,128}", tag) for tag in tags)


def test_pips_settings_become_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = tmp_path / "pip"
    pip.write_text(
        "#!/bin/sh\necho \"global.index-url='https://user:pw@mirror/simple'\"\n"
        "echo \"global.extra-index-url='file:///opt/x https://more/simple'\"\necho \":env:.cert='/etc/ca.crt'\"\n"
    )
    pip.chmod(0o755)
    monkeypatch.setattr(venv, "tools_pip", lambda: [str(pip)])
    options = image.secrets(tmp_path)
    assert options == [f"--secret=id=pip,src={tmp_path}/pip.conf", "--secret=id=ca,src=/etc/ca.crt"]
    assert (tmp_path / "pip.conf").read_text() == (
        "[global]\nindex-url = https://user:pw@mirror/simple\nextra-index-url = https://more/simple\n"
    )
    assert (tmp_path / "pip.conf").stat().st_mode & 0o777 == 0o600


def test_sbom_is_the_same_for_the_same_content() -> None:
    packages = [["pypi", "", "torch", "2.8.0"], ["deb", "debian", "libc6", "2.36-9+deb12u14"]]
    labels = {"ascendet.key": "k"}
    text = sbom.write("a/b:c", labels, packages)
    assert text == sbom.write("a/b:c", labels, packages[::-1])
    content = json.loads(text)
    assert {item["purl"] for item in content["components"]} == {
        "pkg:pypi/torch@2.8.0",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14",
    }
    assert content["metadata"]["component"]["name"] == "a/b"


def test_bake_file_says_what_stacks_toml_says() -> None:
    text = (paths.ROOT / "docker" / "docker-bake.hcl").read_text(encoding="utf-8")
    for name in ("vitdet", "blendmask"):
        stack = Stack.load(name)
        target = text[text.index(f'target "{name}"') :].split("\n}\n")[0]
        values = dict(re.findall(r'^    (\w+) +?= "(.*)"$', re.sub(" +=", " =", target), re.MULTILINE))
        assert values.pop("BASE_IMAGE") == stack.image.replace("-910b-", "-${CHIP}-")
        assert values == image.build_arguments(stack)


def test_compose_gives_what_the_plan_gives(tmp_path: Path) -> None:
    service = yaml.safe_load((paths.ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]["train"]
    host = container.Host(
        root=Path("/"),
        nodes=(0,),
        missing=(),
        groups=(1000,),
        driver=(),
        runtime=False,
        user=1000,
        group=1000,
    )
    built = image.Image(id="", tag="x", size=0, simulated=False)
    place = container.Container(image=built, host=host, mapped=True)
    words = place.command((0,), ["p"], name="n", work_dir=Path("/runs"))
    assert service["devices"] == [word.split(":")[1] for word in words if word.startswith("--device=")]
    assert (service["cap_drop"], service["read_only"], service["init"]) == (["ALL"], True, True)
    assert f"--shm-size={service['shm_size'].removesuffix('b')}" in words
    assert [f"--tmpfs={item}" for item in service["tmpfs"]] == [word for word in words if "tmpfs" in word]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc"}
    writable = [item for item in service["volumes"] if not item.endswith(":ro")]
    assert writable == ["${RUNS:-../build/runs}:/runs"]
