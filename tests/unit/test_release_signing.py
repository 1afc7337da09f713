"""Signed releases: the same bytes with the same key, verified by openssl, too; no change that a signature misses."""

from __future__ import annotations

import base64
import getpass
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ascendet import cli, paths
from ascendet.core import files
from ascendet.core.stack import Stack
from ascendet.errors import EXIT_CODES, AscendetError
from ascendet.release import check, collect, index, release, signing, sums
from ascendet.wheels import wheelfile
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

WHEELS = ("mmcv-2.1.0-py3-none-any.whl", "vitdet-0.1.0-py3-none-any.whl")
PASSPHRASE = "correct horse"


def write_key(path: Path, key: PrivateKeyTypes, encryption: KeySerializationEncryption | None = None) -> Path:
    """Write a private key to `path`, and its public half beside it, to <path>.pub."""
    encryption = encryption or NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "release.pem", ed25519.Ed25519PrivateKey.generate())


def publish(final: Path, made: Path, key: Path | None) -> Path:
    """A release of two wheels, signed if there is a key."""
    built = []
    for file in WHEELS:
        name, version = file.split("-")[:2]
        info = f"{name}-{version}.dist-info"
        content = {
            f"{name}/__init__.py": b"",
            f"{info}/METADATA": wheelfile.metadata({"name": name, "license": "Apache-2.0"}, version),
            f"{info}/WHEEL": wheelfile.wheel_metadata("py3-none-any", pure=True),
        }
        made.mkdir(parents=True, exist_ok=True)
        path = wheelfile.write(made, name, version, "py3-none-any", content)
        built.append(
            collect.Built(path=path, wheel=name, machine=None, stacks=("vitdet",), inputs={}, audit={})
        )
    signer = signing.read_private(str(key)) if key else None
    release.publish(final, [Stack.load("vitdet")], ["x86_64", "aarch64"], built, signer)
    return final


@pytest.fixture
def folder(tmp_path: Path, key: Path) -> Path:
    return publish(tmp_path / "release/0.1.0", tmp_path / "made", key)


def verify(folder: Path, key: Path) -> None:
    """What `make check-release KEY=` verifies before it installs."""
    public = signing.read_public(str(key.with_suffix(".pub")))
    check.verify(folder)
    signing.verify(folder, public)


def refused(folder: Path, key: Path) -> AscendetError:
    with pytest.raises(AscendetError) as caught:
        verify(folder, key)
    return caught.value


def bundle(folder: Path, wheel: int = 0) -> Path:
    return folder / f"provenance/{WHEELS[wheel]}.intoto.jsonl"


# -- what is signed --


def test_a_signed_release_verifies_and_holds_nothing_of_the_key(folder: Path, key: Path) -> None:
    verify(folder, key)
    secret = key.read_bytes()
    body = b"".join(secret.splitlines()[1:-1])
    seed = base64.b64decode(body)[-32:]  # PKCS 8 ends with it
    for file in files.walk(folder):
        content = file.read_bytes()
        assert seed not in content, file
        assert body not in content, file


def test_an_envelope_holds_the_statement_that_an_unsigned_release_has(
    folder: Path, key: Path, tmp_path: Path
) -> None:
    plain = publish(tmp_path / "plain", tmp_path / "made", None)
    for wheel in WHEELS:
        statement = (plain / f"provenance/{wheel}.intoto.json").read_bytes()
        text = (folder / f"provenance/{wheel}.intoto.jsonl").read_text()
        assert text.count("\n") == 1  # a bundle has a line for each envelope
        envelope = json.loads(text)
        assert envelope["payloadType"] == "application/vnd.in-toto+json"
        assert base64.b64decode(envelope["payload"]) == statement
        (signature,) = envelope["signatures"]
        assert len(base64.b64decode(signature["sig"])) == 64
        assert not (folder / f"provenance/{wheel}.intoto.json").exists()


def test_a_signature_is_over_dsses_encoding(folder: Path, key: Path) -> None:
    """Written out here, so that the library cannot be wrong on both sides."""
    envelope = json.loads(bundle(folder).read_text())
    payload = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    made = signing.read_private(str(key)).sign(signed).signature
    assert base64.b64decode(envelope["signatures"][0]["sig"]).hex() == made


def test_two_runs_with_one_key_give_the_same_bytes(folder: Path, key: Path, tmp_path: Path) -> None:
    again = publish(tmp_path / "again", tmp_path / "elsewhere", key)
    assert files.digest_tree(again) == files.digest_tree(folder)


