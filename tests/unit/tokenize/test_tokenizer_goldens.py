"""Ids and offsets equal Hugging Face tokenizers and SentencePiece (tests/oracles/tokenizers_oracle.py).

The golden has null for texts where only the oracle finds control tokens or bytes. The tests skip these texts.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.processes import environment, python, run
from tokenizer_cases import BOTH, GOLDENS, MODELS, compiled_calls, from_folder, golden, tokenizer

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import Library
from pellucid.tokenize import text_encoder as base
from pellucid.tokenize.compiled_encoder import BATCH_CHARACTERS, STAGE_KERNELS, CompiledPipeline, compiled_encoder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", BOTH)
def test_ids_equal_the_oracle(name: str, texts: list[str]) -> None:
    expected, ours = golden(name), tokenizer(name)
    for index, (text, ids) in enumerate(zip(texts, expected["ids"], strict=True)):
        if ids is not None:
            assert ours.encode(text) == ids, (index, text)
        if "special" in expected:
            parsed = expected["special"].get(str(index), ids)
            assert parsed is None or ours.encode(text, parse_special=True) == parsed, (index, text)


@pytest.mark.parametrize("name", BOTH)
def test_offsets_equal_the_oracle(name: str, texts: list[str]) -> None:
    expected, ours = golden(name), tokenizer(name)
    for text, ids, offsets in zip(texts, expected["ids"], expected["offsets"], strict=True):
        if ids is not None:
            found = ours.encode_with_offsets(text)
            assert (found.ids, found.offsets) == (ids, offsets), text


@pytest.mark.parametrize("name", BOTH)
def test_compiled_code_has_the_same_ids(name: str, texts: list[str]) -> None:
    expected, ours = golden(name), tokenizer(name)
    run = compiled_encoder(ours)  # ours._compiled would stay cached and change later tests
    if run is None:
        assert ours.model.kernel is None
        return
    for texts_ in (texts, *([text] for text in texts)):
        for text, ids in zip(texts_, run.lists(texts_, False), strict=True):
            wanted = expected["ids"][texts.index(text)]
            assert wanted is None or ours.post_processor.ids(ids) == wanted, text
    if "special" in expected:
        parsed = map(ours.post_processor.ids, run.lists(texts, True))
        for index, (ids, plain) in enumerate(zip(parsed, expected["ids"], strict=True)):
            wanted = expected["special"].get(str(index), plain)
            assert wanted is None or ids == wanted, texts[index]


@pytest.mark.parametrize("name", BOTH)
def test_compiled_code_has_the_same_offsets(name: str, texts: list[str]) -> None:
    ours, run = tokenizer(name), compiled_encoder(tokenizer(name))
    if run is None:
        assert ours.model.kernel is None
        return
    for text in (*texts, "\n".join(texts)):
        for parse_special in (False, True):
            spans = run.spans(text, parse_special)
            if spans is None:
                assert not ours.model.lost.isdisjoint(text.encode())  # type: ignore[attr-defined]
            else:
                assert list(zip(*spans)) == list(ours.spans(text, parse_special)), text


@pytest.mark.parametrize("name", BOTH)
def test_arrays_and_threads_have_the_same_ids(name: str, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = dataclasses.replace(tokenizer(name))
    many = texts * (3 * BATCH_CHARACTERS // sum(map(len, texts)) + 1)
    calls = compiled_calls(monkeypatch, ours)
    arrays, lists = ours.encode_arrays(many, threads=2), ours.encode_batch(many, threads=2)
    assert calls or ours.model.kernel is None
    assert [ids.tolist() for ids in arrays] == lists == list(map(ours.encode, texts)) * (len(many) // len(texts))
    assert {ids.dtype for ids in arrays} == {np.dtype(np.int32)}


def test_ctrl_c_can_leave_no_lock_of_the_threads_locked(
    texts: list[str], conditions_of_main: list[threading.Condition], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = dataclasses.replace(tokenizer("tiny_wordpiece"))
    many = texts * (3 * BATCH_CHARACTERS // sum(map(len, texts)) + 1)
    calls = compiled_calls(monkeypatch, ours)
    ours.encode_batch(many, threads=2)
    assert calls
    assert not conditions_of_main


def test_a_text_that_python_normalizes_does_not_slow_the_others(
    texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tokenizer("tiny_wordpiece")
    run = compiled_encoder(ours)
    assert run is not None
    calls: dict[str, list[int]] = {"ids": [], "ids_of_pieces": []}
    for name, sizes in calls.items():
        method = getattr(CompiledPipeline, name)
        monkeypatch.setattr(
            CompiledPipeline,
            name,
            lambda pipeline, data, *rest, _m=method, _s=sizes: (
                _s.append(sum(map(len, data))) or _m(pipeline, data, *rest)
            ),
        )

    def is_odd(text: str) -> bool:
        """True if Python normalizes a text."""
        calls["ids_of_pieces"].clear()
        run.lists([text], False)
        return bool(calls["ids_of_pieces"])

    (odd,) = filter(is_odd, texts)
    for sizes in calls.values():
        sizes.clear()
    many = [f"sentence {number}" for number in range(1000)]
    many[700:701] = ["a long sentence " * 1000, odd]
    found = [ours.post_processor.ids(ids) for ids in run.lists(many, False)]
    assert len(calls["ids"]) < 30, "halves of halves, not each text alone"
    assert sum(calls["ids_of_pieces"]) < 1000, "bytes that Python has normalized"
    assert found == list(map(ours.encode, many))


@pytest.mark.parametrize("name", BOTH)
def test_explanations_have_the_same_ids(name: str, texts: list[str]) -> None:
    ours = tokenizer(name)
    for text in texts:
        explained = ours.explain(text)
        assert explained.ids == ours.encode(text), text
        within = [token.id for piece in explained.pre_tokens for token in piece.tokens]
        assert within == ours.encode(text, add_special=False), text


@pytest.mark.parametrize("name", MODELS)
def test_decoding_equals_sentencepiece(name: str) -> None:
    expected, ours = golden(name), tokenizer(name)
    for ids, text in zip(expected["ids"], expected["decoded"], strict=True):
        assert ours.decode(ids, skip_special=False) == text


def test_compiled_code_takes_over_once_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    text, ours = "it's 12 naïve words\n", from_folder(GOLDENS / "tiny_byte_level")
    calls = compiled_calls(monkeypatch, ours, at_once=False)
    before = ours.encode(text, add_special=False)
    assert not calls
    ours.encode(text * (base.CHARACTERS_BEFORE_CACHED // len(text)))
    calls.clear()
    assert ours.encode(text, add_special=False) == before
    assert "lists" in calls


NO_WAIT = """
import time
from pellucid.kernels.core import library
from pellucid.tokenize import text_encoder as base
from pellucid.tokenize.compiled_encoder import CompiledEncoder
from tokenizer_cases import GOLDENS, from_folder

