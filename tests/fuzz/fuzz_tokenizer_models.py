"""Small random files ``tokenizer.json``: every setting of models, added tokens, stages and decoders.

The plain path, the aligned path and compiled code must agree, also after long texts. Streamed ids must detokenize to
the text of all ids together. If Hugging Face ``tokenizers`` is installed, its ids, offsets and texts must be equal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from pellucid.errors import InvalidRequest, PellucidError
from pellucid.kernels.core.library import shared
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.compiled_encoder import STAGE_KERNELS, compiled_encoder
from pellucid.tokenize.stages.decode import byte_alphabet

os.environ["RUST_BACKTRACE"] = "0"
try:
    import tokenizers
except ImportError:
    tokenizers = None

SECONDS, MEMORY, SMALL, LONG = 5.0, 8 << 30, 200, 20_000
LETTERS = ["a", "b", "c", "A", " ", "é", "日", "本", "😀", "▁", "\n"]
ADDED = ["<foo>", "<Bar>", "ab", "A", "日", "foo bar", "▁a", "é", "b", "<s>", "<|é|>"]
TEXTS, COMPILED = 6, 0.5  # texts of a file; share of the files that compiled code encodes too

NORMALIZERS: list[Any] = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Lowercase"},
    {"type": "NFD"},
    {"type": "NFC"},
    {"type": "StripAccents"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Replace", "pattern": {"Regex": "[ ▁]+"}, "content": " "},
]
PRE_TOKENIZERS: list[Any] = [
    {"type": "Whitespace"},
    {"type": "WhitespaceSplit"},
    {"type": "BertPreTokenizer"},
    {"type": "Digits", "individual_digits": True},
    {"type": "Split", "pattern": {"String": "b"}, "behavior": "MergedWithPrevious", "invert": False},
    *(
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
        for scheme in ("always", "first", "never")
        for split in (False, True)
    ),
]
DECODERS: list[Any] = [
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Fuse"},
    *({"type": "Strip", "content": " ", "start": start, "stop": 0} for start in (1, 2)),
    {"type": "Strip", "content": "a", "start": 0, "stop": 1},
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "Replace", "pattern": {"String": "ab"}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": "[a ]+"}, "content": "b"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
    *({"type": "WordPiece", "prefix": "##", "cleanup": cleanup} for cleanup in (False, True)),
    {"type": "BPEDecoder", "suffix": "</w>"},
]
LLAMA = [DECODERS[6], DECODERS[1], DECODERS[2], DECODERS[4]]


def prepare(folder: Path) -> None:
    """Compile the kernels, which takes longer than the limit of a case."""
    for seed in range(60):
        ours = _loaded(folder, spec(Random(seed)))
        if isinstance(ours, Tokenizer) and ours.model.kernel is not None:
            shared().load([ours.model.kernel, *STAGE_KERNELS])


def case(random: Random, folder: Path) -> str | None:
    made = spec(random)
    ours = _loaded(folder, made)
    if not isinstance(ours, Tokenizer):
        return _unfit(ours)
    theirs = None if _is_ambiguous(ours, made) else _theirs(json.dumps(made))
    compiled = compiled_encoder(ours) if random.random() < COMPILED else None
    for _ in range(TEXTS):
        text = text_of(random)
        problem = _encoded(ours, compiled, theirs, text, random.random() < 0.7)
        if problem:
            return f"{problem} of {text!r}"
    for _ in range(TEXTS):
        ids = [random.randrange(ours.vocab_size) for _ in range(random.randint(0, 6))]
        if problem := _decoded(ours, theirs, ids, random.random() < 0.5):
            return f"{problem} of {ids}: {[ours.token_text(index) for index in ids]}"
    return None


def text_of(random: Random) -> str:
    """A text of letters and added tokens."""
    return "".join(random.choice([*LETTERS, *ADDED]) for _ in range(random.randint(0, 9)))


def spec(random: Random) -> dict[str, Any]:
    """The contents of a ``tokenizer.json``."""
    model = random.choice([_bpe, _bpe, _bpe, _byte_bpe, _unigram, _words, _wordpiece])(random)
    vocab = model["vocab"]
    names = [name for name, _ in vocab] if isinstance(vocab, list) else [*vocab]
    byte_level = "Ġ" in names
    pre: list[Any] = [random.choice(PRE_TOKENIZERS) for _ in range(random.choice([0, 0, 1, 1, 2]))]
    if byte_level:
        cut = {"type": "WhitespaceSplit"}
        level = {"type": "ByteLevel", "add_prefix_space": random.random() < 0.5, "use_regex": random.random() < 0.5}
        pre = [cut, {**level, "trim_offsets": False}] if random.random() < 0.3 else [{**level, "trim_offsets": False}]
    elif model["type"] == "WordPiece":
        pre = [PRE_TOKENIZERS[2]]
    normalizers = [random.choice(NORMALIZERS) for _ in range(random.choice([0, 0, 1, 1, 2, 3]))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(random, names),
        "normalizer": _sequence(random, normalizers, "normalizers"),
        "pre_tokenizer": _sequence(random, pre, "pretokenizers"),
        "post_processor": None,
        "decoder": _decoder(random),
        "model": model,
    }


def _sequence(random: Random, parts: Sequence[Any], name: str) -> Any:
    if len(parts) == 1 and random.random() < 0.5:
        return parts[0]
    return {"type": "Sequence", name: list(parts)} if parts else None


def _decoder(random: Random) -> Any:
    kind = random.random()
    if kind < 0.1:
        return None
    if kind < 0.3:
        parts = LLAMA[: random.randint(1, 4)]
    elif kind < 0.5:
        parts = [random.choice(DECODERS)]
    else:
        parts = [random.choice(DECODERS) for _ in range(random.randint(1, 5))]
    return _sequence(random, parts, "decoders")


def _added(random: Random, names: Sequence[str]) -> list[dict[str, Any]]:
    found, index = list[dict[str, Any]](), len(names)
    for _ in range(random.choice([0, 1, 1, 2, 3, 4])):
        content = random.choice([*ADDED, *ADDED, *names[:3]])
        index += random.choice([0, 0, 0, 1, 5])
        flags = {flag: random.random() < 0.25 for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        if flags["special"] and not content.startswith("<"):
            flags["special"] = False  # text never becomes a control token here
        again = next((one for one in found if one["content"] == content), None)
        if again is not None:  # tokenizers keeps what an earlier entry wrote if a later one is not normalized
            flags["normalized"] = again["normalized"]
        where = names.index(content) if content in names else index
        index += content not in names
        found.append({"id": where, "content": content, **flags})
    return found


def _merged(random: Random, pieces: list[str], prefix: str, suffix: str) -> list[list[str]]:
    """Merges of random pieces; their results are appended to the pieces."""
    merges = list[list[str]]()
    for _ in range(random.choice([0, 2, 6, 12])):
        left, right = random.choice(pieces), random.choice(pieces)
        if right.startswith(prefix) and not left.endswith(suffix or "\0") and "<" not in left and "<0" not in right:
            merges.append([left, right])
            pieces += [one for one in (left + right[len(prefix) :],) if one not in pieces]
    return merges


def _bytes(random: Random) -> list[str]:
    values = sorted({byte for letter in LETTERS for byte in letter.encode()})
    kept = random.choice([0.0, 0.0, 0.5, 0.9, 1.0])
    return [f"<0x{value:02X}>" for value in values if random.random() < kept]


def _bpe(random: Random) -> dict[str, Any]:
    prefix, suffix = random.choice(["", "", "", "##"]), random.choice(["", "", "", "</w>"])
    pieces = [letter for letter in LETTERS if random.random() < 0.7] or ["a"]
    pieces += [f"{prefix}{letter}" for letter in pieces] if prefix else []
    pieces += [f"{letter}{suffix}" for letter in pieces] if suffix else []
    merges = _merged(random, pieces, prefix, suffix)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": random.choice([None, "<unk>"]),
        "continuing_subword_prefix": prefix or None,
        "end_of_word_suffix": suffix or None,
        "fuse_unk": random.random() < 0.5,
        "byte_fallback": random.random() < 0.5,
        "ignore_merges": random.random() < 0.2,
        "vocab": _numbered(random, ["<unk>", *_bytes(random), *pieces]),
        "merges": merges,
    }


def _byte_bpe(random: Random) -> dict[str, Any]:
    suffix = random.choice(["", "", "</w>"])
    pieces = [*byte_alphabet()]
    pieces += [f"{letter}{suffix}" for letter in pieces] if suffix else []
    lost = {letter for letter in pieces if not letter.isascii() and random.random() < random.choice([0, 0, 0.02])}
    common = [
        piece for piece in ("a", "b", "Ġ", "Ã", "©", "æ", "Ĺ", "¥", f"a{suffix}", f"b{suffix}") if piece in pieces
    ]
    made = list(dict.fromkeys(common))
    merges = _merged(random, made, "", suffix)
    lost -= {part for merge in merges for part in merge}
    return {
        "type": "BPE",
        "unk_token": random.choice([None, None, "<unk>"]),
        "end_of_word_suffix": suffix or None,
        "ignore_merges": random.random() < 0.2,
        "vocab": _numbered(random, ["<unk>", *(p for p in dict.fromkeys([*pieces, *made]) if p not in lost)]),
        "merges": merges,
    }


def _unigram(random: Random) -> dict[str, Any]:
    pieces = [letter for letter in LETTERS if random.random() < 0.8]
    pieces += ["".join(random.choice(LETTERS) for _ in range(random.randint(2, 3))) for _ in range(6)]
    names = list(dict.fromkeys(["<unk>", *_bytes(random), *pieces]))
    return {
        "type": "Unigram",
        "unk_id": random.choice([0, 0, 0, None]),
        "byte_fallback": random.random() < 0.5,
        "vocab": [[name, -round(random.uniform(0, 9), 1)] for name in names],
    }


def _words(random: Random) -> dict[str, Any]:
    names = list(dict.fromkeys(["<unk>", "a", "ab", "日", "▁", "▁a", "cc", "\n"]))
    random.shuffle(names)
    return {
        "type": "WordLevel",
        "unk_token": random.choice(["<unk>", "<unk>", "<none>"]),
        "vocab": _numbered(random, names),
    }


def _wordpiece(random: Random) -> dict[str, Any]:
    names = [
        "<unk>",
        *(one for letter in LETTERS for one in (letter, f"##{letter}") if random.random() < 0.8),
        "ab",
        "##ab",
    ]
    return {
        "type": "WordPiece",
        "unk_token": "<unk>",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": random.choice([3, 100]),
        "vocab": _numbered(random, list(dict.fromkeys(names))),
    }


def _numbered(random: Random, names: Sequence[str]) -> dict[str, int]:
    """Ids from 0, rarely with a gap."""
    gap = random.randrange(len(names)) if random.random() < 0.1 else len(names)
    return {name: at + 2 * (at > gap) for at, name in enumerate(names)}


def _loaded(folder: Path, spec: Any) -> Tokenizer | PellucidError:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    try:
        return load_tokenizer(path)
    except PellucidError as refused:
        return refused


def _is_ambiguous(ours: Tokenizer, spec: Any) -> bool:
    """True if the normalizer makes two added tokens equal. ``tokenizers`` may find either."""
    contents = {token["content"] for token in spec["added_tokens"] if token["normalized"]}
    return len(contents) > len([*ours.normalized_added])


def _theirs(text: str) -> Any:
    """The tokenizer of ``tokenizers``, or None if it is not installed or refuses the file."""
    return None if tokenizers is None else _quietly(tokenizers.Tokenizer.from_str, text)


def _quietly(call: Any, *arguments: Any, **options: Any) -> Any:
    """Result of a call, or None if it fails. Also catches panics, which are not Exceptions."""
    try:
        return call(*arguments, **options)
    except BaseException as refused:
        if isinstance(refused, KeyboardInterrupt):
            raise
        return None


def _encoded(ours: Tokenizer, compiled: Any, theirs: Any, text: str, parse: bool) -> str | None:
    wanted = None
    if theirs is not None:
        theirs.encode_special_tokens = not parse
        wanted = _quietly(theirs.encode, text)
    try:
        ids, spans = ours.ids(text, parse), list(ours.spans(text, parse))
    except InvalidRequest as refused:
        return f"refused, and not by tokenizers: {refused}" if wanted is not None else _unfit(refused)
    if [index for index, _, _ in spans] != ids:
        return f"ids {ids}, with offsets {spans}"
    if compiled is not None:
        if (found := compiled.lists([text], parse)[0]) != ids:
            return f"{found} by compiled code, {ids} in Python"
        columns = compiled.spans(text, parse)
        if columns is not None and list(zip(*columns)) != spans:
            return f"{list(zip(*columns))} by compiled code, {spans} in Python"
    if theirs is None:
        return None
    if wanted is None:
        return f"encoded, and not by tokenizers: {ids}"
    if wanted.ids != ids:
        return f"ids {ids}, not {wanted.ids}"
    offsets = [(start, stop) for _, start, stop in spans]
    return None if offsets == wanted.offsets else f"offsets {offsets}, not {wanted.offsets} ({wanted.tokens})"


def _decoded(ours: Tokenizer, theirs: Any, ids: list[int], skip: bool) -> str | None:
    text, stream = ours.decode(ids, skip_special=skip), ours.stream(skip_special=skip)
    streamed = "".join([*map(stream.push, ids), stream.flush()])
    if streamed != text:
        return f"{streamed!r} as a stream, {text!r} at once"
    if theirs is None:
        return None
    if skip and set(ids) & ours.vocabulary.special_ids:
        return None  # tokenizers 0.23 shows a control token that a normalizer changes
    wanted = _quietly(theirs.decode, ids, skip_special_tokens=skip)
    return None if wanted in (None, text) or "\ufffd" in wanted else f"decodes to {text!r}, not {wanted!r}"


def _unfit(error: PellucidError) -> str | None:
    message = str(error)
    return f"a message {message[:50]!r}" if "\n" in message or not message or len(message) > 600 else None
