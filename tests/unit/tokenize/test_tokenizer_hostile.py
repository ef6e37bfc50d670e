"""Invalid tokenizer files are refused with a message that names the entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import BYTE_LEVEL, GOLDENS, LETTERS, TINY, from_fields, from_folder

from pellucid.errors import FileFormatError, PellucidError, UnsupportedModel
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.files.sidecar import parse_json

SENTENCEPIECE: dict[str, Any] = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "<0x41>"],
    "scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, 0.0],
    "token_type": [2, 3, 3, 1, 1, 1, 6],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}


def test_the_honest_ones_load() -> None:
    assert from_fields(BYTE_LEVEL).encode("ab<|end|>", parse_special=True) == [256, 257]
    assert from_fields(BYTE_LEVEL).eos_ids == {257}
    plain = from_fields(SENTENCEPIECE)
    assert plain.encode("a a") == [1, 5, 5]
    assert plain.encode("éé") == [1, 3, 0]  # no byte tokens for é: unknown, fused
    assert plain.decode([1, 5, 5, 6]) == "a aA"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": None}, FileFormatError, "tokenizer.ggml.model: missing"),
        ({"model": "rwkv"}, UnsupportedModel, "'rwkv' is not known; known are bert, gemma4, gpt2, llama, t5"),
        ({"model": 7}, FileFormatError, "expected str, found int"),
        ({"pre": "nonsense"}, UnsupportedModel, "'nonsense' is not known; known are .*smollm"),
        ({"tokens": None}, FileFormatError, "tokens: missing"),
        ({"tokens": []}, FileFormatError, "types|entries for 0 tokens|empty"),
        ({"tokens": [], "token_type": None}, FileFormatError, "the vocabulary is empty"),
        ({"tokens": [*LETTERS, "a", "z1"]}, FileFormatError, "'a' is listed twice, as ids"),
        ({"tokens": [*LETTERS, "ab", 3]}, FileFormatError, "entry 257 is not a string"),
        ({"tokens": "abc"}, FileFormatError, "expected an array"),
        ({"tokens": ["ab", "a", "b"], "token_type": [1, 1, 1], "eos_token_id": 0}, FileFormatError, "byte 0x20"),
        ({"token_type": [1]}, FileFormatError, "1 entries for 258 tokens"),
        ({"token_type": [*[1] * 257, 9]}, FileFormatError, "token 257 has unknown type 9"),
        ({"merges": None}, FileFormatError, "merges: missing"),
        ({"merges": ["a b", "a  b"]}, FileFormatError, "merge 1, 'a  b', is not two pieces"),
        ({"merges": ["a b", "ab "]}, FileFormatError, "merge 1, 'ab ', has an empty piece"),
        ({"merges": ["a b", "ab q1"]}, FileFormatError, "merge 1, 'ab q1': '.*' is not in the vocabulary"),
        ({"merges": ["a c"]}, FileFormatError, "merge 0, 'a c': 'ac' is not in the vocabulary"),
        ({"eos_token_id": 258}, FileFormatError, "eos_token_id: 258 is outside the vocabulary of 258 tokens"),
        ({"bos_token_id": -1}, FileFormatError, "bos_token_id: -1 is outside"),
        ({"add_bos_token": True}, FileFormatError, "add_bos_token: set, but bos_token_id is missing"),
        ({"add_bos_token": "yes"}, FileFormatError, "expected bool, found str"),
    ],
)
def test_byte_level_gguf(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_fields({**BYTE_LEVEL, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": None}, "scores: missing"),
        ({"scores": [0.0]}, "1 entries for 7 tokens"),
        ({"scores": [*[0.0] * 6, float("nan")]}, "entry 6 is nan"),
        ({"scores": [*[0.0] * 6, float("inf")]}, "entry 6 is inf"),
        ({"tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "41"]}, "byte token 6 is called '41'"),
    ],
)
def test_sentencepiece_gguf(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        from_fields({**SENTENCEPIECE, **change})


def test_text_never_merges_into_a_control_token() -> None:
    fields = {**BYTE_LEVEL, "tokens": [*LETTERS, "<|", "<|>"], "merges": ["< |", "<| >"]}
    assert from_fields(fields).encode("<|>") == [256, LETTERS.index(">")]
    fields = {**SENTENCEPIECE, "tokens": ["<unk>", "a▁a", "</s>", "▁", "a", "▁a", "<0x41>"], "add_space_prefix": False}
    assert 1 not in from_fields({**fields, "add_bos_token": False}).encode("a a")


def test_bos_and_eos_follow_the_file() -> None:
    fields = {**BYTE_LEVEL, "bos_token_id": 256}
    assert from_fields(fields).encode("c") == [LETTERS.index("c")]
    assert from_fields({**fields, "add_bos_token": True}).encode("c") == [256, LETTERS.index("c")]
    assert from_fields({**fields, "add_eos_token": True}).encode("c") == [LETTERS.index("c"), 257]
    assert from_fields({**fields, "pre": "llama-bpe"}).encode("c") == [256, LETTERS.index("c")]


def spec(name: str = "tiny_wordpiece") -> dict[str, Any]:
    return json.loads((GOLDENS / name / "tokenizer.json").read_text())


def load(folder: Path, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "tokenizer.json").write_text(text)
    from_folder(folder)


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        ("surprise", 1, UnsupportedModel, "field 'surprise' is not implemented"),
        ("normalizer.type", "ByteLevel", UnsupportedModel, "normalizer 'ByteLevel' is not implemented; known are"),
        ("normalizer.extra", 1, UnsupportedModel, "field 'extra' is not implemented"),
        ("pre_tokenizer.type", "UnicodeScripts", UnsupportedModel, "pre_tokenizer 'UnicodeScripts'"),
        ("post_processor.type", "X", UnsupportedModel, "post_processor 'X'"),
        ("post_processor.cls", ["[NO]", 1], FileFormatError, r"'\[NO\]' is not in the vocabulary"),
        ("decoder.type", "CTC", UnsupportedModel, "decoder 'CTC'"),
        ("decoder", 3, FileFormatError, "decoder: expected an object"),
        ("model.type", "Bigram", UnsupportedModel, "model type 'Bigram' is not implemented; known are"),
        ("model.unk_token", "[NO]", FileFormatError, "model.unk_token: '.NO.' is not in the vocabulary"),
        ("model.dropout", 0.5, UnsupportedModel, "field 'dropout' is not implemented"),
        ("model.vocab", {}, FileFormatError, "the vocabulary is empty"),
        ("model.vocab.a", 10**12, FileFormatError, "the id of 'a', 1000000000000, is out of range"),
        ("model.vocab.a", -3, FileFormatError, "the id of 'a', -3, is out of range"),
        ("model.vocab.a", 1.5, FileFormatError, "the id of 'a' is 1.5"),
        ("model.vocab.a", 0, FileFormatError, "share id 0"),
        ("added_tokens", [{"id": 1}], FileFormatError, r"added_tokens\[0\]"),
        ("added_tokens", [{"id": 9, "content": "[PAD]"}], FileFormatError, "has another id"),
    ],
)
def test_tokenizer_json(tmp_path: Path, path: str, value: Any, error: type[Exception], message: str) -> None:
    content = spec()
    *folders, last = path.split(".")
    inside = content
    for name in folders:
        inside = inside[name]
    inside[last] = value
    with pytest.raises(error, match=message):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "expected an object, found list"),
        ('{"model": {"type": "BPE"}, "model": 1}', "'model' is listed twice"),
        ("[" * 100_000, "recursion"),
        ("{}", "model.type: missing"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        load(tmp_path, text)


def test_merges_of_tokenizer_json(tmp_path: Path) -> None:
    content = spec("tiny_byte_level")
    content["model"]["merges"][3] = ["a", "nonsense"]
    with pytest.raises(FileFormatError, match=r"merge 3, .*'nonsense'.* is not in the vocabulary"):
        load(tmp_path, content)
    content = spec("tiny_byte_level")
    content["model"]["end_of_word_suffix"] = 3
    with pytest.raises(FileFormatError, match="end_of_word_suffix: expected a string, found 3"):
        load(tmp_path, content)
    content["model"] |= {"end_of_word_suffix": None, "continuing_subword_prefix": "##", "dropout": 0.1}
    with pytest.raises(UnsupportedModel, match=r"dropout=0\.1 is not implemented"):
        load(tmp_path, content)


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    content = spec("tiny_byte_level")
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(["}
    with pytest.raises(UnsupportedModel, match=r"pattern '\(\[': a set ends too early"):
        load(tmp_path, content)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [-2, 1 << 20, "1", True, [1, 1 << 20]])
def test_token_ids_of_generation_config(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(FileFormatError, match=rf"generation_config.json: {key}: is .*; it must be a token id"):
        load(tmp_path, spec())


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"known are tokenizer.json, vocab.json with"):
        from_folder(tmp_path)


def places(inside: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document, limited to the first entries of long tables."""
    items = inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
    found = [path] if path else []
    for key, value in list(items)[:5]:
        found += places(value, (*path, key))
    return found


