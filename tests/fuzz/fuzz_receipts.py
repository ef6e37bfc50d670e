"""Receipts with absurd fields, lengths and nesting: each is read or refused with one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

from pellucid.errors import PellucidError
from pellucid.receipt_check import check_seals
from pellucid.receipts.receipt import Receipt

SECONDS, MEMORY, SMALL, LONG = 5.0, 4 << 30, 300, 100_000
PLAIN: dict[str, Any] = {
    "version": 1,
    "model": {
        "name": "m", "pellucid": "0.1.0", "weights": "0" * 64, "tokenizer": "0" * 64, "plan": "0" * 64,
        "context": 512, "precise": False, "kv_cache": None,
    },
    "request": {
        "prompt": [1, 2], "options": {"temperature": 0.8}, "max_new_tokens": 1, "seed": "3", "sequence": 0,
        "edits": [{"where": "embed", "factor": "1.0", "value": None, "values": None}],
    },
    "tokens": [5],
    "finish_reason": "length",
    "stop_reason": None,
    "text": "0" * 64,
    "links": "AAAAAAAAAAAAAAAAAAAAAA==",
    "end": "0" * 64,
    "signature": {"public_key": "0" * 64, "value": "0" * 128},
}  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 1 << 31, 1 << 63, 1 << 200, 0.5, 1e308, "", "a" * 10_000, "0" * 64, "AAAA", "=", [], {},
    [[]] * 50, {"a": {"a": {}}}, "\ud800", "-inf", "1e999",
)  # fmt: skip


def case(random: Random, folder: Path) -> str | None:
    """Read a file with a few replaced, removed or added values."""
    value = copy.deepcopy(PLAIN)
    for _ in range(random.randrange(4)):
        place = random.choice([value, value["model"], value["request"], value["signature"]])
        if isinstance(place, dict):
            name = random.choice([*place, "more"])
            place[name] = random.choice(VALUES)
            if random.random() < 0.2:
                del place[name]
        if not all(isinstance(value.get(name), dict) for name in ("model", "request", "signature")):
            break
    if random.random() < 0.1 and isinstance(value.get("request"), dict):
        deep: Any = 1
        for _ in range(random.choice((50, 400, 900))):
            deep = [deep]
        value["request"]["options"] = {"json_schema": deep}
    text = json.dumps(random.choice((value, value, {"receipt": value}, {"choices": [{"receipt": value}]}, [value])))
    raw = bytearray(text.encode())
    for _ in range(random.choice((0, 0, 0, 1, 3))):
        raw[random.randrange(len(raw))] = random.randrange(256)
    path = folder / "receipt.json"
    path.write_bytes(bytes(raw))
    try:
        receipt = Receipt.open(path)
        repr(receipt)
        found = check_seals(receipt)
        if found is None or found.equal:
            return "a receipt without a run has valid seals"
    except PellucidError as error:
        if len(str(error).splitlines()) != 1:
            return f"an error of several lines: {error!r}"
    return None
