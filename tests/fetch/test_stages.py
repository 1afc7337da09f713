"""`make data`, `make weights` and `make bundle` from end to end, with a small COCO on a server of this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from ascendet import cli, paths
from ascendet.core import stack
from ascendet.data import archives, datasets
from ascendet.envs import venv
from ascendet.errors import AscendetError
from ascendet.supply import assets, lock
from PIL import Image
from servers import HostileServer

COUNTS = {"train2017": 6, "val2017": 9}


def image_file(number: int) -> bytes:
    out = io.BytesIO()
    size = (20 + number, 30 + number)
    Image.frombytes("RGB", size, bytes(number % 251 for _ in range(size[0] * size[1] * 3))).save(out, "JPEG")
    return out.getvalue()


def zip_file(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return out.getvalue()


class Coco:
    """A small COCO on a server, and the lock that names it."""

    def __init__(self, server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.lock = folder / "requirements" / "lock" / "data.toml"
        shutil.copytree(paths.REQUIREMENTS, folder / "requirements")
        monkeypatch.setattr(paths, "REQUIREMENTS", folder / "requirements")
        monkeypatch.setattr(paths, "LOCK", folder / "requirements" / "lock")
        table = folder / "requirements" / "datasets.toml"
        counts = {"118_287": str(COUNTS["train2017"]), "5_000": str(COUNTS["val2017"]), "= 200": "= 4"}
        for old, new in counts.items():
            table.write_text(table.read_text().replace(old, new))
        annotations: dict[str, bytes] = {}
        archives: dict[str, bytes] = {}
        for split, count in COUNTS.items():
            # Ids are not in the file's order, as COCO's are not.
            numbers = [7 * number % count + 1 for number in range(count)]
            images = [
                {"id": n, "file_name": f"{n:012d}.jpg", "width": 20 + n, "height": 30 + n} for n in numbers
            ]
            boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in numbers]
            content = {"info": {"note": 'no "images" here'}, "images": images, "annotations": boxes}
            annotations[f"annotations/instances_{split}.json"] = json.dumps(content).encode()
            files = {f"{split}/{n:012d}.jpg": image_file(n) for n in numbers}
            archives[f"{split}.zip"] = zip_file({f"{split}/": b""} | files)
            server.files |= {f"/{name}": body for name, body in files.items()}
        archives["annotations_trainval2017.zip"] = zip_file(annotations)
        self.archives = archives
        server.files |= {f"/zips/{name}": body for name, body in archives.items()}
        server.files["/new.pth"] = self.new = b"new weights" * 1000
        server.files["/old.pth"] = self.old = b"old weights" * 1000
        text = "# make relock\n"
        for name, body in archives.items():
            text += f'["{name}"]\nfolder = "archives"\nurls = ["{server.base}/zips/{name}"]\nbytes = {len(body)}\n'
            text += f'sha256 = "{hashlib.sha256(body).hexdigest()}"\nunpacked = 1000000\n'
            if name.startswith("annotations"):
                member = annotations["annotations/instances_val2017.json"]
                text += f'members = {{"instances_val2017.json" = "{hashlib.sha256(member).hexdigest()}"}}\n'
        text += f'[val200]\nfolder = "coco-val200"\nurls = ["{server.base}/val2017"]\nsha256 = "unknown"\n'
        text += f'["old.pth"]\nfolder = "weights"\nurls = ["{server.base}/old.pth"]\n'
        text += f'md5 = "{hashlib.md5(self.old).hexdigest()}"\nlicence = "for tests"\n'
        text += f'["new.pth"]\nfolder = "weights"\nurls = ["{server.base}/new.pth"]\nsha256 = "unknown"\n'
        self.lock.write_text(text)

    def asked(self) -> list[str]:
        """The paths that were asked for since the last call."""
        paths_ = [path for path, _ in self.server.seen]
        self.server.seen.clear()
        return paths_


@pytest.fixture
def coco(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coco:
    return Coco(server, tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run stages in this process."""
    monkeypatch.setattr(cli, "_enter_tools", lambda argv: None)