def test_openssl_verifies_the_sums_and_sha256sum_the_rest(folder: Path, key: Path) -> None:
    program = shutil.which("openssl")
    if not program:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    command = [program, "pkeyutl", "-verify", "-pubin", "-inkey", str(key.with_suffix(".pub")), "-rawin"]
    command += ["-in", "SHA256SUMS", "-sigfile", "SHA256SUMS.sig"]
    assert subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode == 0
    done = subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=folder, check=False)
    assert done.returncode == 0
    with (folder / "SHA256SUMS").open("a") as file:
        file.write("\n")
    assert subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode != 0


# -- tampering, by somebody who also writes SHA256SUMS anew --


def change_statement(folder: Path) -> str:
    envelope = json.loads(bundle(folder).read_text())
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["predicate"]["runDetails"]["builder"]["id"] = "urn:somebody"
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    bundle(folder).write_text(json.dumps(envelope) + "\n")
    return f"provenance/{WHEELS[0]}.intoto.jsonl is not signed by this key, or was changed since"


def change_payload_type(folder: Path) -> str:
    bundle(folder).write_text(bundle(folder).read_text().replace("in-toto+json", "other+json"))
    return f"provenance/{WHEELS[0]}.intoto.jsonl is not signed by this key, or was changed since"


def remove_the_signature(folder: Path) -> str:
    envelope = json.loads(bundle(folder).read_text()) | {"signatures": []}
    bundle(folder).write_text(json.dumps(envelope) + "\n")
    return f"provenance/{WHEELS[0]}.intoto.jsonl is not signed by this key, or was changed since"


def sign_with_another_key(folder: Path) -> str:
    other = write_key(folder.parent / "other.pem", ed25519.Ed25519PrivateKey.generate())
    statement = base64.b64decode(json.loads(bundle(folder).read_text())["payload"]).decode()
    bundle(folder).write_text(signing.seal(statement, signing.read_private(str(other))))
    return f"provenance/{WHEELS[0]}.intoto.jsonl is not signed by this key, or was changed since"


def take_the_key_id_for_another_key(folder: Path) -> str:
    """The key id is a hint that nobody signed."""
    ours = json.loads(bundle(folder).read_text())["signatures"][0]["keyid"]
    expected = sign_with_another_key(folder)
    envelope = json.loads(bundle(folder).read_text())
    envelope["signatures"][0]["keyid"] = ours
    bundle(folder).write_text(json.dumps(envelope) + "\n")
    return expected


def take_another_wheels_envelope(folder: Path) -> str:
    """It is well signed."""
    shutil.copyfile(bundle(folder, 1), bundle(folder))
    return f"provenance/{WHEELS[0]}.intoto.jsonl is about another file than wheels/{WHEELS[0]}"


def remove_the_envelope(folder: Path) -> str:
    bundle(folder).unlink()
    return f"provenance/{WHEELS[0]}.intoto.jsonl is missing"


def replace_the_envelope_by_a_statement(folder: Path) -> str:
    payload = base64.b64decode(json.loads(bundle(folder).read_text())["payload"])
    bundle(folder).with_suffix(".json").write_bytes(payload)
    return remove_the_envelope(folder)


def break_the_envelope(folder: Path) -> str:
    bundle(folder).write_text("[]\n")
    return f"provenance/{WHEELS[0]}.intoto.jsonl is no DSSE envelope"


def nest_the_envelope(folder: Path) -> str:
    bundle(folder).write_text("[" * 100_000)
    return f"provenance/{WHEELS[0]}.intoto.jsonl is no DSSE envelope: RecursionError"


def change_constraints(folder: Path) -> str:
    (folder / "constraints/vitdet.txt").write_text("evil==1\n")
    return "SHA256SUMS.sig is no signature of SHA256SUMS by this key"


def cut_the_signature(folder: Path) -> str:
    path = folder / "SHA256SUMS.sig"
    path.write_bytes(path.read_bytes()[:-1])
    return "SHA256SUMS.sig is no signature of SHA256SUMS by this key"


def remove_the_sums_signature(folder: Path) -> str:
    (folder / "SHA256SUMS.sig").unlink()
    return "SHA256SUMS.sig is missing"


@pytest.mark.parametrize(
    "tamper",
    [
        change_statement,
        change_payload_type,
        remove_the_signature,
        sign_with_another_key,
        take_the_key_id_for_another_key,
        take_another_wheels_envelope,
        remove_the_envelope,
        replace_the_envelope_by_a_statement,
        break_the_envelope,
        nest_the_envelope,
        change_constraints,
        cut_the_signature,
        remove_the_sums_signature,
    ],
)
def test_tampering_is_found_and_named(folder: Path, key: Path, tamper: Callable[[Path], str]) -> None:
    signature = folder / "SHA256SUMS.sig"
    before = signature.read_bytes()
    expected = tamper(folder)
    kept = signature.read_bytes() if signature.exists() else None
    (folder / "SHA256SUMS").unlink()
    signature.unlink(missing_ok=True)
    sums.write(folder)
    if kept is not None:
        signature.write_bytes(kept)
    check.verify(folder)  # its own sums do not show it
    error = refused(folder, key)
    assert error.name == "signature-invalid"
    assert expected in (error.found or "")
    if (folder / "SHA256SUMS.sig").exists() and before == kept:
        assert "SHA256SUMS.sig is no signature of SHA256SUMS by this key" in (error.found or "")


