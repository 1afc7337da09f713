"""The image as a user meets it: what it holds, what it prints, what it refuses, what a rebuild costs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.containers import base_image, image
from ascendet.errors import EXIT_CODES, AscendetError
from ascendet.machine import arch, engine
from conftest import SECRET, STACK, Build, request_image, small_context

# What `pip check` finds in the locks, each for a reason in requirements/README.md or lock.py.
KNOWN = (
    r"torch \S+ requires triton",
    r"\S+ \S+ requires opencv-python,",
    r"torch-npu \S+ has requirement torch==\S+\+cpu, but you have torch",
)
VENV = "/opt/ascendet/venv"
# The base's own pip: the image has none.
PIP = ("/usr/bin/python3.11", "-m", "pip", f"--python={VENV}/bin/python")
MIB = 2**20
KILLED = f"ascendet/test:killed{os.getpid()}"
# Parts of CANN (toolkit and NNAL) that the simulated one does not have, for parts of torch_npu that it does not load.
NOT_SIMULATED = {"libatb.so", "libascend_protobuf.so", "libfmk_parser.so"}
# Ours without the torch family: measured 680 MiB, mostly opencv, scipy and numpy.
BUDGET = 800 * MIB


def run(
    docker: str, built: image.Image, *command: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    words = ["run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp:exec", "--cap-drop=ALL"]
    return subprocess.run(
        [docker, *words, *options, built.tag, *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("order", [0, 1])
def test_imports_in_both_orders_without_a_warning(docker: str, built: image.Image, order: int) -> None:
    given = image.build_arguments(STACK)
    modules = given["IMPORTS"].split()[order]
    code = f"import {modules}, {given['FAMILY']}.train; print(torch.npu.device_count())"
    done = run(docker, built, "python", "-c", code, options=("--env=CANN_SIM_DEVICES=2",))
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower()


def test_pip_check_knows_every_complaint(docker: str, built: image.Image) -> None:
    done = run(docker, built, *PIP, "check")
    unknown = [
        line for line in done.stdout.splitlines() if not any(re.match(pattern, line) for pattern in KNOWN)
    ]
    assert unknown in ([], ["No broken requirements found."])


def test_no_library_is_missing(docker: str, built: image.Image) -> None:
    """No system package is installed: whatever a library links is in a wheel, in CANN or in the base."""
    code = f"""
        export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$(printf %s: {VENV}/lib/python3.11/site-packages/torch*/lib)
        find {VENV} -name '*.so*' -type f -exec ldd {{}} + 2>/dev/null | grep 'not found' | sort -u
        find {VENV} /usr/local/Ascend -name '*.so*' -printf '%f\\n' | sort -u >/tmp/here; wc -l </tmp/here >&2
        """
    done = run(docker, built, "bash", "-c", code)
    assert int(done.stderr.split()[-1]) > 100
    missing = {line.split()[0] for line in done.stdout.splitlines()}
    here = run(docker, built, "find", VENV, "-name", "*.so*", "-printf", "%f\n").stdout.split()
    # What nothing of ours loads: CUDA's driver, and plug-ins of its libraries for MPI and InfiniBand.
    foreign = re.compile(r"lib(cuda|mlx5|rdmacm|ibverbs|mpi|oshmem|pmix|fabric|ucs|ucp)\.so")
    missing = {name for name in missing if not foreign.match(name)}
    assert missing - set(here) - NOT_SIMULATED == set()


def test_no_cuda_where_torch_is_the_cpu_build(docker: str, built: image.Image) -> None:
    version = run(
        docker, built, "python", "-c", "from torch import version; print(version.cuda)"
    ).stdout.strip()
    if version != "None":
        pytest.skip(
            f"the lock holds torch's build for CUDA {version}: no index with the CPU build was reachable"
        )
    found = run(docker, built, "find", VENV, "-name", "libcu*", "-o", "-name", "libnccl*").stdout
    assert found == ""


def test_layers_within_budget(built: image.Image, base: str) -> None:
    facts = json.loads((image.home(STACK, arch.parse("")) / "latest" / "manifest.json").read_text())
    torch_layer, *others = layer_sizes(built.tag, base)
    assert torch_layer > sum(others)
    assert sum(others) < BUDGET
    assert facts["bytes"]["above_base"] == torch_layer + sum(others)


def layer_sizes(tag: str, base: str) -> list[int]:
    """Bytes of the layers above the base that hold something, the oldest first."""
    options = ("history", "--human=false", "--format={{.Size}}")
    sizes, below = ([int(line) for line in engine.run(*options, name).split()] for name in (tag, base))
    return [size for size in reversed(sizes[: -len(below)]) if size]


def test_not_root_and_nothing_of_the_image_is_writable(docker: str, built: image.Image) -> None:
    code = """
        id -u; touch /opt/ascendet/x; touch /etc/x; touch $(python -c "import torch; print(torch.__file__)")
        cd /tmp && touch x && ls
        """
    for more in ((), ("--read-only=false",)):
        done = run(docker, built, "bash", "-c", code, options=more)
        assert done.stdout.split() == ["1000", "x"]
        assert done.stderr.count("touch: ") == 3


def test_no_build_time_path_is_left(docker: str, built: image.Image) -> None:
    """devlib stands in for the driver while building only."""
    environ = run(docker, built, "env").stdout
    assert "devlib" not in environ
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD" not in environ


@pytest.mark.parametrize(
    ("name", "nodes", "more"),
    [
        ("npu-missing", ["davinci6"], []),
        ("device-permission", ["davinci6", "davinci_manager", "devmm_svm", "hisi_hdc"], []),
        (
            "driver-missing",
            ["davinci6", "davinci_manager", "devmm_svm", "hisi_hdc"],
            ["--group-add=4242"],
        ),
        ("npu-missing", [], ["--tmpfs=/usr/local/Ascend"]),
    ],
)
def test_entrypoint_refuses_early_and_by_name(
    docker: str, built: image.Image, tmp_path: Path, name: str, nodes: list[str], more: list[str]
) -> None:
    devices = [f"--device={make_node(tmp_path / node)}:/dev/{node}" for node in nodes]
    if len(nodes) == 1:
        more = ["--group-add=4242"]
    done = run(docker, built, "echo", "started", options=(*devices, *more))
    assert done.returncode == EXIT_CODES[name]
    assert done.stderr.startswith(f"error[{name}]")
    assert "next: " in done.stderr
    assert "started" not in done.stdout


def make_node(path: Path) -> Path:
    """A character device that harms nobody (/dev/null's), for HwHiAiUser's group."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes device nodes")
    os.mknod(path, 0o20660, os.makedev(1, 3))
    os.chown(path, 0, 4242)
    path.chmod(0o660)
    return path