def run(*argv: str) -> int:
    return cli.main(list(argv))


def fails(capsys: pytest.CaptureFixture[str], name: str, *argv: str) -> str:
    capsys.readouterr()
    run(*argv)
    text = capsys.readouterr().err
    assert f"error[{name}]" in text, text
    assert "next:" in text
    return text


# -- coco --


def test_coco_arrives_once(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "--dataset", "coco") == 0
    folder = paths.BUILD / "data" / "coco"
    for split, count in COUNTS.items():
        assert len(list((folder / split).glob("*.jpg"))) == count
        assert (folder / "annotations" / f"instances_{split}.json").is_file()
    assert folder.is_symlink(), "make clean does not cost 20 GB"
    assert folder.resolve() == paths.CACHE / "data" / "coco"
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]
    coco.asked()
    assert run("data", "--dataset", "coco") == 0
    shutil.rmtree(paths.BUILD)
    assert run("data", "--dataset", "coco") == 0
    assert coco.asked() == []
    assert datasets.require("coco") == folder
    assert run("data", "--check") == 0
    shown = capsys.readouterr().out
    assert "ok       coco/train2017" in shown
    assert "ok       archives/val2017.zip" in shown


def test_the_training_set_comes_later(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "--dataset", "coco-val", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["splits"] == {"val2017": 9}
    folder = Path(shown["folder"])
    assert not (folder / "train2017").exists()
    assert datasets.require("coco", "val") == folder
    with pytest.raises(AscendetError, match="data-missing"):
        datasets.require("coco")
    assert not any("train" in path and path != "/zips/annotations_trainval2017.zip" for path in coco.asked())
    assert run("data", "--dataset", "coco") == 0
    assert set(coco.asked()) == {"/zips/train2017.zip"}


def test_archives_can_go(coco: Coco) -> None:
    assert run("data", "--dataset", "coco-val", "--keep", "0") == 0
    assert not list(assets.store().glob("archives/*.zip"))
    coco.asked()
    assert run("data", "--dataset", "coco-val") == 0
    assert coco.asked() == []
    assert run("data", "--dataset", "coco-val", "--keep", "1") == 0
    assert len(list(assets.store().glob("archives/*.zip"))) == 2


def test_a_data_folder_of_the_user_s(coco: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path / "mine"))
    assert run("data", "--dataset", "coco-val") == 0
    assert not (tmp_path / "mine" / "coco").is_symlink(), "containers mount this folder"
    assert not paths.CACHE.exists()


