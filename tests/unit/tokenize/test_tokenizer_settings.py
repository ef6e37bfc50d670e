"""Every setting of models, added tokens, stages and decoders equals ``tokenizers``, in every way of encoding.

``tests/oracles/settings_oracle.py`` makes the golden.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import fuzzing
from tokenizer_cases import GOLDENS, compiled_calls

from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.compiled_encoder import compiled_encoder

FILES = json.loads((GOLDENS / "settings.json").read_text(encoding="utf-8"))
BYTE_FALLBACK: dict[str, Any] = json.loads((GOLDENS / "tiny_byte_fallback" / "tokenizer.json").read_text())
LLAMA = [*BYTE_FALLBACK["decoder"]["decoders"]]


def load(folder: Path, spec: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return load_tokenizer(folder)


def small(**parts: Any) -> dict[str, Any]:
    """A file with a BPE model of a few pieces and no unknown token."""
    names = ["a", "b", "▁", "▁a", "ab", "<s>", "<0x20>", "<0xC3>", "<0xA9>"]
    model = {"type": "BPE", "vocab": {name: at for at, name in enumerate(names)}, "merges": ["▁ a", "a b"]}
    return {"version": "1.0", "added_tokens": [], "model": model, **parts}


def added(index: int, content: str, **flags: bool) -> dict[str, Any]:
    return {"id": index, "content": content, "special": False, "normalized": False, **flags}


def in_every_way(ours: Tokenizer, text: str, parse: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets; asserts that the plain path, the aligned path and compiled code agree."""
    ids, spans = ours.ids(text, parse), list(ours.spans(text, parse))
    assert [index for index, _, _ in spans] == ids
    run = compiled_encoder(ours)
    if run is not None:
        assert run.lists([text], parse) == [ids]
        columns = run.spans(text, parse)
        assert columns is None or list(zip(*columns)) == spans
    return ids, [(start, stop) for _, start, stop in spans]


@pytest.mark.parametrize("at", range(len(FILES)))
def test_files_are_read_as_tokenizers_reads_them(tmp_path: Path, at: int) -> None:
    file = FILES[at]
    ours = load(tmp_path, file["spec"])
    for text, parse, ids, offsets in file["encoded"]:
        if ids is None:
            with pytest.raises(InvalidRequest, match="no unknown token"):
                ours.encode(text, parse_special=parse)
            continue
        assert in_every_way(ours, text, parse) == (ids, [*map(tuple, offsets)]), text
    for ids, text in file["decoded"]:
        stream = ours.stream(skip_special=False)
        assert ours.decode(ids, skip_special=False) == text, ids
        assert "".join([*map(stream.push, ids), stream.flush()]) == text, ids


