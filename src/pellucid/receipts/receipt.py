"""A receipt: the model, the request and the tokens of a run, and a chain of hashes over the logits of each token.

    h[0]   = SHA-256(header)                           the version, the model, the request
    h[i+1] = SHA-256(h[i], token i, SHA-256(logits i)) logits: the bits of the V float32 numbers, little-endian
    end    = SHA-256(h[n], finish reason, stop reason, SHA-256(text))

A receipt holds the first 8 bytes of each h[i], which locate the first difference, and the whole ``end``, which has all
bits of the run. A signature signs ``end``. The contents of a receipt are not trusted: types, ranges and lengths are
checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, ValidationError, convert, to_builtins
from msgspec.structs import replace

from pellucid.errors import FileFormatError, InvalidRequest, brief, reason
from pellucid.weights.checkpoint import ModelFile
from pellucid.weights.json_files import parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# Signatures of receipts with Ed25519 (RFC 8032), by the package cryptography (decision 55).
#
# Keys are files as OpenSSL and OpenSSH write them:
#
#     openssl genpkey -algorithm ed25519 -out receipt-key.pem
#     openssl pkey -in receipt-key.pem -pubout -out receipt-key.pub
#     ssh-keygen -t ed25519 -N "" -f receipt-key

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


VERSION = 1
LINK = 8  # bytes of each h[i] in a receipt
MAX_BYTES = 64 << 20  # of a file
MAX_TOKENS = 1 << 22
MAX_SEQUENCES = 256
SAFE_INTEGER = 1 << 53  # programs in JavaScript keep integers below this number exact
LABEL = b"pellucid receipt 1\n"

Hash: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Ids: TypeAlias = Annotated[list[Annotated[int, Meta(ge=0, lt=1 << 31)]], Meta(max_length=MAX_TOKENS)]
Name: TypeAlias = Annotated[str, Meta(max_length=256)]
Number: TypeAlias = Annotated[str, Meta(pattern="^(-?inf|-?[0-9][0-9.e+-]*)$", max_length=32)]


class ModelIdentity(Struct, frozen=True, forbid_unknown_fields=True):
    """The hashes (SHA-256) of a model's ``weights``, ``tokenizer`` and ``plan``, and the options that load it.

    ``name`` is the name of the file or folder, and is not compared. ``pellucid`` is the version of Pellucid.
    ``context`` is the context in tokens.
    """

    name: Name
    pellucid: Annotated[str, Meta(max_length=64)]
    weights: Hash
    tokenizer: Hash
    plan: Hash
    context: Annotated[int, Meta(ge=1, le=1 << 31)]
    precise: bool = False
    kv_cache: Name | None = None
    activations: Annotated[int, Meta(ge=8, le=16)] | None = None


class EditRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """An edit in a receipt: ``factor`` * x + values. ``value`` is a single number; ``values`` is the hash of an array.

    Numbers are texts, because JSON has no infinity.
    """

    where: Annotated[str, Meta(max_length=4096)]
    factor: Number
    value: Number | None = None
    values: Hash | None = None


class ReceiptRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A request in a receipt: token ids of the ``prompt`` (of the source in an encoder-decoder), and its options.

    ``options`` are the options that change the tokens. ``max_new_tokens`` is the limit that applied. ``seed`` is a
    decimal number as a text, or None for greedy decoding. ``sequence`` is the number of the answer in its request.
    """

    prompt: Ids
    options: dict[str, Any]
    max_new_tokens: Annotated[int, Meta(ge=1, le=1 << 31)]
    seed: Annotated[str, Meta(pattern="^[0-9]{1,19}$")] | None
    sequence: Annotated[int, Meta(ge=0, lt=MAX_SEQUENCES)] = 0
    edits: Annotated[list[EditRecord], Meta(max_length=4096)] = []


