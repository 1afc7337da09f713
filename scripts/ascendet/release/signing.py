"""Sign a release, and verify its signatures, with an Ed25519 key in a PEM file: its signatures are the same every time.

`provenance/<wheel>.intoto.jsonl` is in-toto's bundle for one wheel: one line, the DSSE envelope around the wheel's
statement. `SHA256SUMS.sig` is the plain signature of SHA256SUMS, 64 bytes, which `openssl pkeyutl` verifies, too. One
key can make both: what an envelope signs begins with "DSSEv1", and SHA256SUMS with a digest.
"""

from __future__ import annotations

import getpass
import json
import re
import shlex
import sys
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, Signature, SSlibKey

from ascendet import paths
from ascendet.core import files
from ascendet.errors import AscendetError
from ascendet.release import index, provenance, sums

PAYLOAD = "application/vnd.in-toto+json"
_NEW_KEY = "openssl genpkey -algorithm ed25519 -out release.pem"


# -- keys --


def read_private(key: str) -> CryptoSigner:
    """Return what signs with the private key in the file `key`; of an encrypted one, the terminal is asked.

    Raises
    ------
    AscendetError
        `key-missing`. `key-invalid`: the file has no private Ed25519 key, or it is encrypted and stays so.
    """
    content = _read(key)
    try:
        found = load_pem_private_key(content, None)
    except TypeError:  # cryptography's word for "encrypted"
        found = _decrypt(key, content)
    except (ValueError, UnsupportedAlgorithm):
        public = "PUBLIC KEY" in _labels(content)
        raise _invalid(
            f"{key} is {'the public half' if public else 'no private key'}",
            expected="BEGIN PRIVATE KEY",
            found=_labels(content),
            hint=f"KEY=<the private half>, or make a new key: {_NEW_KEY}",
        ) from None  # its message may quote the file
    if not isinstance(found, Ed25519PrivateKey):
        raise _another_kind(key, found)
    return CryptoSigner(found)


def read_public(key: str) -> SSlibKey:
    """Return the public key in the file `key`; raise `key-missing` or `key-invalid`."""
    content = _read(key)
    try:
        found = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        private = "PRIVATE KEY" in _labels(content)
        raise _invalid(
            f"{key} is {'the private half, which only make release needs' if private else 'no public key'}",
            expected="BEGIN PUBLIC KEY",
            found=_labels(content),
            hint=f"openssl pkey -in {shlex.quote(key)} -pubout -out release.pub.pem, then KEY=release.pub.pem"
            if private
            else "ask whoever built the release for the public key, as PEM",
        ) from None
    if not isinstance(found, Ed25519PublicKey):
        raise _another_kind(key, found)
    return SSlibKey.from_crypto(found)


def _read(key: str) -> bytes:
    if "-----" in key or "\n" in key:  # do not show it: it is the key
        raise _invalid(
            "KEY must be the name of a file, not the key itself",
            hint="write it into a file that only you can read, then KEY=<file>; "
            "the shell's history may hold this one, so make a new key",
        )
    try:
        return Path(key).read_bytes()
    except OSError as error:
        raise AscendetError(
            "key-missing",
            f"{key} cannot be read",
            expected="KEY=<a PEM file>",
            found=error.strerror,
            hint=f"ls -l {shlex.quote(key)}; a new key: {_NEW_KEY}",
        ) from error


def _decrypt(key: str, content: bytes) -> PrivateKeyTypes:
    if not sys.stdin.isatty():
        raise _invalid(
            f"{key} is encrypted, and there is no terminal to ask for the passphrase",
            hint=f"run it in a terminal, or in bash: KEY=<(openssl pkey -in {shlex.quote(key)} -passin env:PASSPHRASE)",
        )
    try:
        return load_pem_private_key(content, getpass.getpass(f"passphrase of {key}: ").encode())
    except (TypeError, ValueError):
        raise _invalid(
            f"the passphrase does not open {key}", hint=f"try it: openssl pkey -in {shlex.quote(key)} -noout"
        ) from None