def test_labels_and_sbom_say_what_is_inside(docker: str, built: image.Image) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    (facts,) = engine.inspect("image", [built.tag])
    labels = facts["Config"]["Labels"]
    assert labels["org.opencontainers.image.base.name"].startswith("ascendet/cann-sim:")
    assert (labels["ascendet.torch_npu"], labels["ascendet.soc"]) == (STACK.torch_npu, STACK.soc[0])
    text = (image.home(STACK, arch.parse("")) / "latest" / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    content = json.loads(text)
    python = {
        item["name"].lower().replace("_", "-"): item["version"]
        for item in content["components"]
        if item["purl"].startswith("pkg:pypi/")
    }
    listed = json.loads(run(docker, built, *PIP, "list", "--format=json").stdout)
    assert python == {item["name"].lower().replace("_", "-"): item["version"] for item in listed}
    assert python["torch-npu"] == STACK.torch_npu
    assert any(item["purl"].startswith("pkg:deb/debian/libc6@") for item in content["components"])


def test_no_secret_in_any_layer_or_in_the_history(
    docker: str, built: image.Image, build_small: Build, tmp_path: Path
) -> None:
    """The build had it, as a secret and as a proxy's setting; the small build shows that the search would find it."""
    build_small(small_context(tmp_path / "leaky", f"echo {SECRET}"), "ascendet/test:leaky")
    assert_secret("ascendet/test:leaky", found=True)
    assert_secret(built.tag, found=False)


def assert_secret(tag: str, *, found: bool) -> None:
    (facts,) = engine.inspect("image", [tag])
    shown = engine.run("history", "--no-trunc", tag)
    assert SECRET not in json.dumps(facts) + shown
    driver = facts["GraphDriver"]["Data"]
    folders = [driver["UpperDir"], *driver.get("LowerDir", "").split(":")]
    folders = [folder for folder in folders if folder and Path(folder).is_dir()]
    if not folders or os.geteuid() != 0:
        pytest.skip("the layers are not readable here: needs root and the overlay2 driver")
    grep = subprocess.run(
        ["grep", "--recursive", "--files-with-matches", "--fixed-strings", SECRET, *folders],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        check=False,
    )
    assert bool(grep.stdout) == found, grep.stdout


def test_up_to_date_image_is_not_built_again(
    built: image.Image, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(image, "build", refuse)
    assert image.ensure(request_image(base)).id == built.id


def test_change_in_our_code_reinstalls_nothing_heavy(build_small: Build, tmp_path: Path) -> None:
    context = small_context(tmp_path / "changed", "echo one")
    assert cached(build_small(context, "ascendet/test:changed")) != {
        "torch",
        "packages",
        "native",
        "wheels",
        "scripts",
    }
    assert cached(build_small(context, "ascendet/test:changed")) == {
        "torch",
        "packages",
        "native",
        "wheels",
        "scripts",
    }
    (context / "scripts/train.sh").write_text("#!/bin/bash\necho two\n")
    assert cached(build_small(context, "ascendet/test:changed")) == {"torch", "packages", "native", "wheels"}
    small_context(tmp_path / "changed", "echo three")
    assert cached(build_small(context, "ascendet/test:changed")) == {"torch", "packages", "native"}


def cached(log: str) -> set[str]:
    """Which layers BuildKit took from its cache."""
    steps = {
        "source=torch.txt": "torch",
        "source=packages.txt": "packages",
        "source=wheels/native": "native",
        "source=wheels/pure": "wheels",
        "COPY scripts/": "scripts",
    }
    found = set()
    for number, command in re.findall(r"^#(\d+) \[[^\]]*\] (.*)$", log, re.MULTILINE):
        if re.search(rf"^#{number} CACHED$", log, re.MULTILINE):
            found |= {name for text, name in steps.items() if text in command}
    return found


def test_two_builds_have_the_same_layers(build_small: Build, base: str, tmp_path: Path) -> None:
    """Every file's name, owner, mode, content and time. Not directories' times: BuildKit's mounts change them."""
    below = len(engine.inspect("image", [base])[0]["RootFS"]["Layers"])
    layers = []
    for name in ("one", "two"):
        build_small(small_context(tmp_path / name), f"ascendet/test:{name}", fresh=True)
        engine.run("save", f"--output={tmp_path / name}.tar", f"ascendet/test:{name}")
        layers.append(list(read_layers(tmp_path / f"{name}.tar"))[below:])
    assert len(layers[0]) >= 5
    assert sum(map(len, layers[0])) > 100
    assert layers[0] == layers[1]


def read_layers(archive: Path) -> Iterator[dict[str, object]]:
    """What every layer of a saved image holds, the base's first."""
    with tarfile.open(archive) as image_tar:
        content = json.load(image_tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        for name in content[0]["Layers"]:
            with tarfile.open(fileobj=image_tar.extractfile(name)) as layer:
                yield {
                    member.name: (
                        member.mode,
                        member.uid,
                        member.gid,
                        member.linkname,
                        None if member.isdir() else member.mtime,
                        layer.extractfile(member).read() if member.isreg() else None,  # type: ignore[union-attr]
                    )
                    for member in layer
                }


def test_killed_build_leaves_no_image_and_the_next_one_succeeds(
    build_small: Build, docker: str, tmp_path: Path
) -> None:
    context = small_context(tmp_path / "killed")
    (context / "check.sh").write_text("sleep 60\n")
    program = f"""
import sys
from pathlib import Path
from ascendet.machine import engine
engine.run("build", "--progress=plain", "--tag={KILLED}", "--file={paths.ROOT / "docker/Dockerfile"}",
           "--build-arg=BASE_IMAGE=" + sys.argv[1], "--build-arg=IMPORTS=packaging", sys.argv[2], log=Path(sys.argv[3]))
"""
    base = next(
        tag for tag in engine.run("images", "--format={{.Repository}}:{{.Tag}}").split() if "cann-sim" in tag
    )
    log = tmp_path / "log"
    child = subprocess.Popen(
        [sys.executable, "-c", program, base, str(context), str(log)],
        env=os.environ | {"PYTHONPATH": str(paths.ROOT / "scripts")},
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (log.exists() and "check.sh" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert engine.inspect("image", [KILLED]) == []
    (context / "check.sh").write_text((paths.ROOT / "docker/check.sh").read_text())
    assert "writing image" in build_small(context, KILLED)


def test_base_that_is_not_there_or_not_ours_is_named(
    docker: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AscendetError) as caught:
        base_image.find("localhost:1/ascendet/none:1", "x86_64", None)
    assert caught.value.name == "base-missing"
    with pytest.raises(AscendetError, match="base-mismatch") as caught:
        base_image.find(base, "x86_64", "sha256:" + "0" * 64)
    assert "make relock" in caught.value.hint
    other = "aarch64" if arch.parse("") == "x86_64" else "x86_64"
    with pytest.raises(AscendetError, match=r"base-mismatch: .* another architecture"):
        base_image.find(base, other, None)
    with pytest.raises(AscendetError, match="image-missing"):
        image.ready("ascendet/none:1")