def test_a_part_of_the_user_s_is_not_touched(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    own = paths.BUILD / "data" / "coco" / "val2017"
    own.mkdir(parents=True)
    (own / "mine.jpg").write_text("precious")
    assert "mv " in fails(capsys, "data-invalid", "data", "--dataset", "coco-val")
    assert (own / "mine.jpg").read_text() == "precious"
    assert coco.asked() == [], "told before anything is fetched"


def test_killed_while_unpacking(coco: Coco, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, "check_images", die)
        assert run("data", "--dataset", "coco-val") != 0
    folder = assets.root() / "coco"
    assert not (folder / "val2017").exists()
    kept = (folder / ".tmp-val2017" / f"{1:012d}.jpg").stat().st_ino
    assert run("data", "--dataset", "coco-val") == 0
    assert (folder / "val2017" / f"{1:012d}.jpg").stat().st_ino == kept


@pytest.mark.parametrize("damage", ["missing", "extra", "size", "no picture"])
def test_images_are_held_to_the_annotations(
    coco: Coco, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    with zipfile.ZipFile(io.BytesIO(coco.archives["val2017.zip"])) as file:
        files = {info.filename: file.read(info) for info in file.infolist()}
    name = f"val2017/{3:012d}.jpg"
    if damage == "missing":
        del files[name]
    else:
        other = {"extra": f"val2017/{99:012d}.jpg"}.get(damage, name)
        files[other] = b"no picture" if damage == "no picture" else image_file(50)
    body = zip_file(files)
    coco.server.files["/zips/val2017.zip"] = body
    text = coco.lock.read_text()
    old = coco.archives["val2017.zip"]
    text = text.replace(f"bytes = {len(old)}\n", f"bytes = {len(body)}\n")
    coco.lock.write_text(text.replace(hashlib.sha256(old).hexdigest(), hashlib.sha256(body).hexdigest()))
    shown = fails(capsys, "data-invalid", "data", "--dataset", "coco-val")
    words = {
        "missing": "is missing",
        "extra": "not listed",
        "size": "is 70 x 80",
        "no picture": "is no picture",
    }
    assert words[damage] in shown
    assert not (assets.root() / "coco" / "val2017").exists()


def test_damage_is_found_and_named(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "--dataset", "coco") == 0
    image = assets.root() / "coco" / "train2017" / f"{2:012d}.jpg"
    content = bytearray(image.read_bytes())
    content[-5] ^= 1
    image.chmod(0o644)
    image.write_bytes(content)
    archive = assets.store() / "archives" / "val2017.zip"
    archive.write_bytes(archive.read_bytes()[:-1])
    shown = fails(capsys, "data-invalid", "data", "--check", "--json")
    assert f"coco/train2017: {image.name}" in shown
    assert "archives/val2017.zip" in shown
    assert "coco/val2017" not in shown


def test_a_wrong_file_in_the_store_is_not_used(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    archive = assets.store() / "archives" / "val2017.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"something else")
    assert "mv '" in fails(capsys, "fetch-hash-mismatch", "data", "--dataset", "coco-val")
    assert archive.read_bytes() == b"something else"


def test_a_file_that_the_user_brought_is_taken(coco: Coco) -> None:
    (assets.store() / "archives").mkdir(parents=True)
    for name, body in coco.archives.items():
        (assets.store() / "archives" / name).write_bytes(body)
    assert run("data", "--dataset", "coco") == 0
    assert coco.asked() == []


# -- coco-val200 --


def test_the_subset_comes_image_by_image(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ACCEPT_NEW=1" in fails(capsys, "digest-unknown", "data", "--dataset", "coco-val200")
    assert coco.asked() == []
    assert run("data", "--dataset", "coco-val200", "--accept-new") == 0
    asked = coco.asked()
    assert sorted(path for path in asked if path.endswith(".jpg")) == [
        f"/val2017/{number:012d}.jpg" for number in range(1, 5)
    ], "the first by id"
    folder = assets.root() / "coco-val200"
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    assert {image["id"] for image in content["images"]} == {1, 2, 3, 4}
    assert {one["image_id"] for one in content["annotations"]} == {1, 2, 3, 4}
    lines = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted((folder / "val2017").iterdir())
    )
    assert f'sha256 = "{hashlib.sha256(lines.encode()).hexdigest()}"' in coco.lock.read_text(), "recorded"
    assert run("data", "--check") == 0


def test_what_was_recorded_is_never_trusted_again(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "--dataset", "coco-val200", "--accept-new") == 0
    shutil.rmtree(assets.store() / "coco-val200")
    coco.server.files[f"/val2017/{2:012d}.jpg"] = image_file(2) + b"\0"
    body = coco.archives["val2017.zip"]
    with zipfile.ZipFile(io.BytesIO(body)) as file:
        files = {info.filename: file.read(info) for info in file.infolist()}
    files[f"val2017/{2:012d}.jpg"] += b"\0"  # a server that lies in both places
    coco.server.files["/zips/val2017.zip"] = lying = zip_file(files)
    coco.lock.write_text(coco.lock.read_text().replace(f"bytes = {len(body)}\n", f"bytes = {len(lying)}\n"))
    fails(capsys, "fetch-hash-mismatch", "data", "--dataset", "coco-val200", "--accept-new")
    assert not (assets.root() / "coco-val200" / "annotations").exists()


def test_an_image_is_held_to_the_zip_s_crc(coco: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(coco.server.files[f"/val2017/{3:012d}.jpg"])
    content[-5] ^= 1
    coco.server.files[f"/val2017/{3:012d}.jpg"] = bytes(content)
    assert "crc32:" in fails(
        capsys, "fetch-hash-mismatch", "data", "--dataset", "coco-val200", "--accept-new"
    )


def test_the_subset_from_what_is_here(coco: Coco) -> None:
    assert run("data", "--dataset", "coco-val") == 0
    coco.asked()
    assert run("data", "--dataset", "coco-val200") == 0, "the zip's digest vouches for these"
    assert coco.asked() == []


# -- weights, mirrors --


@pytest.fixture
def weights(coco: Coco, monkeypatch: pytest.MonkeyPatch) -> Coco:
    from dataclasses import replace

    one = stack.Stack.load("vitdet")
    stacks = {
        "vitdet": replace(one, weights=("old.pth",)),
        "blendmask": replace(one, weights=("old.pth", "new.pth")),
    }
    monkeypatch.setattr(stack.Stack, "load", classmethod(lambda cls, name: stacks[name]))
    return coco


def test_weights_arrive_where_configurations_look(weights: Coco) -> None:
    assert run("weights") == 0
    assert (paths.BUILD / "data" / "weights" / "old.pth").read_bytes() == weights.old
    weights.asked()
    assert run("weights") == 0
    assert weights.asked() == []


def test_the_licence_is_told_before_anything_is_fetched(
    weights: Coco, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("weights") == 0
    assert capsys.readouterr().out.startswith("old.pth: for tests\n")
    del weights.server.files["/new.pth"]
    fails(capsys, "digest-unknown", "weights", "--stack", "blendmask")
    assert run("weights", "--json") == 0
    assert json.loads(capsys.readouterr().out)["licences"] == {"old.pth": "for tests"}


def test_no_digest_is_no_pass(weights: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ACCEPT_NEW=1" in fails(capsys, "digest-unknown", "weights", "--stack", "blendmask")
    assert not (assets.store() / "weights" / "new.pth").exists()
    assert run("weights", "--stack", "blendmask", "--accept-new") == 0
    digest = hashlib.sha256(weights.new).hexdigest()
    assert f'sha256 = "{digest}"' in weights.lock.read_text()
    assert assets.load()["new.pth"].sha256 == digest
    (assets.store() / "weights" / "new.pth").unlink()
    weights.server.files["/new.pth"] = b"others" * 1000
    fails(capsys, "fetch-hash-mismatch", "weights", "--stack", "blendmask", "--accept-new")


def test_mirrors_in_the_order_asked_for(
    weights: Coco, other: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    other.files["/cn/old.pth"] = other.files["/mine/old.pth"] = weights.old
    text = weights.lock.read_text()
    weights.lock.write_text(text.replace('["old.pth"]\n', f'["old.pth"]\ncn = ["{other.base}/cn/old.pth"]\n'))
    for mirror, path in (("", "/old.pth"), ("cn", "/cn/old.pth"), (f"{other.base}/mine/", "/mine/old.pth")):
        shutil.rmtree(assets.store(), ignore_errors=True)
        assert run("weights", "--mirror", mirror) == 0
        assert {*weights.asked(), *(path for path, _ in other.seen)} == {path}
        other.seen.clear()
    shutil.rmtree(assets.store())
    fails(capsys, "usage", "weights", "--mirror", "de")


def test_two_at_once_fetch_once(weights: Coco) -> None:
    """The second process waits, then finds the file."""
    weights.server.behave = lambda request: __import__("time").sleep(0.3)
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            os._exit(run("weights"))
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert weights.asked() == ["/old.pth"]


def test_relock_asks_the_hub(weights: Coco) -> None:
    digest = hashlib.sha256(weights.new).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 11000\n"
    weights.server.files["/a/b/raw/main/new.pth"] = pointer.encode()
    text = weights.lock.read_text()
    weights.lock.write_text(text.replace("/new.pth", "/a/b/resolve/main/new.pth"))
    lock._record_hub_digests()
    assert assets.load()["new.pth"].sha256 == digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[val200]", "[val200"),
        ('sha256 = "unknown"', 'sha256 = "?"'),
        ("urls =", "url ="),
        ("bytes = ", 'bytes = "x" #'),
    ],
)
def test_a_lock_that_cannot_be_read(
    weights: Coco, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    weights.lock.write_text(weights.lock.read_text().replace(old, new, 1))
    fails(capsys, "data-lock-invalid", "weights")


# -- without a network --


@pytest.fixture
def packed(weights: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a small COCO, weights, a source distribution, a built wheel and a lock's wheels."""
    for name in lock_files():
        (paths.LOCK / name).write_text(DEMO_LOCK)
    wheels = venv.local_wheels(paths.LOCK / "tools.txt")
    wheels.mkdir(parents=True)
    (wheels / "demo-1.0-py3-none-any.whl").write_bytes(DEMO)
    for name in ("sdist/aa/x.tar.gz", "wheelhouse/mmcv/0123/manifest.json", "wheelhouse/mmcv/0123/mmcv.whl"):
        (paths.CACHE / name).parent.mkdir(parents=True, exist_ok=True)
        (paths.CACHE / name).write_text("{}")
    (paths.BUILD / "wheelhouse/mmcv/0123").mkdir(parents=True)
    (paths.BUILD / "wheelhouse/mmcv/0123/manifest.json").write_text("{}")
    assert run("weights") == 0
    assert run("data", "--dataset", "coco-val") == 0
    assert run("bundle", "--dataset", "coco-val") == 0
    (bundle,) = (paths.BUILD / "bundle").glob("*.tar")
    bundle.rename(tmp_path / "it.tar")
    shutil.rmtree(paths.BUILD)
    shutil.rmtree(paths.CACHE)
    weights.asked()
    return tmp_path / "it.tar"


def lock_files() -> list[str]:
    return ["tools.txt", "vitdet.txt", f"vitdet-torch-{platform.machine()}.txt"]


DEMO = zip_file(
    {
        "demo.py": b"answer = 42\n",
        "demo-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        "demo-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "demo-1.0.dist-info/RECORD": b"demo.py,,\n",
    }
)
DEMO_LOCK = f"demo==1.0 \\\n    --hash=sha256:{hashlib.sha256(DEMO).hexdigest()}\n"


def test_a_bundle_replaces_the_network(packed: Path, weights: Coco) -> None:
    """Taken in without a network, in a namespace that has none; then data, weights and an environment come from it."""
    if subprocess.run(["unshare", "--net", "--map-root-user", "true"], capture_output=True).returncode:
        pytest.skip("network namespaces are not allowed here")
    program = f"""
        import socket, sys
        from pathlib import Path
        from ascendet import cli, paths
        from ascendet.core import stack
        from ascendet.envs import venv
        from ascendet.machine import needs
        from dataclasses import replace
        try:
            socket.create_connection(("127.0.0.1", {weights.server.server_port}), 1)
            sys.exit("there is a network")
        except OSError:
            pass
        real = venv.tools_home()
        paths.BUILD, paths.CACHE = Path({str(paths.BUILD)!r}), Path({str(paths.CACHE)!r})
        paths.LOCK = Path({str(paths.LOCK)!r})
        cli._enter_tools = lambda argv: None
        paths.REQUIREMENTS = Path({str(paths.REQUIREMENTS)!r})
        one = replace(stack.Stack.load("vitdet"), weights=("old.pth",))
        stack.Stack.load = lambda name: one
        for argv in (["bundle", "--unpack", {str(packed)!r}], ["data", "--dataset", "coco-val"], ["weights"]):
            assert cli.main(argv) == 0, argv
        venv.tools_home = lambda: real
        venv.tools_pip = lambda: [sys.executable, "-m", "pip"]
        needs.DISK_GIB.clear()
        venv.ensure(paths.BUILD / "venv/demo", "3.11", [paths.LOCK / "vitdet.txt"], {{}})
    """
    environ = os.environ | {
        "PYTHONPATH": str(paths.ROOT / "scripts"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    }
    command = ["unshare", "--net", "--map-root-user", sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((assets.root() / "coco" / "val2017").glob("*.jpg"))) == 9
    assert (assets.root() / "weights" / "old.pth").read_bytes() == weights.old
    assert (paths.CACHE / "sdist/aa/x.tar.gz").is_file()
    assert (paths.CACHE / "wheelhouse/mmcv/0123/mmcv.whl").is_file()
    answer = [paths.BUILD / "venv/demo/bin/python", "-c", "import demo; print(demo.answer)"]
    assert subprocess.run(answer, capture_output=True, text=True, check=True).stdout == "42\n"
    assert weights.asked() == []


def test_taking_in_goes_on_where_it_stopped(packed: Path) -> None:
    assert run("bundle", "--unpack", str(packed)) == 0
    archive = assets.store() / "archives" / "val2017.zip"
    kept = archive.stat().st_ino
    (assets.store() / "weights" / "old.pth").write_bytes(b"half")
    assert run("bundle", "--unpack", str(packed)) == 0
    assert archive.stat().st_ino == kept
    assert run("weights") == 0


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "no bundle", "missing", "elsewhere", "link", "other locks"]
)
def test_a_bundle_is_not_believed(packed: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    content = bytearray(packed.read_bytes())
    if damage == "cut":
        del content[len(content) * 2 // 3 :]
    elif damage == "flipped":
        content[content.rindex(b"old weights")] ^= 1
    elif damage == "no bundle":
        content = bytearray(b"garbage")
    elif damage == "elsewhere":
        content = content.replace(b"store/weights/old.pth", b"store/../../evil.pth_"[:21])
    elif damage == "link":
        at = content.rindex(b"store/weights/old.pth")
        content[at + 156] = ord("2")
    elif damage == "other locks":
        (paths.LOCK / "vitdet.txt").write_text("demo==2.0\n")
    packed.write_bytes(content)
    if damage == "missing":
        packed.unlink()
    fails(capsys, "bundle-invalid", "bundle", "--unpack", str(packed))
    assert not (assets.store() / "weights" / "old.pth").exists()
    assert not [path for path in paths.CACHE.parent.rglob("*") if "evil" in path.name]


def test_a_bundle_needs_what_it_packs(weights: Coco, capsys: pytest.CaptureFixture[str]) -> None:
    for name in lock_files():
        (paths.LOCK / name).write_text(DEMO_LOCK)
    wheels = venv.local_wheels(paths.LOCK / "tools.txt")
    wheels.mkdir(parents=True)
    (wheels / "demo-1.0-py3-none-any.whl").write_bytes(DEMO)
    assert "make data" in fails(capsys, "data-missing", "bundle", "--dataset", "coco-val")
    assert run("data", "--dataset", "coco-val") == 0
    assert "make weights" in fails(capsys, "data-missing", "bundle", "--dataset", "coco-val")
    fails(capsys, "dataset-unknown", "bundle", "--dataset", "imagenet")
    assert "docker" in fails(capsys, "command-failed", "bundle", "--image", "no/such:image")


def test_an_image_travels_too(
    packed: Path, weights: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker itself is replaced by a script that writes what it was asked."""
    assert run("bundle", "--unpack", str(packed)) == 0
    programs = tmp_path / "bin"
    programs.mkdir()
    docker = programs / "docker"
    docker.write_text(f'#!/bin/sh\necho "$1 $3" >> {tmp_path}/log\n[ "$1" = load ] || echo layers > "$3"\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert run("bundle", "--image", "ascendet/vitdet:1") == 0
    (bundle,) = (paths.BUILD / "bundle").glob("*.tar")
    assert run("bundle", "--unpack", str(bundle)) == 0
    asked = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["save", "load"]
    assert list((paths.BUILD / "bundle").glob("*.tar")) == [bundle]
