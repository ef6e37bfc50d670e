"""Limits of tokenizers: numbers out of range, rules that multiply text, wrong types; and cases of text positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_cases import BYTE_LEVEL, GOLDENS, from_fields, from_folder

from pellucid.errors import FileFormatError, InvalidRequest, UnsupportedModel
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.compiled_encoder import compiled_encoder


def spec(name: str = "tiny_wordpiece") -> dict[str, Any]:
    made: dict[str, Any] = json.loads((GOLDENS / name / "tokenizer.json").read_text())
    return made


def damaged(folder: Path, name: str = "tiny_byte_level", **changes: Any) -> Tokenizer:
    """A tiny tokenizer with replaced components."""
    (folder / "tokenizer.json").write_text(json.dumps({**spec(name), **changes}))
    return load_tokenizer(folder / "tokenizer.json")


def replacing(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def test_what_rules_make_of_a_text_is_bounded(tmp_path: Path) -> None:
    """Ten rules that double a letter turn it into about a thousand. Every way of encoding refuses the result."""
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    few = damaged(tmp_path, normalizer={"type": "Sequence", "normalizers": [doubling] * 4})
    assert few.encode("a" * 300)
    tokenizer = damaged(tmp_path, normalizer={"type": "Sequence", "normalizers": [doubling] * 10})
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(InvalidRequest, match=r"rules turn 3,000 characters into at least .*; 97,000 are allowed"):
            encode("a" * 3_000)  # type: ignore[operator]
    run = compiled_encoder(tokenizer)
    assert run is not None
    with pytest.raises(InvalidRequest, match="rules turn"):
        run.lists(["a" * 3_000], False)
    added = spec("tiny_byte_level")["added_tokens"][:2]  # they are not normalized
    long = damaged(tmp_path, normalizer={"type": "Prepend", "prepend": "x" * 5_000}, added_tokens=added)
    with pytest.raises(InvalidRequest, match=r"rules turn .* characters into at least 5,001"):
        long.encode("a")
    long = damaged(
        tmp_path, normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 10**6}, added_tokens=added
    )
    for encode in (long.encode, long.encode_with_offsets):
        with pytest.raises(InvalidRequest, match="rules turn"):
            encode("ab" * 50_000)


@pytest.mark.parametrize("kind", ["normalizer", "pre_tokenizer", "post_processor"])
def test_how_many_stages_a_file_has_is_bounded(tmp_path: Path, kind: str) -> None:
    inside, one = {
        "normalizer": ("normalizers", {"type": "Prepend", "prepend": "a"}),
        "pre_tokenizer": ("pretokenizers", {"type": "Digits", "individual_digits": True}),
        "post_processor": ("processors", {"type": "ByteLevel"}),
    }[kind]
    nested: dict[str, Any] = one
    for _ in range(40):
        nested = {"type": "Sequence", inside: [nested]}
    for component in ({"type": "Sequence", inside: [one] * 3_000}, nested):
        with pytest.raises(UnsupportedModel, match=f"{kind} of more than 32 components"):
            damaged(tmp_path, **{kind: component})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.max_input_chars_per_word", 10**20, "is not a whole number from 1 to 2,147,483,647"),
        ("model.vocab.a", "9" * 5000, "JSON"),
        ("normalizer", replacing("(?R)", ""), r"pattern '\(\?R\)': \(\?R is not known"),
        ("normalizer", replacing("(" * 3000 + ")" * 3000, ""), "nested more than 50 deep"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 1 << 40}, "from 1 to 2,147,483,648"),
        ("padding", {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": None}, "Fixed"),
        ("truncation", {"max_length": -1, "stride": 0, "strategy": "LongestFirst"}, "max_length: -1 is not"),
        ("post_processor.sep", ["[SEP]", 0], "the vocabulary has it as 3"),
        ("added_tokens", [{"id": 4, "content": "x" * 10**6}], r"added_tokens\[0\].content: 1,000,000 characters"),
        ("added_tokens", [{"id": 4, "content": "x", "odd": 1}], r"added_tokens\[0\]: field 'odd'"),
        ("pre_tokenizer", {"type": "CharDelimiterSplit", "delimiter": "." * 10_001}, "10,001 characters"),
        (
            "post_processor",
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}] * 33},
            "of more than 32 components",
        ),
    ],
)
def test_numbers_and_patterns_out_of_range(tmp_path: Path, path: str, value: Any, message: str) -> None:
    content = spec()
    inside = content
    *before, last = path.split(".")
    for key in before:
        inside = inside[key]
    inside[last] = value
    text = json.dumps(content).replace(f'"{"9" * 5000}"', "9" * 5000)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises((FileFormatError, UnsupportedModel), match=message) as refused:
        from_folder(tmp_path)
    assert len(str(refused.value)) < 400
    assert str(refused.value).count("added_tokens[0]") < 2


@pytest.mark.parametrize("text", [None, 3, b"a", ["a"], ("a", 1)])
def test_what_is_no_text_is_refused(text: Any) -> None:
    plain = from_fields(BYTE_LEVEL)
    calls = [plain.encode, plain.encode_with_offsets, plain.explain, lambda value: plain.encode_batch([value])]
    for call in (*calls, lambda value: plain.encode_arrays([value])):
        with pytest.raises(InvalidRequest, match="must be a text"):
            call(text)
    for texts in ("abc", None):
        with pytest.raises(InvalidRequest, match="must be a list of texts"):
            plain.encode_batch(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", ["a", True, None, 1.0, -1, 258, 10**400])
def test_what_is_no_id_is_refused(index: Any) -> None:
    plain = from_fields(BYTE_LEVEL)
    for call in (plain.token_text, plain.token_bytes, plain.is_special, lambda value: plain.decode([value])):
        with pytest.raises(InvalidRequest, match=r"token id .*(must be|outside)"):
            call(index)
    assert plain.decode(np.array([256, 66])) == plain.decode([256, 66])  # type: ignore[arg-type]


def test_offsets_beside_surrogates_count_the_text_as_it_came() -> None:
    plain = from_fields({**BYTE_LEVEL, "pre": "llama-bpe"})
    text = "a\ud83d\ude00b\udc00\ud83d c"
    found = plain.encode_with_offsets(text).tokens
    stops = [(token.start, token.end) for token in found]
    assert stops[0] == (0, 1)
    assert set(stops[1:5]) == {(1, 3)}  # four bytes of one character, which is a surrogate pair in the text
    assert stops[5] == (3, 4)
    assert set(stops[6:9]) == {(4, 5)}
    assert set(stops[9:12]) == {(5, 6)}
    assert stops[-2:] == [(6, 7), (7, 8)]
    assert plain.encode(text) == plain.encode("a😀b\ufffd\ufffd c")


def test_added_tokens_are_looked_for_as_the_normalizer_writes_them(tmp_path: Path) -> None:
    token = {"id": 419, "content": "FooBar", "special": False, "normalized": True}
    added = [*spec("tiny_byte_level")["added_tokens"][:2], {**token, "id": 420}]
    tokenizer = damaged(tmp_path, normalizer={"type": "Lowercase"}, added_tokens=added)
    assert 420 in tokenizer.encode("a FOObar b")
    assert 420 in tokenizer.encode("a foobar b")
    with pytest.raises(FileFormatError, match="the normalizer leaves nothing of 'FooBar'"):
        damaged(tmp_path, normalizer=replacing("[A-z]+", ""), added_tokens=added)


def test_a_stage_after_byte_level_may_cut_within_characters(tmp_path: Path) -> None:
    """After ByteLevel the text is spelled in bytes, and some letters for bytes are digits: two bytes of "Ⲳ" are "²".

    tokenizers 0.23.3 gives the same ids and offsets.
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": False}
    three = {"type": "Split", "pattern": {"Regex": "[0-9]{3}"}, "behavior": "Isolated", "invert": False}
    made = damaged(tmp_path, pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, level, three]})
    assert [piece.text for piece, _ in made.pre_tokens("a 12345", False)] == ["a", " ", "123", "45"]
    made = damaged(tmp_path, normalizer=None, pre_tokenizer={"type": "Sequence", "pretokenizers": [level, digits]})
    found = made.encode_with_offsets("a Ⲳ12 ²", add_special=False)
    assert found.ids == made.encode("a Ⲳ12 ²", add_special=False) == [66, 325, 112, 112, 408, 419, 112]
    assert found.offsets == [(0, 1), (1, 3), (2, 3), (2, 3), (3, 5), (5, 7), (6, 7)]