@settings(max_examples=100)
@given(seed=st.integers(0, 1 << 64))
def test_all_ways_agree(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    fuzzer = fuzzing.load("tokenizer_models")
    assert fuzzer.case(Random(seed), tmp_path_factory.mktemp("file")) is None


def test_offsets_stay_after_long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A character without a piece is dropped, and shifts the offsets after it, as in ``tokenizers``."""
    ours = load(tmp_path, small())
    before = ours.encode_with_offsets("日a")
    assert (before.ids, before.offsets) == ([0], [(0, 1)])
    calls = compiled_calls(monkeypatch, ours)
    assert ours.encode_with_offsets("日a") == before
    assert calls == ["spans"]


def test_a_normalized_added_token_keeps_its_space(tmp_path: Path) -> None:
    spec = {**BYTE_FALLBACK, "added_tokens": [*BYTE_FALLBACK["added_tokens"], added(999, "<foo>", normalized=True)]}
    ours = load(tmp_path, spec)
    ids = ours.encode("a <foo> b", add_special=False)
    assert ours.id_of("<foo>") in ids
    assert ours.decode(ids) == "a <foo> b"
    assert ours.token_text(ours.id_of("<foo>")) == "<foo>"  # type: ignore[arg-type]


def test_a_leading_byte_that_is_a_space_is_stripped(tmp_path: Path) -> None:
    ours = load(tmp_path, BYTE_FALLBACK)
    space, a = (ours.id_of(name) for name in ("<0x20>", "a"))
    assert ours.decode([space, a]) == "a"  # type: ignore[list-item]
    assert ours.decode([space, space, a]) == " a"  # type: ignore[list-item]
    stream = ours.stream()
    assert [*map(stream.push, [space, space, a])] == ["", " ", "a"]  # type: ignore[list-item]


def test_an_added_token_gets_the_next_free_id(tmp_path: Path) -> None:
    """The ids in the file are ignored, as in ``tokenizers``. The model's own pieces keep their ids."""
    ours = load(tmp_path, small(added_tokens=[added(40, "<foo>"), added(20, "<bar>"), added(1, "b")]))
    assert ours.encode("<bar><foo>b") == [10, 9, 1]
    assert ours.vocab_size == 11


def test_two_added_tokens_of_one_content(tmp_path: Path) -> None:
    """The last entry counts. The token is special if any entry is special."""
    twice = [added(9, "<foo>", special=True), added(12, "<foo>", lstrip=True), added(13, "<bar>")]
    ours = load(tmp_path, small(added_tokens=twice))
    found = ours.encode_with_offsets("a <foo><bar>", parse_special=True)
    assert (found.ids, found.offsets) == ([0, 9, 10], [(0, 1), (1, 7), (7, 12)])
    assert ours.encode("a<foo>") == [0]
    assert ours.decode([0, 9]) == "a"


def test_an_added_token_that_shares_an_id_is_refused(tmp_path: Path) -> None:
    spec = small(added_tokens=[added(9, "<foo>")])
    spec["model"]["vocab"]["<0xA9>"] = 9
    with pytest.raises(FileFormatError, match="'<0xA9>' and '<foo>' share id 9"):
        load(tmp_path, spec)


def test_the_ids_that_stand_for_nothing_are_left_out(tmp_path: Path) -> None:
    spec = small(decoder={"type": "WordPiece", "prefix": "##", "cleanup": False})
    spec["model"]["vocab"]["<0xA9>"] = 11
    ours = load(tmp_path, spec)
    assert ours.decode([9, 0, 10, 1]) == "a b"


def test_a_suffix_marks_the_end_of_a_word(tmp_path: Path) -> None:
    """As in CLIP and GPT-1, the last character of a word is a separate piece."""
    names = ["l", "o", "w", "w</w>", "lo", "low</w>", "<unk>"]
    vocab = {name: at for at, name in enumerate(names)}
    model = {"type": "BPE", "vocab": vocab, "merges": ["l o", "lo w</w>"], "unk_token": "<unk>"}
    spec = small(
        model={**model, "end_of_word_suffix": "</w>"},
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "BPEDecoder", "suffix": "</w>"},
    )
    ours = load(tmp_path, spec)
    ids = ours.encode("low low lowx wow")
    assert ids == [5, 5, 4, 2, 6, 2, 1, 3]
    assert ours.decode(ids) == "low low low<unk>wow"
    stream = ours.stream()
    assert [*map(stream.push, [5, 5])] == ["", "low "]
    assert stream.flush() == "low"