class Receipt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The receipt of a run.

    ``tokens`` are the generated ids. ``finish_reason`` and ``stop_reason`` are as in ``Generation``, ``text`` is the
    SHA-256 of the text. ``links`` are the first bytes of h[0] to h[n], ``end`` is the last hash (module docstring).
    """

    version: Literal[1]
    model: ModelIdentity
    request: ReceiptRequest
    tokens: Ids
    finish_reason: Literal["stop", "length", "time"]
    stop_reason: Annotated[int, Meta(ge=0, lt=1 << 31)] | Annotated[str, Meta(max_length=1 << 20)] | None
    text: Hash
    links: bytes
    end: Hash
    signature: Signature | None = None

    def __repr__(self) -> str:
        signed = "signed" if self.signature else "not signed"
        return (
            f"Receipt({self.model.name!r}, {len(self.request.prompt):,} + {len(self.tokens):,} tokens, {signed}, "
            f"end={self.end[:16]}…)"
        )

    @property
    def header(self) -> bytes:
        """h[0], computed from the receipt's own fields."""
        parts = (self.version, self.model, self.request)
        return hashlib.sha256(LABEL + canonical(to_builtins(parts))).digest()

    @property
    def has_own_header(self) -> bool:
        """False if the model or the request was changed after the receipt was issued."""
        return self.links[:LINK] == self.header[:LINK]

    @property
    def has_valid_signature(self) -> bool:
        """True if the signature is of ``end`` and of its public key. Raises InvalidRequest without cryptography."""
        return self.signature is not None and signature_is_valid(self.signature, _signed(self.end))

    def as_dict(self) -> dict[str, Any]:
        """The receipt for JSON."""
        plain: dict[str, Any] = to_builtins(self)
        return plain

    def as_json(self) -> str:
        """The text of the receipt's file."""
        return json.dumps(self.as_dict()) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the receipt to a JSON file. Raises InvalidRequest if the file cannot be written."""
        try:
            Path(path).write_text(self.as_json(), encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"receipt={brief(str(path))}: cannot be written: {reason(error)}: name another file"
            ) from error

    @classmethod
    def of(cls, value: Any) -> Receipt:
        """Read a receipt from JSON values, such as the field ``receipt`` of an answer.

        Raises:
            InvalidRequest: the value is not a receipt.
        """
        problem = ""
        try:
            receipt = convert(value, cls)
            if receipt.as_dict() != value:
                own = receipt.as_dict()
                other = next((name for name in value if name not in own or own[name] != value[name]), "a field")
                problem = f"{other}: its type or its base64 text is not as a receipt writes it"
            elif len(receipt.links) != LINK * (len(receipt.tokens) + 1):
                problem = f"links has {len(receipt.links):,} bytes for {len(receipt.tokens):,} tokens"
            elif not receipt.tokens:
                problem = "it has no tokens"
            else:
                canonical(receipt.request.options)
        except ValidationError as error:
            problem = str(error)
        except RecursionError:
            problem = "it is nested too deeply"
        except (ValueError, TypeError) as error:  # NaN and infinity
            problem = reason(error)
        if problem:
            raise InvalidRequest(f"receipt: is not a receipt of version {VERSION}: {brief(problem)}")
        return receipt

    @classmethod
    def open(cls, path: str | Path) -> Receipt:
        """Read a receipt from a file, which may also be the answer of a server with one receipt.

        Raises:
            FileFormatError: the file is not a receipt, or is damaged.
        """
        path = Path(path)
        file = ModelFile(path)
        try:
            if file.size > MAX_BYTES:
                raise FileFormatError(path, "file", f"{file.size:,} bytes are above the limit of {MAX_BYTES:,}")
            found = parse_json(path, "file", file.read(0, file.size), 0)
        finally:
            file.close()
        try:
            return cls.of(_receipt_in(path, found))
        except InvalidRequest as error:
            raise FileFormatError(path, "receipt", str(error).removeprefix("receipt: ")) from None


def _receipt_in(path: Path, value: Mapping[str, Any]) -> Any:
    """The receipt in a JSON object: the object itself, or the only receipt of an answer. Raises FileFormatError."""
    if "links" in value:
        return value
    choices = value.get("choices")
    found = [value, *(choices if isinstance(choices, list) else [])]
    receipts = [one["receipt"] for one in found if isinstance(one, Mapping) and one.get("receipt")]
    if len(receipts) != 1:
        raise FileFormatError(path, "receipt", f"{len(receipts):,} receipts: a file must have one")
    return receipts[0]


def link(before: bytes, token: int, digest: bytes) -> bytes:
    """h[i+1] from h[i], token i and the digest of its logits."""
    return hashlib.sha256(before + token.to_bytes(8, "little") + digest).digest()


def end_of(last: bytes, finish_reason: str | None, stop_reason: int | str | None, text: str) -> str:
    return hashlib.sha256(last + canonical([finish_reason, stop_reason, text])).hexdigest()


def text_hash(text: str) -> str:
    """SHA-256 (hexadecimal) of a text. Unpaired surrogates count as U+FFFD."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def issued(draft: Receipt, run: Iterable[tuple[int, bytes]], text: str, signer: Signer | None = None) -> Receipt:
    """The receipt ``draft`` with the tokens and digests of its run, its ``text``, its hashes and a signature."""
    last = draft.header
    links, tokens = [last[:LINK]], list[int]()
    for token, digest in run:
        last = link(last, token, digest)
        links.append(last[:LINK])
        tokens.append(token)
    end = end_of(last, draft.finish_reason, draft.stop_reason, text_hash(text))
    return replace(
        draft,
        tokens=tokens,
        text=text_hash(text),
        links=b"".join(links),
        end=end,
        signature=signer.sign(_signed(end)) if signer else None,
    )


def _signed(end: str) -> bytes:
    return LABEL + bytes.fromhex(end)


def canonical(value: Any) -> bytes:
    """JSON values as bytes that do not depend on the order of keys, white space, or the spelling of numbers.

    Programs in JavaScript write 1.0 as 1, so both have the same bytes. Raises ValueError if a number is NaN or
    infinite.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < SAFE_INTEGER:
        return int(value)
    return value
