"""The cases of tests/oracles/encoder_tokenizers_oracle.py: tokenizer classes with their vocabulary files."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tokenizer_cases import GOLDENS

from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.compiled_encoder import compiled_encoder

GOLDEN = json.loads((GOLDENS / "classes.json").read_text(encoding="utf-8"))
EVERY = {f"{at} {case['class']}": case for at, case in enumerate(GOLDEN["cases"])}
CASES = {name: case for name, case in EVERY.items() if case["files"]}
FAST = {name: case for name, case in EVERY.items() if "fast" in case}


def contents(name: str) -> bytes:
    """A vocabulary file of the golden."""
    text = GOLDEN["files"][name]
    return base64.b64decode(text) if name.endswith(".model") else text.encode()


def from_files(folder: Path, name: str, **more: Any) -> Tokenizer:
    """The tokenizer of a case, from its vocabulary files; ``more`` are further fields of the config."""
    case = CASES[name]
    for file, source in case["files"].items():
        (folder / file).write_bytes(contents(source))
    return configured(folder, {"tokenizer_class": case["class"], **case["config"], **more})


def configured(folder: Path, config: dict[str, Any]) -> Tokenizer:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def of_class(name: str, at: int = 0) -> str:
    """The name of a case with this class."""
    return [case for case in CASES if case.endswith(f" {name}")][at]


def check(ours: Tokenizer, wanted: dict[str, Any]) -> None:
    """Compare the ids of texts, pairs and a mask, also of compiled code."""
    assert list(map(ours.encode, GOLDEN["texts"])) == wanted["ids"]
    for (first, second), (ids, types) in zip(GOLDEN["pairs"], wanted["pairs"], strict=True):
        pair = ours.encode_pair(first, second)
        if second in ours.decode(ids):  # Blenderbot in Python leaves out the second text
            assert pair.ids == ids
        assert types in (None, pair.type_ids)
    if wanted["mask"]:
        masked = f"one {ours.named_tokens['mask_token']} two."
        assert [ours.encode(masked, parse_special=True), ours.mask_id] == wanted["mask"]
    if (run := compiled_encoder(ours)) is not None:
        assert list(map(ours.post_processor.ids, run.lists(GOLDEN["texts"], False))) == wanted["ids"]
