"""Signatures of receipts with Ed25519 (RFC 8032), by the package cryptography (decision 55).

Keys are files as OpenSSL and OpenSSH write them:

    openssl genpkey -algorithm ed25519 -out receipt-key.pem
    openssl pkey -in receipt-key.pem -pubout -out receipt-key.pub
    ssh-keygen -t ed25519 -N "" -f receipt-key
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, reason

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_KEY = 1 << 16  # bytes of a key's file
SMALL_ORDER = frozenset(
    bytes.fromhex(one)
    for one in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Public keys of small order (1, 2, 4, 8), without the bit of the sign. Anybody can make signatures of these keys.

OpenSSL accepts them. Source: libsodium's ``ge25519_has_small_order``.
"""
HOW = "give an Ed25519 key without a password (openssl genpkey -algorithm ed25519)"


class Signature(Struct, frozen=True, forbid_unknown_fields=True):
    """An Ed25519 signature and the public key that checks it, both hexadecimal."""

    public_key: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    value: Annotated[str, Meta(pattern="^[0-9a-f]{128}$")]


class Signer:
    """Signs receipts with the private key in a file.

    Raises:
        InvalidRequest: the file has no such key, or cryptography is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self._key = _private_key("receipt_key", path)
        self.public_key = _raw(self._key.public_key())

    def sign(self, message: bytes) -> Signature:
        """The signature of a message."""
        return Signature(self.public_key, self._key.sign(message).hex())


def signature_is_valid(signature: Signature, message: bytes) -> bool:
    ed25519 = _imported()
    from cryptography.exceptions import InvalidSignature

    raw = bytes.fromhex(signature.public_key)
    if bytes([*raw[:-1], raw[-1] & 0x7F]) in SMALL_ORDER:
        return False
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
        key.verify(bytes.fromhex(signature.value), message)
    except (InvalidSignature, ValueError):  # ValueError: the key is not a point of the curve
        return False
    return True


def public_key_in(name: str, path: str | Path) -> str:
    """The public key (hexadecimal) in a file of a public or a private key. Raises InvalidRequest if the file has no
    Ed25519 key, or cryptography is not installed. The message begins with ``name``.
    """
    ed25519, data = _imported(), _read(name, path)
    from cryptography.hazmat.primitives import serialization

    for load in (serialization.load_pem_public_key, serialization.load_ssh_public_key):
        try:
            key = load(data)
        except Exception:  # another form of file, or a damaged one
            continue
        if isinstance(key, ed25519.Ed25519PublicKey):
            return _raw(key)
    return _raw(_private_key(name, path).public_key())


def _private_key(name: str, path: str | Path) -> Ed25519PrivateKey:
    ed25519, data = _imported(), _read(name, path)
    from cryptography.hazmat.primitives import serialization

    for load in (serialization.load_pem_private_key, serialization.load_ssh_private_key):
        try:
            key = load(data, None)
        except Exception:  # another form of file, a password, or a damaged file
            continue
        if isinstance(key, ed25519.Ed25519PrivateKey):
            private: Ed25519PrivateKey = key
            return private
    raise InvalidRequest(f"{name}={brief(str(path))}: has no Ed25519 key: {HOW}")


def _read(name: str, path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_KEY)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{name}={brief(str(path))}: cannot be read: {reason(error)}: {HOW}") from error


def _raw(key: Any) -> str:
    raw: bytes = key.public_bytes_raw()
    return raw.hex()


def _imported() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise InvalidRequest(
            "signatures of receipts need cryptography, which is not installed: pip install 'pellucid[receipts]'"
        ) from None
    return ed25519
