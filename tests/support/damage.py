"""Random damage to model files: arbitrary bytes, the tables of GGUF and safetensors, the structure of JSON.

A change takes a random generator and a file's contents and returns new contents. It leaves contents unchanged that it
cannot parse. ``CHANGES`` lists all changes by file kind.
"""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from support.model_files import safetensors_raw
from support.tiny import llama_config

VOCABULARY = 320  # tokens of the models to damage
EXTREMES = [0, 1, 2, 31, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53]
EXTREMES += [2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]


def parted(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


# Arbitrary bytes.


def _bits(random: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8, 64])):
        if changed:
            changed[_place(random, len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _place(random: Random, size: int) -> int:
    """A random position, mostly near the beginning, where the tables are."""
    return (
        random.randrange(size)
        if random.random() < 0.3
        else random.randrange(min(size, random.choice([64, 600, 12000])))
    )


def _cut(random: Random, content: bytes) -> bytes:
    return content[: _place(random, len(content))] if content else content


def _longer(random: Random, content: bytes) -> bytes:
    return content + random.choice([b"\0", b" ", b"\0" * 31, random.randbytes(100), content[:1000]])


def _number(random: Random, content: bytes) -> bytes:
    size = random.choice([1, 2, 4, 8])
    if len(content) < size:
        return content
    at = _place(random, len(content) - size + 1)
    value = random.choice(EXTREMES) + random.choice([-1, 0, 0, 1])
    return content[:at] + (value % 256**size).to_bytes(size, "little") + content[at + size :]


def _moved(random: Random, content: bytes) -> bytes:
    """Duplicate, remove or move a range of bytes."""
    if len(content) < 64:
        return content
    start, size = _place(random, len(content) - 32), random.choice([1, 4, 8, 24, 32])
    piece, at = content[start : start + size], _place(random, len(content))
    without = content[:start] + content[start + size :]
    return random.choice([content[:at] + piece + content[at:], without, without[:at] + piece + without[at:]])


# GGUF: the entries of its tables.


def _entries(content: bytes) -> tuple[list[bytes], list[bytes], bytes] | None:
    """Key-value entries, tensor records and the data; None if the file is already damaged."""
    try:
        _, n_tensors, n_keys = struct.unpack_from("<IQQ", content, 4)
        at, keys, tensors = 24, list[bytes](), list[bytes]()
        for _ in range(min(n_keys, 1000)):
            start, at = at, _string(content, at)
            at = _value(content, at + 4, struct.unpack_from("<I", content, at)[0])
            keys.append(content[start:at])
        for _ in range(min(n_tensors, 1000)):
            start, at = at, _string(content, at)
            at += 4 + 8 * min(struct.unpack_from("<I", content, at)[0], 10) + 12
            tensors.append(content[start:at])
    except (struct.error, KeyError, OverflowError):
        return None
    return keys, tensors, content[-(-at // 32) * 32 :]


def _string(content: bytes, at: int) -> int:
    return at + 8 + min(struct.unpack_from("<Q", content, at)[0], len(content))


SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


def _value(content: bytes, at: int, kind: int) -> int:
    if kind == STRING:
        return _string(content, at)
    if kind != ARRAY:
        return at + SIZES[kind]
    inner, count = struct.unpack_from("<IQ", content, at)
    at += 12
    if inner in SIZES:
        return at + SIZES[inner] * min(count, len(content))
    for _ in range(min(count, 10_000)):
        at = _value(content, at, inner)
    return at


def _table(random: Random, content: bytes) -> bytes:
    """Duplicate, remove, shuffle or change entries, or make the counts wrong."""
    found = _entries(content)
    if found is None:
        return content
    keys, tensors, data = found
    entries = random.choice([keys, keys, tensors])
    what = random.choice(["double", "drop", "shuffle", "type", "value", "value", "value", "count"])
    at = random.randrange(len(entries)) if entries else 0
    if what == "shuffle" or not entries:
        random.shuffle(entries)
    elif what == "double":
        entries.insert(random.randrange(len(entries) + 1), entries[at])
    elif what == "drop":
        del entries[at]
    else:
        end = _string(entries[at], 0)
        body = bytearray(entries[at][end:])
        if what == "type" and entries is keys:
            body[:4] = struct.pack("<I", random.choice([*range(14), 2**31]))
        elif what == "value" and entries is keys and random.random() < 0.7:
            body = bytearray(_other_value(random))
        else:  # a dimension, a type, an offset, a number
            place = 4 * random.randrange(max(len(body) // 4, 1))
            size = random.choice([4, 8])
            body[place : place + size] = (random.choice(EXTREMES) % 256**size).to_bytes(size, "little")
        entries[at] = entries[at][:end] + bytes(body)
    counts = [len(tensors), len(keys)]
    if what == "count":
        counts[random.randrange(2)] += random.choice([-1, 1, 7])
    head = content[:8] + struct.pack("<QQ", *(count % 2**64 for count in counts)) + b"".join([*keys, *tensors])
    return head + b"\0" * (-len(head) % 32) + data


def _other_value(random: Random) -> bytes:
    """A metadata value of a random type, preceded by the type."""
    kind = random.choice([*SIZES, STRING, ARRAY])
    if kind in SIZES:
        number = random.choice([*EXTREMES, random.getrandbits(64)])
        return struct.pack("<I", kind) + (number % 256 ** SIZES[kind]).to_bytes(SIZES[kind], "little")
    if kind == STRING:
        text = random.choice([b"", b"llama", b"\xff", b"\x1b[31m\n", "é雨".encode() * 100, b"x" * 5000])
        return struct.pack("<IQ", kind, len(text)) + text
    inner = random.choice([*SIZES, STRING, ARRAY])
    count = random.choice([0, 1, 2, VOCABULARY])
    if inner in SIZES:
        return struct.pack("<IIQ", kind, inner, count) + random.randbytes(count * SIZES[inner])
    each = struct.pack("<Q", 1) + b"x" if inner == STRING else struct.pack("<IQ", 4, 0)
    return struct.pack("<IIQ", kind, inner, count) + each * count


# JSON: a file, or the header of a safetensors file.


def _json(random: Random, content: bytes) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:
        return content
    return json.dumps(_changed(random, value)).encode()


def _digits(random: Random, content: bytes) -> bytes:
    """Replace a number or a letter of the text by a very long number, or half of a surrogate pair."""
    places = [match.span() for match in re.finditer(rb"\d+|[a-z]", content)]
    if not places:
        return content
    start, end = random.choice(places)
    new = random.choice([b"9" * 5000, b"9" * 400, b"1e999999", b"0.1e-5000", b"\\ud800", b"\\udc00x", b"-", b"01"])
    return content[:start] + new + content[end:]


def _header(random: Random, content: bytes) -> bytes:
    try:
        header, data = parted(content)
    except ValueError:
        return content
    return safetensors_raw(_changed(random, header), data)


def _overlapping(random: Random, content: bytes) -> bytes:
    """Move a tensor onto another one, or slightly off its place."""
    try:
        header, data = parted(content)
        one, other = (header[random.choice(list(header))]["data_offsets"] for _ in range(2))
        move = random.choice([0, 0, 4, -4, 128, len(data)])
        one[:] = [int(other[0]) + move, int(other[1]) + move]
    except (ValueError, KeyError, TypeError, IndexError):
        return content
    return safetensors_raw(header, data)


def _changed(random: Random, value: Any) -> Any:
    """A copy of a JSON value with one part changed, removed, renamed or swapped."""
    value = copy.deepcopy(value)
    parent, key = None, None
    at = value
    while isinstance(at, (dict, list)) and at and (parent is None or random.random() < 0.8):
        parent, key = at, random.choice(list(at)) if isinstance(at, dict) else random.randrange(len(at))
        at = at[key]
    if parent is None:
        return _any_json(random)
    what = random.choice(["replace", "replace", "near", "drop", "rename", "swap"])
    if what == "drop":
        del parent[key]
    elif what == "near" and isinstance(at, (int, float)):
        nearby = [at + 1, at - 1, -at, 2 * at, str(at), at * 10**6]
        parent[key] = random.choice(nearby if abs(at) > 1e300 else [*nearby, at / 2, float(at)])
    elif what == "rename" and isinstance(parent, dict):
        parent[random.choice(["", "x" * 3000, "\x1b[31m", "é\ud800", str(key) + " "])] = parent.pop(key)
    elif what == "swap":
        other = random.choice(list(parent)) if isinstance(parent, dict) else random.randrange(len(parent))
        parent[key], parent[other] = parent[other], parent[key]
    else:
        parent[key] = _any_json(random)
    return value


def _any_json(random: Random) -> Any:
    return random.choice(
        [
            *(None, True, False, "", "x", "x" * 2000, "\ud800", "\x1b[2J\n", "llama", "gemma3_text", "bert", [], {}),
            *(0, 1, -1, 3, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 10**400, -(10**30)),
            *(
                [1, 2],
                [[[]]],
                {"a": {"b": []}},
                [None] * 50,
                {"": 0},
                random.choice(EXTREMES),
                -random.choice(EXTREMES),
            ),
            *(random.random(), random.getrandbits(32), "F16", "I64", [0, 2**63], ["a", "b"], "../../etc/passwd"),
        ]
    )


def _config(random: Random, content: bytes) -> bytes:
    """Set a known key of config.json to a random value."""
    try:
        value = json.loads(content)
        value[random.choice([*KNOWN_KEYS, *llama_config()])] = _any_json(random)
    except (ValueError, TypeError, IndexError):
        return content
    return json.dumps(value).encode()


KNOWN_KEYS = ["rope_theta", "rope_scaling", "head_dim", "hidden_act", "bos_token_id", "eos_token_id", "attention_bias"]
KNOWN_KEYS += ["mlp_bias", "sliding_window", "quantization_config", "rope_parameters", "torch_dtype", "layer_types"]

CHANGES: dict[str, list[Callable[[Random, bytes], bytes]]] = {
    "any": [_bits, _cut, _longer, _number, _moved],
    "gguf": [_table] * 10 + [_number] * 3,
    "safetensors": [_header] * 6 + [_overlapping] * 3,
    "json": [_json] * 8 + [_config] * 3 + [_digits] * 2,
}
