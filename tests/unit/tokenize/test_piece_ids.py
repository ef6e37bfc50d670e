"""``PieceIds`` is a dictionary of pieces. The cache of large GGUF vocabularies changes no result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.model_files import gguf
from support.strings import string_array

from pellucid.errors import FileFormatError
from pellucid.tokenize import Tokenizer, load_tokenizer, vocabulary
from pellucid.tokenize.stages.decode import byte_alphabet
from pellucid.tokenize.vocabulary import PieceIds
from pellucid.weights.gguf_values import StringArray

COLLIDING = ["plumless", "buckeroo"]
PIECES = st.lists(st.text(max_size=3) | st.sampled_from(COLLIDING), unique=True, min_size=1, max_size=40)


def ids_of(tokens: list[str]) -> PieceIds:
    table = PieceIds.to_cache(tokens)
    assert table is not None
    return PieceIds(tokens, table)


def test_pieces_with_one_hash() -> None:
    assert crc32(COLLIDING[0].encode()) == crc32(COLLIDING[1].encode())
    assert [ids_of(COLLIDING)[one] for one in COLLIDING] == [0, 1]
    assert ids_of(COLLIDING[1:]).get(COLLIDING[0]) is None


def test_many_pieces_with_one_hash_are_not_searched_one_by_one() -> None:
    """A file can have any number of pieces with one hash: colliding words also collide inside longer pieces."""
    pieces = [""]
    for _ in range(4):
        pieces = [piece + word for piece in pieces for word in COLLIDING]
    assert len({crc32(piece.encode()) for piece in pieces}) == 1
    assert PieceIds.to_cache(pieces[: vocabulary.MAX_EQUAL_HASHES]) is not None
    assert PieceIds.to_cache([*pieces, "a", "b"]) is None


@given(PIECES, st.data())
def test_it_is_the_dictionary(tokens: list[str], data: st.DataObject) -> None:
    without = frozenset(data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=3)))
    wanted = {token: index for index, token in enumerate(tokens) if index not in without}
    for asked_for_all in (False, True):
        found = ids_of(tokens).without(frozenset()).without(without)
        if asked_for_all:
            assert dict(found) == wanted == found
            assert [*found.items()] == [*wanted.items()]
        assert len(found) == len(wanted)
        for piece in [*tokens, *COLLIDING, data.draw(st.text(max_size=3)), "\ud800", 7, None]:
            assert found.get(piece) == wanted.get(piece)  # type: ignore[arg-type]
            assert found.get(piece, -1) == wanted.get(piece, -1)  # type: ignore[arg-type]
            assert (piece in found) == (piece in wanted)
        with pytest.raises(KeyError):
            found["not there"]


def test_many_lookups_make_the_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_LOOKUPS", 10)
    read = list[int]()

    class Tokens(list[str]):
        def __iter__(self) -> Iterator[str]:
            read.append(len(self))
            return super().__iter__()

    found, tokens = ids_of([f"p{i}" for i in range(100)]), Tokens(f"p{i}" for i in range(100))
    found = PieceIds(tokens, PieceIds.to_cache([*tokens]) or {})
    read.clear()
    assert [found.get(f"p{i % 10}") for i in range(30)] == [*range(10)] * 3
    assert not read
    assert found["p99"] == 99
    assert [found.get(f"p{i}") for i in range(100)] == [*range(100)]
    assert read == [100]


# ---------------------------------------------------------------- large vocabularies of GGUF files

WORDS = [f"w{i:x}" for i in range(6000)]
TEXTS = ["w1 w2w3  wfff", "<|end|> w10\n\n▁▁ w", "  > ▁a>▁b é日", ""]


def byte_bpe() -> dict[str, Any]:
    letters = [*byte_alphabet()]
    firsts = [(a, b) for a in letters[:90] for b in letters[:90]]
    pieces = ["<|end|>", *letters, *(a + b for a, b in firsts)]
    types = np.array([3] + [1] * (len(pieces) - 1), np.int32)
    merges = [f"{a} {b}" for a, b in firsts]
    fields = {"model": "gpt2", "pre": "gpt-2", "tokens": pieces, "token_type": types, "merges": merges * 2}
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


def sentencepiece() -> dict[str, Any]:
    letters = [*"▁w0123456789abcdef<|end>\n"]
    user = ["  ", "   ", "\n\n"]
    pieces = ["<unk>", "<|end|>", *user, *dict.fromkeys([*letters, ">▁", *WORDS, *("▁" + one for one in WORDS)])]
    types = np.array([2, 3, 4, 4, 4] + [1] * (len(pieces) - 5), np.int8)
    scores = -np.arange(len(pieces), dtype=np.float32)
    fields = {"model": "llama", "tokens": pieces, "token_type": types, "scores": scores, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Tokenizer]:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))

    def load(metadata: dict[str, Any]) -> Tokenizer:
        (tmp_path / "m.gguf").write_bytes(gguf({"general.architecture": "llama", **metadata}, {}))
        return load_tokenizer(tmp_path / "m.gguf")

    return load


@pytest.mark.parametrize("fields", [byte_bpe, sentencepiece])
def test_a_large_vocabulary_from_the_cache_is_the_same(
    load: Callable[[dict[str, Any]], Tokenizer], fields: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    metadata = fields()
    first = load(metadata)
    kept = sorted((tmp_path / "home" / "tokenizers").iterdir())
    second = load(metadata)
    assert kept == sorted((tmp_path / "home" / "tokenizers").iterdir())
    assert isinstance(first.vocabulary.ids, dict)
    assert isinstance(second.vocabulary.ids, PieceIds)
    for text in [*TEXTS, " ".join(WORDS[:300])]:
        for special in (False, True):
            found = [one.encode_with_offsets(text, parse_special=special) for one in (first, second)]
            assert found[0] == found[1]
        ids = first.encode(text)
        assert second.encode(text) == ids
        assert second.decode(ids) == first.decode(ids)
    assert second.vocabulary.types == first.vocabulary.types
    assert second.eos_ids == first.eos_ids
    assert second.vocabulary.tokens == first.vocabulary.tokens
    assert second.vocabulary.ids == first.vocabulary.ids


def test_what_is_cached_is_of_these_very_pieces_and_types(load: Callable[[dict[str, Any]], Tokenizer]) -> None:
    metadata = sentencepiece()
    before = load(metadata)
    types = metadata["tokenizer.ggml.token_type"].copy()
    types[2:4] = 1  # spaces of the text become ▁, and no token consists of spaces
    without = {name: value for name, value in metadata.items() if not name.endswith("token_type")}
    for changed in ({**metadata, "tokenizer.ggml.token_type": types}, without):
        after = load(changed)
        assert isinstance(after.vocabulary.ids, dict)
        assert after.encode("a  b") != before.encode("a  b")
    tokens = metadata["tokenizer.ggml.tokens"]
    swapped = [*tokens[:-2], tokens[-1], tokens[-2]]
    assert load({**metadata, "tokenizer.ggml.tokens": swapped}).vocabulary.ids[tokens[-1]] == len(tokens) - 2
    twice = [*tokens[:-1], tokens[-2]]
    for _ in range(2):
        with pytest.raises(FileFormatError, match="listed twice"):
            load({**metadata, "tokenizer.ggml.tokens": twice})


@pytest.mark.parametrize("bad", [0, 7, 300, -1])
def test_unknown_types_are_refused(load: Callable[[dict[str, Any]], Tokenizer], bad: int) -> None:
    metadata = sentencepiece()
    types = metadata["tokenizer.ggml.token_type"].astype(np.int32)
    types[5000] = bad
    with pytest.raises(FileFormatError, match=f"token 5000 has unknown type {bad}"):
        load({**metadata, "tokenizer.ggml.token_type": types})


def test_scores_that_are_no_numbers_are_named(load: Callable[[dict[str, Any]], Tokenizer]) -> None:
    metadata = sentencepiece()
    scores = metadata["tokenizer.ggml.scores"].copy()
    scores[4321] = np.nan
    with pytest.raises(FileFormatError, match="entry 4321 is nan, not a finite number"):
        load({**metadata, "tokenizer.ggml.scores": scores})


def test_what_is_cached_is_of_these_very_merges_and_kinds(load: Callable[[dict[str, Any]], Tokenizer]) -> None:
    metadata, text = byte_bpe(), "ABBA"
    first = load(metadata)
    merges = metadata["tokenizer.ggml.merges"]
    assert load({**metadata, "tokenizer.ggml.merges": merges[::-1]}).encode(text) != first.encode(text)
    types = metadata["tokenizer.ggml.token_type"].copy()
    types[first.encode("AB")] = 3
    assert load({**metadata, "tokenizer.ggml.token_type": types}).encode("AB") != first.encode("AB")
    metadata = {**sentencepiece(), "tokenizer.ggml.merges": [f"w {one[1:]}" for one in WORDS[:16]]}
    for _ in range(2):  # the piece of two spaces is ▁▁ in the first model and spaces in the other
        assert load(metadata).vocabulary.tokens[2] == "▁▁"
        gemma = load({**metadata, "tokenizer.ggml.model": "gemma4"})
        assert gemma.vocabulary.tokens[2] == "  "
        assert gemma.vocabulary.ids["  "] == 2
        assert "▁▁" not in gemma.vocabulary.ids


def test_a_short_text_makes_no_dictionary(load: Callable[[dict[str, Any]], Tokenizer]) -> None:
    for fields in (byte_bpe(), sentencepiece()):
        load(fields)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StringArray, "__iter__", lambda strings: pytest.fail("all pieces are made"))
            tokenizer = load(fields)
            assert isinstance(tokenizer.vocabulary.ids, PieceIds)
            assert tokenizer.decode(tokenizer.encode("w1 w2>w3"))


@given(st.lists(st.text("a>▁é\0\n", max_size=5), unique=True, max_size=20))
def test_characters_before_spaces(tokens: list[str]) -> None:
    wanted = {one for token in tokens for one, after in pairwise(token) if after == "▁"}
    assert string_array(tokens).before("▁") == wanted


def test_a_length_that_looks_like_a_space_is_none() -> None:
    long = "a" * int.from_bytes("▁".encode(), "little")
    assert string_array([long, "b▁", long]).before("▁") == {"b"}
    assert string_array(["", "▁", "c▁", ""]).before("▁") == {"c"}


def test_scores_of_whole_numbers_stay_whole(load: Callable[[dict[str, Any]], Tokenizer]) -> None:
    metadata = sentencepiece()
    scores = -np.arange(len(metadata["tokenizer.ggml.scores"]), dtype=np.int32)
    tokenizer = load({**metadata, "tokenizer.ggml.scores": scores})
    assert tokenizer.encode("w12 wab") == load(metadata).encode("w12 wab")
    pairs = tokenizer.model.pairs
    assert all(type(pairs.rank(index)) is int for index in range(pairs.size))
