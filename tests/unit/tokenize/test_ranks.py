"""Vocabularies of ranks, tiktoken's and Mistral's, are recognised by their contents."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import BYTE_LEVEL, GOLDENS, from_fields, from_folder, tokenizer

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.tokenize import load_tokenizer
from pellucid.tokenize.files import vocab_files as tiktoken_files
from pellucid.tokenize.patterns import published
from pellucid.tokenize.patterns.published import TIKTOKEN, TiktokenRanks

PIECES = [*(bytes([byte]) for byte in range(256)), b"th", b"he", b"the", b"ab", b"abc", b" the", b"'S", b"12", b"AB"]
LINES = [b"%s %d" % (base64.b64encode(piece), rank) for rank, piece in enumerate(PIECES)]
RANKS = b"\n".join([*LINES, b""])
HELLO = "HelloWORLDs 1234 It'S"


def write(folder: Path, name: str = "tokenizer.model", data: bytes = RANKS, **sidecars: Any) -> Path:
    """A file of ranks, and JSON files next to it, whose names lack their suffix."""
    for stem, content in sidecars.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    (folder / name).write_bytes(data)
    return folder / name


def pre_tokens(path: Path) -> list[str]:
    return [piece.text for piece, _ in load_tokenizer(path).pre_tokens(HELLO, False)]


def cut_by(name: str) -> list[str]:
    from pellucid.tokenize.stages.pretokenize import Split

    return Split(TIKTOKEN[name].pattern)(HELLO)


def test_ranks_merge_what_is_a_piece(tmp_path: Path) -> None:
    """Pairs merge if the vocabulary has the result. Words in the vocabulary stay whole."""
    ours = load_tokenizer(write(tmp_path, "qwen.tiktoken"))
    assert ours.encode("the the thab") == [258, 261, 32, 256, 259]
    assert ours.encode("xabc") == [120, 260]
    assert ours.encode("<|endoftext|>", parse_special=True) == [len(PIECES)]
    assert ours.decode(ours.encode("naïve")) == "naïve"


def test_the_contents_tell_the_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, folder, order of lines and line endings do not matter."""
    monkeypatch.setitem(TIKTOKEN, "mine", TiktokenRanks(published.O200K, digest=hashlib.sha256(RANKS).hexdigest()))
    for data in (RANKS, b"\r\n".join(LINES), b"\n".join(LINES[::-1])):
        path = write(tmp_path, "cl100k_base.model", data, config={"model_type": "llama"})
        assert pre_tokens(path) == cut_by("o200k_base") != cut_by("llama3")


@pytest.mark.parametrize(
    ("sidecars", "name"),
    [
        ({"config": {"model_type": "llama4"}}, "llama4"),
        ({"config": {"model_type": "llama"}}, "llama3"),
        ({"tokenizer_config": {"tokenizer_class": "QWenTokenizer"}}, "qwen"),
    ],
)
def test_the_folder_tells_the_pattern(tmp_path: Path, sidecars: dict[str, Any], name: str) -> None:
    write(tmp_path, **sidecars)
    assert pre_tokens(tmp_path) == cut_by(name)
    special = TIKTOKEN[name].special(len(PIECES))
    ours = load_tokenizer(tmp_path)
    assert {text: ours.id_of(text) for text in special} == special


def test_one_vocabulary_with_two_sets_of_special_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(RANKS).hexdigest()
    known = {name: TiktokenRanks(published.GPT2, {f"<{name}>": 300}, digest=digest) for name in ("one", "two")}
    monkeypatch.setattr(published, "TIKTOKEN", known)
    assert load_tokenizer(write(tmp_path, "two.tiktoken")).id_of("<two>") == 300
    assert load_tokenizer(write(tmp_path, "x.tiktoken")).id_of("<one>") == 300


def test_ranks_that_nothing_tells_about_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"265 ranks of no published vocabulary.* one of cl100k_base, gpt2, llama3"
    ):
        load_tokenizer(write(tmp_path))


def test_special_tokens_of_llama() -> None:
    """The ids are noted in ``tokenizer.py`` of llama-models 0.3.0."""
    three, four = TIKTOKEN["llama3"].special(128000), TIKTOKEN["llama4"].special(200000)
    assert (len(three), len(four)) == (256, 2048)
    assert (three["<|eot_id|>"], three["<|image|>"], three["<|reserved_special_token_245|>"]) == (
        128009,
        128011,
        128255,
    )
    expected = {
        "<|header_start|>": 200005,
        "<|finetune_right_pad|>": 200018,
        "<|text_post_train_reserved_special_token_68|>": 200079,
        "<|image_start|>": 200080,
        "<|patch|>": 200092,
        "<|vision_reserved_special_token_1047|>": 201133,
        "<|reasoning_thinking_end|>": 201143,
        "<|reserved_special_token_903|>": 202047,
    }
    assert {name: four[name] for name in expected} == expected


