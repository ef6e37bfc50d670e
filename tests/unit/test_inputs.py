"""Prompts that are far too long are refused before they are encoded; prompts that fit are never refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from support.tiny import GOLDENS, TINY, opened, write_llama
from support.tokenizer_file import write_tokenizer

from pellucid.engine.encoder_inputs import PROBED, SLACK
from pellucid.engine.inputs import Inputs
from pellucid.errors import ContextOverflow
from pellucid.tokenize import Tokenizer, load_tokenizer

CONTEXT = 128
TOKENIZERS = [folder for folder in sorted((GOLDENS.parent / "tokenize").iterdir()) if folder.is_dir()]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    folder = write_llama(tmp_path / "tiny")
    write_tokenizer(folder)
    with opened(folder) as (checkpoint, model):
        return Inputs(model.spec, load_tokenizer(checkpoint), CONTEXT)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of characters that each call encodes."""
    lengths: list[int] = []
    actual = Tokenizer.encode

    def encode(self: Tokenizer, text: str, **options: bool) -> list[int]:
        lengths.append(len(text))
        return actual(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", encode)
    return lengths


WAYS: dict[str, Callable[[Inputs, str], object]] = {
    "text": lambda inputs, text: inputs.prompt(text),
    "chat": lambda inputs, text: inputs.prompt([{"role": "user", "content": text}]),
    "score": lambda inputs, text: inputs.scored(text, None),
    "score after": lambda inputs, text: inputs.scored(text, "to see"),
    "score a little": lambda inputs, text: inputs.scored("to see", text),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["to see that it rains. ", "a", " ", "\n", "雨", "\ud800"], ids=repr)
def test_ten_megabytes_are_refused_at_once(inputs: Inputs, encoded: list[int], way: str, text: str) -> None:
    with pytest.raises(ContextOverflow, match=r"10,000,\d+ characters, more than 128 tokens; the context is 128"):
        WAYS[way](inputs, (text * 10_000_000)[:10_000_000])
    assert sum(encoded) < 100_000


def test_many_ids_are_refused_before_they_are_looked_at(inputs: Inputs) -> None:
    with pytest.raises(ContextOverflow, match="1,000,000 tokens; the context is 128"):
        inputs.prompt([object()] * 1_000_000)  # type: ignore[list-item]


class Endless(Sequence[int]):
    """A sequence of ids that allows reading the first id only."""

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, at: Any) -> Any:
        assert at == 0
        return 1


@pytest.mark.parametrize(
    "ids", [range(10**9), range(10**30), np.zeros(10**6, np.int64), Endless()], ids=["range", "vast", "row", "own"]
)
def test_ids_of_any_sequence_are_refused_before_a_list_is_made(inputs: Inputs, ids: Any) -> None:
    with pytest.raises(ContextOverflow, match=r"[\d,]+ tokens; the context is 128"):
        inputs.prompt(ids)


@pytest.mark.slow
def test_sentences(encoded: list[int]) -> None:
    with opened(TINY["bert"]) as (_, model):
        tokenizer = load_tokenizer(GOLDENS.parent / "tokenize" / "tiny_wordpiece")
        embedding = replace(model.spec.embedding, vocabulary=tokenizer.vocab_size)
        encoder = Inputs(replace(model.spec, embedding=embedding), tokenizer, 16)
    with pytest.raises(
        ContextOverflow, match=r"10,000,000 characters, more than 16 tokens; the context is 16 tokens: shorten"
    ):
        encoder.sentences(["a fox. " * (10_000_000 // 7) + "a fo"[: 10_000_000 % 7]])
    assert sum(encoded) < 100_000
    assert len(encoder.sentences(["a fox. " * 10_000], truncate=True)[0]) == 16


@pytest.mark.slow
@pytest.mark.parametrize("folder", TOKENIZERS, ids=lambda folder: folder.name)
def test_what_fits_is_never_refused(folder: Path) -> None:
    """Texts with many characters per token: unknown ones, spaces, long words, characters that a normalizer removes."""
    tokenizer = load_tokenizer(folder)
    with opened(TINY["bert"]) as (_, model):
        embedding = replace(model.spec.embedding, vocabulary=tokenizer.vocab_size)
        spec = replace(model.spec, embedding=embedding)
    pieces = ["\u0378", " ", "\n", "x" * 101, "a", "\u200b", "\ufeff", "\x01", "\u0301", "▁", "雨", "the ", "==", "a b"]
    for piece in pieces:
        for end in ("", "<mask> x"):
            text = piece * (3 * (PROBED + SLACK) // len(piece)) + end
            for context in (1, 16):
                try:
                    Inputs(spec, tokenizer, context).sentences([text])
                except ContextOverflow:
                    assert len(tokenizer.encode(text)) > context
