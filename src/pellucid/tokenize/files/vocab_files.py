"""Vocabularies without a ``tokenizer.json``: ``vocab.txt``, and ``vocab.json`` with ``merges.txt``.

These files have only pieces and merges. The other components follow from the tokenizer class in
``tokenizer_config.json``. The functions of this file return all components in the format of ``tokenizer.json``, so that
one reader builds every tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.tokenize.files.sidecar import Json, Sidecar, read_json
from pellucid.tokenize.patterns import published
from pellucid.tokenize.vocabulary import distinct_ids


def read_vocab_txt(path: Path, sidecar: Sidecar) -> Json:
    """Reads ``vocab.txt``: BERT's pieces, one per line."""
    config = sidecar.config
    if config.get("do_basic_tokenize", True) is not True or config.get("never_split"):
        raise UnsupportedModel(
            "tokenizer_config.json: do_basic_tokenize=false and never_split are not implemented"
        )
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    tokens = lines[:-1] if lines[-1] == "" else lines
    if not tokens:
        raise FileFormatError(path, "vocab.txt", "the vocabulary is empty")
    vocab = distinct_ids(tokens, path, "vocab.txt")
    names = {
        key: sidecar.named.get(f"{key}_token", f"[{key.upper()}]")
        for key in ("unk", "sep", "pad", "cls", "mask")
    }
    for key in ("unk", "sep", "cls"):
        if names[key] not in vocab:
            raise FileFormatError(path, f"{key}_token", f"{brief(names[key])} is not in the vocabulary")
    added = {token["content"]: token for token in sidecar.added_to(vocab)}
    for name in names.values():
        if name in vocab:
            added.setdefault(name, {"id": vocab[name], "content": name, "special": True})
    return {
        "added_tokens": list(added.values()),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
            "strip_accents": config.get("strip_accents"),
            "lowercase": bool(config.get("do_lower_case", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            **{key: [names[key], vocab[names[key]]] for key in ("cls", "sep")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": names["unk"]},
    }


def read_vocab_json(folder: Path, sidecar: Sidecar) -> Json:
    """Reads ``vocab.json`` and ``merges.txt``: byte-level BPE, by default with GPT-2's components."""
    vocab = dict(read_json(folder / "vocab.json"))
    lines = _text(folder / "merges.txt").split("\n")
    pairs = [line for line in lines if line and not line.startswith("#version")]
    stages = _byte_level(sidecar, vocab, folder)
    return {
        "added_tokens": sidecar.added_to(vocab),
        **stages,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
    }


def _byte_level(sidecar: Sidecar, vocab: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The components around the model, for a tokenizer class of ``transformers``."""
    kind = sidecar.kind or "GPT2Tokenizer"
    level = {"type": "ByteLevel", "add_prefix_space": bool(sidecar.config.get("add_prefix_space", False))}
    if kind in ("GPT2Tokenizer", "PreTrainedTokenizer"):
        return {"pre_tokenizer": level, "post_processor": {**level, "trim_offsets": False}}
    if kind in ("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer"):
        tokens = {
            key: sidecar.named.get(f"{key}_token", default)
            for key, default in (("cls", "<s>"), ("sep", "</s>"))
        }
        for token in tokens.values():
            if token not in vocab:
                raise FileFormatError(
                    folder / "vocab.json", repr(token), "not in the vocabulary, but must be put around texts"
                )
        around = {key: [token, vocab[token]] for key, token in tokens.items()}
        space = {"trim_offsets": True, "add_prefix_space": level["add_prefix_space"]}
        return {"pre_tokenizer": level, "post_processor": {"type": "RobertaProcessing", **around, **space}}
    if kind == "Qwen2Tokenizer":
        return {"normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level_split(published.QWEN2)}
    raise UnsupportedModel(
        f"{folder.name}: vocab.json and merges.txt of a {kind} are not implemented; known are GPT2Tokenizer, "
        "RobertaTokenizer, BartTokenizer, LongformerTokenizer, Qwen2Tokenizer: convert it to tokenizer.json"
    )


def byte_level_split(pattern: str) -> Json:
    """The pre-tokenizer that splits at the matches of a pattern, for byte-level BPE."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {"type": "ByteLevel", "use_regex": False}]}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as bad:
        raise FileFormatError(path, "text", "not UTF-8", bad.start) from None