def test_a_well_signed_envelope_of_another_type_is_refused(
    folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = signing.read_private(str(key))
    statement = base64.b64decode(json.loads(bundle(folder).read_text())["payload"]).decode()
    with monkeypatch.context() as patched:
        patched.setattr(signing, "PAYLOAD", "text/plain")
        bundle(folder).write_text(signing.seal(statement, signer))
    with pytest.raises(AscendetError) as caught:
        signing.verify(folder, signer.public_key)
    assert "has the payloadType text/plain" in (caught.value.found or "")


def test_tampering_that_leaves_the_sums_is_named_without_a_key(folder: Path, key: Path) -> None:
    change_statement(folder)
    error = refused(folder, key)
    assert error.name == "release-damaged"
    assert f"provenance/{WHEELS[0]}.intoto.jsonl has another digest" in (error.found or "")


def test_a_new_wheel_and_a_new_index_need_the_key(folder: Path, key: Path) -> None:
    name, version = WHEELS[0].split("-")[:2]
    content = dict(wheelfile.read(folder / "wheels" / WHEELS[0]).files) | {f"{name}/__init__.py": b"evil"}
    wheelfile.write(folder / "wheels", name, version, "py3-none-any", content)
    shutil.rmtree(folder / "simple")
    index.write(folder, [index.read_wheel(path) for path in (folder / "wheels").glob("*.whl")])
    signature = (folder / "SHA256SUMS.sig").read_bytes()
    for file in ("SHA256SUMS", "SHA256SUMS.sig"):
        (folder / file).unlink()
    sums.write(folder)
    (folder / "SHA256SUMS.sig").write_bytes(signature)
    check.verify(folder)
    error = refused(folder, key)
    assert f"{WHEELS[0]}.intoto.jsonl is about another file" in (error.found or "")
    assert "SHA256SUMS.sig is no signature" in (error.found or "")


def test_another_persons_key_verifies_nothing(folder: Path, tmp_path: Path) -> None:
    other = write_key(tmp_path / "other.pem", ed25519.Ed25519PrivateKey.generate())
    error = refused(folder, other)
    assert error.name == "signature-invalid"
    assert (error.found or "").count("\n") == len(WHEELS)


def test_an_unsigned_release_is_named(tmp_path: Path, key: Path) -> None:
    error = refused(publish(tmp_path / "plain", tmp_path / "made", None), key)
    assert error.name == "release-unsigned"
    assert "make release KEY=" in error.hint


# -- the key --


def use(argument: str, stage: str) -> object:
    return (signing.read_private if stage == "release" else signing.read_public)(argument)


def names_the_key(argument: str, stage: str, name: str, *said: str) -> None:
    with pytest.raises(AscendetError) as caught:
        use(argument, stage)
    error = caught.value
    assert error.name == name
    text = error.render(colour=False)
    for word in said:
        assert word in text
    assert error.hint


@pytest.mark.parametrize("stage", ["release", "check-release"])
def test_a_missing_file_a_folder_and_another_file_are_named(tmp_path: Path, stage: str) -> None:
    names_the_key(str(tmp_path / "none.pem"), stage, "key-missing", "none.pem", "No such file", "genpkey")
    names_the_key(str(tmp_path), stage, "key-missing", "Is a directory")
    other = tmp_path / "notes.txt"
    other.write_text("a secret that is no key\n")
    names_the_key(str(other), stage, "key-invalid", "notes.txt", "no PEM file")
    other.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    names_the_key(str(other), stage, "key-invalid", "BEGIN CERTIFICATE")
    other.write_bytes(b"")
    names_the_key(str(other), stage, "key-invalid", "no PEM file")


def test_the_other_half_is_named(key: Path) -> None:
    names_the_key(
        str(key.with_suffix(".pub")), "release", "key-invalid", "the public half", "BEGIN PUBLIC KEY"
    )
    names_the_key(str(key), "check-release", "key-invalid", "the private half", f"-in {key} -pubout")


@pytest.mark.parametrize("stage", ["release", "check-release"])
@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_keys_whose_signatures_are_random_are_refused(tmp_path: Path, stage: str, kind: str) -> None:
    other = (
        rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    )
    path = write_key(tmp_path / "key.pem", other)
    path = path if stage == "release" else path.with_suffix(".pub")
    names_the_key(str(path), stage, "key-invalid", "Ed25519", "equal bytes")


def test_a_damaged_key_is_named_and_not_shown(key: Path) -> None:
    lines = key.read_text().splitlines()
    key.write_text("\n".join([lines[0], lines[1][:-8], lines[2]]))
    with pytest.raises(AscendetError) as caught:
        signing.read_private(str(key))
    assert caught.value.name == "key-invalid"
    assert lines[1][:16] not in caught.value.render(colour=False)
    assert caught.value.__cause__ is None


@pytest.fixture
def encrypted(tmp_path: Path) -> Path:
    private = ed25519.Ed25519PrivateKey.generate()
    return write_key(tmp_path / "locked.pem", private, BestAvailableEncryption(PASSPHRASE.encode()))


@pytest.mark.parametrize("given", [PASSPHRASE, "wrong", ""])
def test_the_terminal_is_asked_for_the_passphrase(
    encrypted: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: given)
    if given == PASSPHRASE:
        signer = signing.read_private(str(encrypted))
        assert signer.public_key == signing.read_public(str(encrypted.with_suffix(".pub")))
    else:
        names_the_key(
            str(encrypted), "release", "key-invalid", "the passphrase does not open", "openssl pkey"
        )


def run_make(*words: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"ASCENDET_BUILD": str(paths.BUILD)}
    environ.pop("KEY", None)
    return subprocess.run(
        ["make", "--directory", str(paths.ROOT), *words],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,  # it would build for an hour
    )


def test_an_encrypted_key_without_a_terminal_ends_make_before_anything_is_built(encrypted: Path) -> None:
    done = run_make("release", f"KEY={encrypted}")
    assert "key-invalid" in done.stderr
    assert "there is no terminal" in done.stderr
    assert f"KEY=<(openssl pkey -in {encrypted} -passin" in done.stderr
    assert "creating" not in done.stdout
    assert "[1/" not in done.stdout


def test_bash_may_hand_over_what_is_on_no_disk(tmp_path: Path) -> None:
    """The key is of another kind, so that reading it is all that happens."""
    locked = BestAvailableEncryption(PASSPHRASE.encode())
    path = write_key(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048), locked)
    command = f"make release KEY=<(openssl pkey -in {path} -passin env:PASSPHRASE)"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=paths.ROOT,
        env=os.environ | {"ASCENDET_BUILD": str(paths.BUILD), "PASSPHRASE": PASSPHRASE},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "releases are signed with Ed25519" in done.stderr