def _labels(content: bytes) -> str:
    """Return what a file's PEM blocks call themselves, and nothing that is in them."""
    found = re.findall(rb"^-----(BEGIN [A-Z0-9 ]{1,40})-----", content, re.MULTILINE)
    return ", ".join(label.decode() for label in found) or "no PEM file"


def _another_kind(key: str, found: object) -> AscendetError:
    return _invalid(
        f"{key} is of another kind: releases are signed with Ed25519, so that two runs give equal bytes",
        expected="Ed25519",
        found=type(found).__name__,
        hint=_NEW_KEY,
    )


def _invalid(what: str, *, expected: str | None = None, found: str | None = None, hint: str) -> AscendetError:
    return AscendetError("key-invalid", what, expected=expected, found=found, hint=hint)


# -- signing --


def seal(statement: str, signer: CryptoSigner) -> str:
    """Return the bundle with a statement's signed envelope as its only line."""
    envelope = Envelope(statement.encode(), PAYLOAD, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict()) + "\n"


def sign_sums(folder: Path, signer: CryptoSigner) -> None:
    """Write SHA256SUMS.sig beside SHA256SUMS."""
    signature = signer.sign((folder / sums.NAME).read_bytes())
    (folder / sums.SIGNATURE).write_bytes(bytes.fromhex(signature.signature))


# -- verifying --


def is_signed(folder: Path) -> bool:
    """Return whether a release says that it is signed, by whomever."""
    return (folder / sums.SIGNATURE).exists() or any((folder / "provenance").glob("*.jsonl"))


def verify(folder: Path, key: Key) -> None:
    """Verify that SHA256SUMS and the statement about every wheel are signed with a key.

    Raises
    ------
    AscendetError
        `release-unsigned`, `signature-invalid`.
    """
    if not is_signed(folder):
        raise AscendetError(
            "release-unsigned",
            f"{paths.shorten(folder)} is not signed",
            expected=f"{sums.SIGNATURE} by the key {name(key)}",
            hint="get the signed release from whoever built it; to sign your own: make release KEY=<private key>",
        )
    problems = [_sums_problem(folder, key)]
    problems += [
        _wheel_problem(folder, wheel, key) for wheel in sorted((folder / index.WHEELS).glob("*.whl"))
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise AscendetError(
            "signature-invalid",
            f"{paths.shorten(folder)} is not what the key {name(key)} signed",
            expected=f"signatures of {sums.NAME} and of every wheel's provenance by this key",
            found=sums.listed(found),
            hint="do not install from it; ask whoever built it for the release and the public key again",
        )


def name(key: Key) -> str:
    """Return the short name of a public key: the beginning of the key id in its envelopes."""
    return key.keyid[:16]


def _sums_problem(folder: Path, key: Key) -> str:
    path = folder / sums.SIGNATURE
    if not path.exists():
        return f"{sums.SIGNATURE} is missing"
    signature = Signature(key.keyid, path.read_bytes().hex())
    try:
        key.verify_signature(signature, (folder / sums.NAME).read_bytes())
    except UnverifiedSignatureError:
        return f"{sums.SIGNATURE} is no signature of {sums.NAME} by this key"
    return ""


def _wheel_problem(folder: Path, wheel: Path, key: Key) -> str:
    """Return what is wrong with the envelope about a wheel, "" for nothing."""
    path = folder / "provenance" / f"{wheel.name}.intoto.jsonl"
    shown = path.relative_to(folder).as_posix()
    if not path.exists():
        return f"{shown} is missing"
    try:
        envelope = Envelope.from_dict(json.loads(path.read_bytes()))
        envelope.verify([key], 1)
        stated = json.loads(envelope.payload)["subject"]
    except UnverifiedSignatureError:
        return f"{shown} is not signed by this key, or was changed since"
    except (AttributeError, FormatError, KeyError, RecursionError, TypeError, ValueError) as error:
        return f"{shown} is no DSSE envelope: {error!r}"
    if envelope.payload_type != PAYLOAD:
        return f"{shown} has the payloadType {envelope.payload_type}"
    if stated != [provenance.subject(wheel.name, files.digest(wheel))]:
        return f"{shown} is about another file than {index.WHEELS}/{wheel.name}"
    return ""