def tekken(**changes: Any) -> dict[str, Any]:
    """Contents of a ``tekken.json`` with all pieces except the last two."""
    config = {
        "pattern": published.TEKKEN,
        "num_vocab_tokens": len(PIECES),
        "default_vocab_size": len(PIECES) - 2 + 30,
        "default_num_special_tokens": 30,
        "version": "v3",
    }
    vocab = [
        {"rank": at, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for at, piece in enumerate(PIECES)
    ]
    return {"config": config | changes.pop("config", {}), "vocab": vocab, **changes}


def test_tekken(tmp_path: Path) -> None:
    """Pieces are numbered after the special tokens. mistral-common 1.13 gives the same ids for this file."""
    write(tmp_path, "anything.json", json.dumps(tekken()).encode())
    ours = load_tokenizer(tmp_path / "anything.json")
    assert ours.vocab_size == len(PIECES) + 28
    assert ours.encode("the the thab 12") == [1, 288, 291, 62, 286, 289, 62, 79, 80]
    assert ours.encode("[INST]</s><SPECIAL_29>", add_special=False, parse_special=True) == [3, 2, 29]
    assert ours.decode(ours.encode("naïve [INST]")) == "naïve [INST]"
    assert (ours.bos_id, ours.eos_ids) == (1, {2})


def test_tekken_with_its_own_special_tokens(tmp_path: Path) -> None:
    listed = [{"rank": at, "token_str": name, "is_control": at < 2} for at, name in enumerate(["<unk>", "</s>", "[X]"])]
    write(tmp_path, "tekken.json", json.dumps(tekken(special_tokens=listed, audio={})).encode())
    ours = load_tokenizer(tmp_path)
    assert ours.encode("a[X]</s>") == [127, 2, 90, 77, 145, 92]
    assert ours.bos_id is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"default_vocab_size": 10**9}}, "default_vocab_size: 1000000000 is not a number from 0 to"),
        ({"config": {"default_vocab_size": 400}}, "default_vocab_size: is 400, for 30 special tokens and 265 pieces"),
        ({"config": {"pattern": 3}}, "config.pattern: expected a string, found 3"),
        ({"vocab": [{"rank": 1, "token_bytes": "AA=="}] * 265}, r"vocab\[0\]: .* has no rank 0 and token_bytes"),
        ({"special_tokens": [{"rank": 0, "token_str": 1}]}, r"special_tokens\[0\]: .* has no rank 0 and token_str"),
        (
            {"special_tokens": [{"rank": at, "token_str": "a"} for at in (0, 1)]},
            "2 tokens: at most .* are allowed, with different names",
        ),
        ({"special_tokens": 3}, "not an object and two arrays"),
    ],
)
def test_tekken_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        load_tokenizer(write(tmp_path, "tekken.json", json.dumps(tekken(**changes)).encode()))


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3", "x.spm"])
def test_a_sentencepiece_model_of_another_name(tmp_path: Path, name: str) -> None:
    model = GOLDENS / "tiny_sentencepiece_bpe" / "tokenizer.model"
    (tmp_path / name).write_bytes(model.read_bytes())
    ours = load_tokenizer(tmp_path / name)
    assert ours.encode("the text") == tokenizer("tiny_sentencepiece_bpe").encode("the text")
    if ".model" in name:
        assert from_folder(tmp_path).encode("the text") == ours.encode("the text")


@pytest.mark.parametrize("name", ["rwkv_vocab_v20230424.txt", "vocab.txt", "other.model"])
def test_a_vocabulary_of_rwkv_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, b"1 '\\x00' 1\n2 '\\x01' 1\n257 '\\t\\t' 2\n258 b'\\xe4\\xb8' 2\n")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UnsupportedModel, match=rf"{name}: a vocabulary of RWKV.* use a model with one of"):
            load_tokenizer(path)


def test_other_files_are_none_of_these() -> None:
    for head in (b"", b"\n", b"{", b"a b", b"YQ== x", b" 1", b"YQ==", b"\xff" * 100):
        assert not tiktoken_files.is_tiktoken(head)
        assert not tiktoken_files.is_tekken(head)
    assert tiktoken_files.is_tiktoken(b"YQ== 0\r\n")


def test_merges_count_where_ids_are_not_ranks() -> None:
    """As in Qwen 3.5 and 3.6: a piece that no merge makes, and ids in another order than the merges."""
    letters = BYTE_LEVEL["tokens"][:256]
    fields = {
        **BYTE_LEVEL,
        "pre": "qwen35",
        "tokens": [*letters, "abc", "bc", "ab", "<|end|>"],
        "token_type": [*[1] * 259, 3],
        "merges": ["a b", "b c"],
        "eos_token_id": 259,
    }
    found = from_fields(fields)
    assert found.encode("abc") == [258, letters.index("c")]
    assert found.encode("bc") == [257]