def test_the_key_itself_in_the_place_of_its_file_is_not_shown(key: Path) -> None:
    secret = key.read_text().splitlines()[1]
    for words in (
        ("release", f"KEY={key.read_text()}"),
        ("release", f"KEY={' '.join(key.read_text().split())}"),
    ):
        done = run_make(*words)
        assert "error[key-invalid]: KEY must be the name of a file, not the key itself" in done.stderr
        assert secret not in done.stdout + done.stderr


def test_a_key_file_with_blanks_and_an_apostrophe_in_its_name_is_found(encrypted: Path) -> None:
    other = encrypted.rename(encrypted.with_name("Ann's release key.pem"))
    done = run_make("release", f"KEY={other}")
    assert "Ann's release key.pem is encrypted" in done.stderr


# -- the stages --


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """`check-release` of the folder without its installations."""
    monkeypatch.setattr(release, "home", lambda: folder)
    monkeypatch.setattr(check, "try_stack", lambda *_: None)
    monkeypatch.setattr(cli, "_enter_tools", lambda _: None)
    return folder


def test_check_release_says_who_checked(
    quick: Path,
    key: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = signing.read_public(str(key.with_suffix(".pub")))
    assert cli.main(["check-release", "--key", str(key.with_suffix(".pub"))]) == 0
    assert f"are signed by the key {public.keyid[:16]}" in capsys.readouterr().out
    assert cli.main(["check-release", "--key", ""]) == 0
    assert "signed, but nobody checked the signatures: make check-release KEY=" in capsys.readouterr().out
    monkeypatch.setattr(release, "home", lambda: publish(tmp_path / "plain", tmp_path / "made", None))
    assert cli.main(["check-release", "--key", ""]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  not signed"


def test_check_release_refuses_with_the_errors_code(
    quick: Path, key: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", str(key.with_suffix(".pub")))  # as make hands it over
    assert cli.main(["check-release"]) == 0
    remove_the_sums_signature(quick)
    assert cli.main(["check-release"]) == EXIT_CODES["signature-invalid"]
    assert "SHA256SUMS.sig is missing" in capsys.readouterr().err


def test_release_with_a_wrong_key_ends_before_it_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_enter_tools", lambda _: None)
    monkeypatch.setattr(collect, "collect", lambda *_: pytest.fail("it builds"))
    assert cli.main(["release", "--key", str(tmp_path / "none.pem")]) == EXIT_CODES["key-missing"]
    assert "KEY=<a PEM file>" in capsys.readouterr().err