def test_what_stands_where_the_text_begins_is_prefixed(tmp_path: Path) -> None:
    """The first character is not prefixed if the normalizer has dropped characters before it."""
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    dropping = {"type": "Replace", "pattern": {"String": "x"}, "content": ""}
    made = damaged(tmp_path, "tiny_unigram_bytes", normalizer=dropping, pre_tokenizer=space)
    ways = [made.encode, lambda text: made.encode_with_offsets(text).ids]
    run = compiled_encoder(made)
    assert run is not None
    for encode in (*ways, lambda text: run.lists([text], False)[0]):
        assert made.token_text(encode("axb")[0]).startswith("▁")
        assert not made.token_text(encode("xab")[0]).startswith("▁")
    texts = ["axb", "xab", "", "é", "!a", "axb"]
    assert run.lists(texts, False) == [made.ids(text, False) for text in texts]


def test_a_text_that_the_pre_tokenizer_makes_much_longer_is_encoded_by_python(tmp_path: Path) -> None:
    """The compiled stages leave only this text of the batch to Python."""
    longer = {"type": "Metaspace", "replacement": "▁" * 8, "prepend_scheme": "never", "split": True}
    made = damaged(tmp_path, "tiny_unigram_bytes", pre_tokenizer=longer)
    run = compiled_encoder(made)
    assert run is not None
    texts = ["a " * 400, "a" * 5000, "b"]
    assert run.lists(texts, False) == [made.ids(text, False) for text in texts]
