"""Ids equal to those of Hugging Face tokenizers (tests/oracles/tokenizers_oracle.py)."""

from __future__ import annotations

import pytest
from tokenizer_cases import BOTH, golden, tokenizer

from pellucid.tokenize import base


@pytest.mark.parametrize("name", BOTH)
def test_ids_equal_the_oracle(name: str, texts: list[str]) -> None:
    expected, ours = golden(name), tokenizer(name)
    for index, text in enumerate(texts):
        assert ours.encode(text) == expected["ids"][index], (index, text)
        parsed = expected["special"].get(str(index), expected["ids"][index])
        assert ours.encode(text, parse_special=True) == parsed, (index, text)


@pytest.mark.model
def test_compiled_code_has_the_same_ids(texts: list[str]) -> None:
    ours, expected = tokenizer("smollm2"), golden("smollm2")
    run = ours._compiled
    assert run is not None
    for index, text in enumerate(texts):
        if not ours.added.split(text, False)[1:]:  # without the added tokens that are text, cut out before
            assert run(text) == expected["ids"][index], (index, text)


def test_compiled_code_takes_over_once_it_pays() -> None:
    text, ours = "it's 12 naïve words\n", tokenizer("tiny_byte_level")
    before, long = ours.encode(text, add_special=False), text * (base.COMPILES // len(text))
    ours.encode(long)
    assert "_compiled" in ours.__dict__
    assert ours.encode(text, add_special=False) == before


@pytest.mark.parametrize("name", BOTH)
def test_control_tokens_come_only_from_the_post_processor(name: str, texts: list[str]) -> None:
    ours = tokenizer(name)
    unknown = ours.id_of(ours.named_tokens.get("unk_token", "[UNK]"))
    for text in texts:
        found = {index for index in ours.encode(text, add_special=False) if ours.is_special(index)}
        assert found <= {unknown}, text


@pytest.mark.parametrize("name", BOTH)
def test_streaming_equals_batch(name: str, texts: list[str]) -> None:
    ours = tokenizer(name)
    for text in texts:
        ids = ours.encode(text, parse_special=True)
        for skip in (False, True):
            stream = ours.stream(skip_special=skip)
            streamed = "".join([*map(stream.push, ids), stream.flush()])
            assert streamed == ours.decode(ids, skip_special=skip)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_decoding_inverts_encoding(name: str, texts: list[str]) -> None:
    ours = tokenizer(name)
    lost = getattr(ours.model, "lost", frozenset())
    for text in texts:
        if lost.isdisjoint(text.encode()) and "▁" not in text:
            assert ours.decode(ours.encode(text)) == text


@pytest.mark.model
def test_facts_of_the_real_models() -> None:
    smollm2, gemma3, minilm = map(tokenizer, ("smollm2", "gemma3", "minilm"))
    assert (smollm2.vocab_size, gemma3.vocab_size, minilm.vocab_size) == (49152, 262144, 30522)
    assert smollm2.eos_ids == {0, 2}
    assert smollm2.bos_id == 1
    assert smollm2.encode("") == []
    assert gemma3.eos_ids == {1, 106}
    assert gemma3.encode("") == [2]
    assert minilm.encode("") == [101, 102]
    pair = minilm.encode_with_offsets(("a b", "c"))
    assert (pair.ids, pair.segments) == ([101, 1037, 1038, 102, 1039, 102], [0, 0, 0, 0, 1, 1])
    assert pair.offsets == [(0, 0), (0, 1), (2, 3), (0, 0), (0, 1), (0, 0)]
    assert minilm.decode(minilm.encode("Tokenization, isn't it?")) == "tokenization, isn ' t it?"
    assert smollm2.token_text(smollm2.encode(" the")[0]) == "Ġthe"
    assert smollm2.token_bytes(smollm2.encode(" the")[0]) == b" the"


@pytest.mark.model
def test_vocab_txt_gives_the_same_as_tokenizer_json(tmp_path, texts: list[str]) -> None:
    from tokenizer_cases import from_folder

    from pellucid.weights.store import resolve

    folder = resolve("minilm")
    if not (folder / "vocab.txt").exists():
        pytest.skip("the installed model has no vocab.txt")
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    ours, reference = from_folder(tmp_path), tokenizer("minilm")
    for text in texts:
        assert ours.encode(text) == reference.encode(text)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
@pytest.mark.parametrize("word", ["a", "ab", " ", "\n", "1", "語"])
def test_long_words_are_not_quadratic(name: str, word: str) -> None:
    """60,000 characters: a quadratic merge would take minutes."""
    ours = tokenizer(name)
    text = word * (60_000 // len(word))
    assert ours.decode(ours.encode(text)) == text