calls, lists = [], CompiledEncoder.lists

def counted(self, texts, parse_special):
    calls.append(texts)
    return lists(self, texts, parse_special)

CompiledEncoder.lists = counted

def refused(key):
    raise AssertionError(f"{key} is compiled in the middle of a call")

library.compile_kernel = refused
text, ours = "it's 12 naïve words\\n", from_folder(GOLDENS / "tiny_byte_level")
long = text * (base.CHARACTERS_BEFORE_COMPILING // len(text) + 1)
before = ours.encode(long, add_special=False)
assert not calls
end = time.monotonic() + 300
while not calls and time.monotonic() < end:
    ours.encode(text)
    time.sleep(0.1)
assert calls
assert ours.encode(long, add_special=False) == before
"""


def test_no_call_waits_for_the_compiler(tmp_path: Path) -> None:
    """Kernels that are not cached compile in another process. Texts are encoded in Python meanwhile."""
    folders = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    variables = {"PELLUCID_HOME": str(tmp_path), "PELLUCID_COMPILE": "1", "PYTHONPATH": folders}
    run([(python(NO_WAIT), environment(**variables))])


@pytest.mark.parametrize("name", BOTH)
def test_what_may_be_called_is_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled tokenizer only calls kernels that are compiled for it."""
    called, function = set[KernelKey](), Library.function

    def watched(self: Library, key: KernelKey) -> object:
        called.add(key)
        return function(self, key)

    monkeypatch.setattr(Library, "function", watched)
    ours = tokenizer(name)
    if compiled_encoder(ours) is not None:
        assert ours.model.kernel is not None
        assert called <= {ours.model.kernel, *STAGE_KERNELS}


@pytest.mark.parametrize("name", BOTH)
def test_control_tokens_come_only_from_the_post_processor(name: str, texts: list[str]) -> None:
    ours = tokenizer(name)
    unknown = {ours.id_of(token) for token in ("[UNK]", "<unk>")}
    for text in texts:
        found = {index for index in ours.encode(text, add_special=False) if ours.is_special(index)}
        assert found <= unknown, text


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
    pair = minilm.encode_pair("a b", "c")
    assert (pair.ids, pair.type_ids) == ([101, 1037, 1038, 102, 1039, 102], [0, 0, 0, 0, 1, 1])
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
