"""GGUF files of encoders and encoder-decoders, with the fields that llama.cpp's converter writes for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from class_cases import CASES, check, contents, from_files, of_class
from tokenizer_cases import from_fields

from pellucid.tokenize import Tokenizer
from pellucid.tokenize.files import sentencepiece
from pellucid.tokenize.vocabulary import TokenType

ROBERTA_IDS = {
    "bos_token_id": 0, "eos_token_id": 2, "unknown_token_id": 3, "seperator_token_id": 2, "padding_token_id": 1,
    "add_bos_token": True, "add_eos_token": True,
}  # fmt: skip


def bert(reference: Tokenizer) -> dict[str, Any]:
    """The WordPiece vocabulary: pieces inside words lack ``##``, all other pieces have ``▁``."""
    vocabulary = reference.vocabulary
    types = [3 if index in vocabulary.special_ids else 1 for index in range(vocabulary.size)]
    spelled = [
        piece if kind == 3 else piece[2:] if piece.startswith("##") else f"▁{piece}"
        for piece, kind in zip(vocabulary.tokens, types)
    ]
    return {
        "model": "bert", "pre": "jina-v2-en", "token_type_count": 2, "tokens": spelled, "token_type": types,
        "bos_token_id": 2, "eos_token_id": 3, "unknown_token_id": 1, "seperator_token_id": 3, "padding_token_id": 0,
        "mask_token_id": 4, "add_bos_token": True, "add_eos_token": True, "add_sep_token": False,
        "normalizer.lowercase": True,
    }  # fmt: skip


def roberta(reference: Tokenizer) -> dict[str, Any]:
    vocabulary = reference.vocabulary
    merges = contents("roberta.txt").decode().split("\n")[1:-1]
    types = [3 if index in vocabulary.special_ids else 1 for index in range(vocabulary.size)]
    mask = vocabulary.size - 1
    return {
        "model": "gpt2", "pre": "roberta-bpe", "tokens": vocabulary.tokens, "token_type": types, "merges": merges,
        "mask_token_id": mask, "add_sep_token": True, **ROBERTA_IDS,
    }  # fmt: skip


def pieces(reference: Tokenizer, source: str, shift: int) -> dict[str, Any]:
    """A Unigram vocabulary; ids of the SentencePiece file are shifted by ``shift``."""
    file = sentencepiece.read(contents(source), Path(source))
    vocabulary = reference.vocabulary
    scores = [0.0] * vocabulary.size
    for at, score in enumerate(file.scores):
        if at + shift < vocabulary.size:
            scores[at + shift] = score
    return {
        "model": "t5", "pre": "default", "tokens": [*vocabulary.tokens], "scores": scores,
        "token_type": [*vocabulary.types], "add_space_prefix": True, "remove_extra_whitespaces": True,
        "precompiled_charsmap": [*file.normalizer["precompiled_charsmap"]],
    }  # fmt: skip


def xlm_roberta(reference: Tokenizer) -> dict[str, Any]:
    """Converted from the SentencePiece file: the mask's id has no piece."""
    fields = pieces(reference, "fairseq.model", 1)
    mask = reference.vocab_size - 1
    fields["tokens"][mask], fields["token_type"][mask] = f"[PAD{mask}]", int(TokenType.UNUSED)
    return {**fields, **ROBERTA_IDS, "mask_token_id": mask, "add_sep_token": True}


def t5(reference: Tokenizer) -> dict[str, Any]:
    return {**pieces(reference, "t5.model", 0), "eos_token_id": 1, "padding_token_id": 0}


MAKE = {"BertTokenizer": bert, "RobertaTokenizer": roberta, "XLMRobertaTokenizer": xlm_roberta, "T5Tokenizer": t5}


@pytest.mark.parametrize("name", MAKE)
def test_a_gguf_file_has_the_ids_of_its_class(tmp_path: Path, name: str) -> None:
    case = of_class(name)
    check(from_fields(MAKE[name](from_files(tmp_path, case))), CASES[case])


@pytest.mark.parametrize("name", ["RobertaTokenizer", "XLMRobertaTokenizer"])
def test_older_files_do_not_mention_the_separator(tmp_path: Path, name: str) -> None:
    case = of_class(name)
    fields = MAKE[name](from_files(tmp_path, case))
    del fields["add_sep_token"]
    check(from_fields(fields), CASES[case])
    without = from_fields(fields | {"add_sep_token": False})
    assert without.encode_pair("one", "two").ids == [0, *without.encode("one")[1:], *without.encode("two")]


def test_tokens_that_a_user_added_keep_their_text(tmp_path: Path) -> None:
    """The converter writes ``▁`` before user-defined tokens too."""
    fields = bert(from_files(tmp_path, of_class("BertTokenizer")))
    fields["tokens"].append("▁<note>")
    fields["token_type"].append(int(TokenType.USER_DEFINED))
    ours = from_fields(fields)
    assert ours.encode("<note>", add_special=False) == [ours.vocab_size - 1]