@pytest.mark.parametrize("unknown", [{}, {"unk_token": "<unk>"}, {"unk_token": "<unk>", "fuse_unk": True}])
@pytest.mark.parametrize(("prefix", "suffix"), [("", "</w>"), ("##", ""), ("##", "</w>")])
def test_affixes_are_compiled(tmp_path: Path, prefix: str, suffix: str, unknown: dict[str, Any]) -> None:
    places = [(prefix, ""), ("", ""), (prefix, suffix), ("", suffix)]
    names = ["<unk>", *dict.fromkeys(before + one + after for before, after in places for one in "abé漢")]
    merges = [(f"a{after}", f"{prefix}b{end}") for after in ("",) for end in ("", suffix)]
    merges += [
        (f"{prefix}b", f"{prefix}a{suffix}"),
        (f"{prefix}漢", f"{prefix}é{suffix}"),
        ("ab", f"{prefix}a{suffix}"),
    ]
    merges = [*dict.fromkeys(merges)]
    names += dict.fromkeys(left + right.removeprefix(prefix) for left, right in merges)
    vocab = {name: at for at, name in enumerate(names)}
    model = {"type": "BPE", "vocab": vocab, "merges": merges, **unknown}
    spec = small(
        model=model | {"continuing_subword_prefix": prefix or None, "end_of_word_suffix": suffix or None},
        normalizer={"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        pre_tokenizer={"type": "WhitespaceSplit"},
    )
    ours = load(tmp_path, spec)
    assert compiled_encoder(ours) is not None
    random = Random(1)
    for length in range(60):
        in_every_way(ours, "".join(random.choices("aabbé漢x##<  \t\u3000\n", k=length)), False)


def test_a_byte_level_suffix(tmp_path: Path) -> None:
    spec = json.loads((GOLDENS / "tiny_byte_level" / "tokenizer.json").read_text())
    pieces = [*spec["model"]["vocab"]]
    vocab = {name: at for at, name in enumerate([*pieces, *(f"{one}</w>" for one in pieces if len(one) == 1)])}
    spec["model"] |= {"vocab": vocab, "merges": [], "end_of_word_suffix": "</w>", "ignore_merges": False}
    ours = load(tmp_path, spec | {"added_tokens": spec["added_tokens"][:2], "normalizer": None})
    names = [ours.token_text(index) for index in ours.encode("aé b", add_special=False)]
    assert names == ["a", "Ã", "©</w>", "Ġ", "b</w>"]
    assert in_every_way(ours, "aé b", False)[1] == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4)]


def test_unigram_without_an_unknown_token(tmp_path: Path) -> None:
    model = {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["b", -2.0], ["ab", -1.5]]}
    ours = load(tmp_path, small(model=model))
    assert ours.encode("aab") == [0, 2]
    with pytest.raises(InvalidRequest, match="'x' has no token, and the vocabulary has no unknown token"):
        ours.encode("axb")


DECODERS: list[tuple[list[Any], list[str], list[str]]] = [
    (LLAMA, ["<0x20>", "<0xC3>", "<0xA9>", "▁a"], ["", "", "é", " a", ""]),
    ([*LLAMA[:2]], ["▁a", "<0xC3>", "<0xA9>"], [" a", "", "é", ""]),
    ([LLAMA[3], LLAMA[0]], ["▁a", "b"], [" a", "b", ""]),
    (
        [LLAMA[2], {"type": "Strip", "content": "b", "start": 0, "stop": 1}],
        ["ab", "b", "a", "b"],
        ["a", "b", "ba", "", ""],
    ),
    ([{"type": "BPEDecoder", "suffix": "b"}, LLAMA[1]], ["ab", "<0x20>", "ab"], ["", "a ", "", " a"]),
    ([LLAMA[2], {"type": "BPEDecoder", "suffix": "b"}], ["ab", "ab"], ["", "", "aa"]),
]


@pytest.mark.parametrize(("steps", "names", "parts"), DECODERS)
def test_decoders_stream_what_is_settled(tmp_path: Path, steps: list[Any], names: list[str], parts: list[str]) -> None:
    ours = load(tmp_path, small(decoder={"type": "Sequence", "decoders": steps}))
    ids, stream = [ours.id_of(name) for name in names], ours.stream()
    assert [*map(stream.push, ids), stream.flush()] == parts  # type: ignore[arg-type]
    assert ours.decode(ids) == "".join(parts)  # type: ignore[arg-type]