def check_refused_or_harmless(read: Callable[[], Tokenizer]) -> None:
    """Assert that a tokenizer is refused in one line, or encodes a text to ids of its vocabulary."""
    try:
        tokenizer = read()
        ids = tokenizer.encode("a b")
    except PellucidError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(0 <= id < tokenizer.vocab_size for id in ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_any_damage_is_refused_or_harmless(tmp_path: Path, name: str) -> None:
    """Remove each value or change its type: the file is refused with a Pellucid error, or the tokenizer works."""
    for path in places(spec(name)):
        for wrong in ("gone", None, -1, 10**30, "x", [], {}, [[]], {"type": "Sequence"}):
            content = inside = spec(name)
            for key in path[:-1]:
                inside = inside[key]
            if wrong == "gone":
                del inside[path[-1]]
            else:
                inside[path[-1]] = wrong
            (tmp_path / "tokenizer.json").write_text(json.dumps(content))
            check_refused_or_harmless(lambda: from_folder(tmp_path))


@pytest.mark.parametrize("fields", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte_level", "sentencepiece"])
def test_any_damage_to_gguf_fields_is_refused_or_harmless(fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        wrongs: list[Any] = [None, -1, 10**30, "x", [], [[]], 1.5, True, {}, b"x"]
        if isinstance(value, list):
            wrongs += [[*value[:-1], wrong] for wrong in (None, -1, 10**30, "x", [], 1.5, "")]
        for wrong in wrongs:
            check_refused_or_harmless(lambda made={**fields, key: wrong}: from_fields(made))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "9" * 5000 + "}", "JSON: Exceeds the limit"),
        ('{"a": "\\ud800"}', r"JSON: '\\ud800' is half of a character"),
        ('{"\\uDC00": 1}', r"JSON: '\\udc00' is half of a character"),
    ],
)
def test_json_that_no_other_reader_takes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_characters_may_be_written_as_surrogate_pairs() -> None:
    assert parse_json(rb'{"a": "\ud83d\ude00", "b": "\\ud800"}', Path("x")) == {"a": "😀", "b": r"\ud800"}


def test_a_score_that_no_float_holds(tmp_path: Path) -> None:
    spec = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -(10**400)]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(FileFormatError, match=r"model.vocab\[1\]: the score of 'a' is .*, not a finite number"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_message_does_not_grow_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}, "x" * 5000: 1}))
    for error in (FileFormatError, UnsupportedModel):
        made = error("x" * 2000) if error is UnsupportedModel else error("p", "f", "x" * 2000)
        assert len(str(made)) == 600
    with pytest.raises((FileFormatError, UnsupportedModel)) as caught:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert len(str(caught.value)) <= 500
