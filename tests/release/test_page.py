"""The lines of docs/release.md on a machine that has Python and no compiler: from an empty folder to a training.

They run as they stand there, but for one thing: `pip` is uv's, which takes torch's 3 GB from the tool's cache instead
of downloading and unpacking them. That pip itself reads the index is tested in tests/unit/test_release.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core.stack import Stack
from ascendet.envs import venv
from ascendet.release import check, collect, release

# What the lines, activate and set_env.sh call.
PROGRAMS = ("bash", "cat", "dirname", "env", "tail", "uname")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the vitdet stack for this architecture, of wheels that are built already."""
    folder = tmp_path_factory.mktemp("release") / "0.1.0"
    stack = Stack.load("vitdet")
    release.publish(folder, [stack], [platform.machine()], collect.collect([stack], [platform.machine()]))
    return folder


def lines_of(page: Path) -> str:
    """The shell block after the comment that names this file."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r"<!-- tests/release/test_page\.py .*?-->\n```sh\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_a_release_of_real_wheels_is_sound_and_says_what_they_are_for(made: Path) -> None:
    check.verify(made)
    machine = platform.machine()
    for name in ("mmcv-2.1.0+npu.torch2.8.0", "cann_sim-0.1.0+npu.torch2.8.0"):
        stem = f"{name}-cp311-cp311-linux_{machine}.whl"
        metadata = (made / f"wheels/{stem}.metadata").read_text()
        assert "Requires-Dist: torch==2.8.0\n" in metadata
        assert "Requires-Dist: torch_npu==2.8.0\n" in metadata
        assert json.loads((made / f"audit/{stem}.json").read_text())["sound"]
        stated = json.loads((made / f"provenance/{stem}.intoto.json").read_text())
        assert len(stated["predicate"]["buildDefinition"]["resolvedDependencies"]) > 1


@pytest.fixture
def nginx(made: Path, tmp_path: Path) -> Iterator[str]:
    """nginx with the page's server block, on a free port; the address of the index on it."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        pytest.skip("nginx is not installed (apt-get install nginx)")
    block = re.search(r"```nginx\n(.*?)```", (paths.ROOT / "docs/release.md").read_text(), re.DOTALL)
    assert block
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(
        # Else root becomes nobody, who cannot enter pytest's private folders.
        f"{'user root;' * (os.geteuid() == 0)} daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{ include /etc/nginx/mime.types; access_log off; client_body_temp_path {tmp_path}/t;\n"
        f"proxy_temp_path {tmp_path}/t; fastcgi_temp_path {tmp_path}/t; uwsgi_temp_path {tmp_path}/t;\n"
        f"scgi_temp_path {tmp_path}/t;\n"
        f"{block[1].replace('8080', f'127.0.0.1:{port}').replace('/srv/ascendet/0.1.0', str(made))} }}\n"
    )
    with subprocess.Popen([program, "-c", str(config), "-e", str(tmp_path / "error.log")]) as process:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/simple"
        process.terminate()


def test_pip_installs_one_wheel_from_the_pages_nginx(nginx: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-cache-dir",
        "--target",
        str(tmp_path / "site"),
    ]
    command += ["--index-url", nginx, "mmcv==2.1.0+npu.torch2.8.0"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environ |= {"PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "site/mmcv").glob("_ext.*.so"))


def test_the_lines_of_the_page_install_and_train_twenty_steps(made: Path, tmp_path: Path) -> None:
    lines = lines_of(paths.ROOT / "docs/release.md")
    assert len(lines.splitlines()) <= 10
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / "python3.11").symlink_to(venv.interpreter("3.11"))
    assert not any(shutil.which(name, path=programs) for name in ("g++", "gcc", "cc", "make", "git"))
    uv = f'pip() {{ {venv.tools_home()}/bin/uv pip "$@"; }}\n'
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", uv + lines],
        cwd=work,
        env={
            **{name: value for name, value in venv.uv_environ().items() if name.startswith(("UV_", "SSL_"))},
            "PATH": str(programs),
            "HOME": str(tmp_path),
            "RELEASE": str(made),
            "OMP_NUM_THREADS": "1",
            "CANN_SIM_STATE": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (work / "run/progress.jsonl").read_text().splitlines()]
    assert rows[0]["text"].startswith("recipe: 4 images per step = 1 devices x 2 images x 2 accumulated")
    (train,) = (row for row in rows if row["phase"] == "train")
    assert train["of"] == 2 * 20  # iterations
    assert 0 < train["loss"] < 100
    assert (rows[-1]["phase"], rows[-1]["step"]) == ("validate", 2 * 20)
    assert {"bbox", "segm"} <= rows[-1]["AP"].keys()
