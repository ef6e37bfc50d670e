"""Tokenizer classes of encoders and encoder-decoders (tests/oracles/encoder_tokenizers_oracle.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from class_cases import CASES, FAST, GOLDEN, check, configured, contents, from_files, of_class
from tokenizer_cases import compiled_calls

from pellucid.errors import FileFormatError, InvalidRequest, UnsupportedModel
from pellucid.tokenize import Truncation, compiled_encoder, load_tokenizer

LONG = 10 * "The debugger is a program. It stops programs. "


@pytest.mark.parametrize("name", CASES)
def test_vocabulary_files_give_the_ids_of_their_class(tmp_path: Path, name: str) -> None:
    ours, case = from_files(tmp_path, name), CASES[name]
    check(ours, case)
    if ours.target is None and not name.endswith(
        ("M2M100Tokenizer", "BertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
    ):
        # M2M-100 in Python keeps the language, WordPiece in Python the spaces before punctuation.
        assert list(map(ours.decode, case["ids"])) == case["decoded"]
    if "target" in case:
        assert ours.target is not None
        assert list(map(ours.target.encode, GOLDEN["texts"])) == case["target"]
        assert list(map(ours.target.decode, case["target"])) == case["written"]


@pytest.mark.parametrize("name", FAST)
def test_tokenizer_json_gives_the_same_as_tokenizers(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(FAST[name]["json"]))
    ours, fast = (
        configured(tmp_path, {"tokenizer_class": FAST[name]["class"], **FAST[name]["config"]}),
        FAST[name]["fast"],
    )
    check(ours, fast)
    assert list(map(ours.decode, fast["ids"])) == fast["decoded"]
    found = [ours.encode_with_offsets(text).offsets for text in GOLDEN["texts"]]
    assert found == [list(map(tuple, offsets)) for offsets in fast["offsets"]]
    if fast["mask"]:
        masked = ours.encode_with_offsets(f"one {ours.named_tokens['mask_token']} two.", parse_special=True)
        assert masked.offsets == list(map(tuple, fast["masked"]))
    for strategy, length, stride, windows in fast["cuts"]:
        cut = ours.encode_pair(*GOLDEN["pairs"][0], truncation=Truncation(length, stride, strategy))
        assert [window.ids for window in cut.windows] == [ids for ids, _ in windows]
        assert all(types in (None, window.type_ids) for window, (_, types) in zip(cut.windows, windows))


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("xlm-roberta", "XLMRobertaTokenizer"), ("deberta-v2", "DebertaV2Tokenizer"), ("mpnet", "MPNetTokenizer"),
     ("bart", "RobertaTokenizer"), ("marian", "MarianTokenizer")],
)  # fmt: skip
def test_a_model_implies_its_class(tmp_path: Path, model_type: str, name: str) -> None:
    """As in transformers, ``config.json`` decides if no file names a class."""
    case = CASES[of_class(name)]
    for file, source in case["files"].items():
        (tmp_path / file).write_bytes(contents(source))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    check(load_tokenizer(tmp_path), case)


def test_the_source_language_is_around_texts(tmp_path: Path) -> None:
    ours = from_files(tmp_path, of_class("MBart50Tokenizer"))
    german = ours.with_source_language("de_DE")
    assert (ours.source_language, german.source_language) == ("en_XX", "de_DE")
    assert german.encode("one")[0] == ours.language_id("de_DE") == ours.id_of("de_DE")
    assert german.encode("one")[1:] == ours.encode("one")[1:]
    assert ours.encode("one")[0] == ours.language_id("en_XX")
    assert len(ours.languages) == 52
    configured_ = from_files(tmp_path, of_class("MBart50Tokenizer"), src_lang="de_DE")
    assert configured_.encode("one") == german.encode("one")
    with pytest.raises(InvalidRequest, match="language 'de' is not known; known are ar_AR, cs_CZ"):
        ours.language_id("de")


def test_a_source_language_keeps_the_compiled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = from_files(tmp_path, of_class("MBartTokenizer"))
    calls = compiled_calls(monkeypatch, ours)
    ours.encode("one")
    monkeypatch.setattr(compiled_encoder, "compiled_encoder", lambda encoder: pytest.fail("it is made again"))
    german = ours.with_source_language("fr_XX")
    calls.clear()
    assert german.encode_batch([LONG]) == [german.post_processor.ids(ours.encode(LONG, add_special=False))]
    assert calls.count("lists") == 2


def test_marian_reads_the_language_at_the_start(tmp_path: Path) -> None:
    ours = from_files(tmp_path, of_class("MarianTokenizer"))
    plain, german = ours.encode("one two"), ours.languages["deu"]
    assert ours.languages.keys() == {"deu", "fra"}
    assert ours.encode(">>deu<< one two") == [german, *plain]
    assert german not in ours.encode("one >>deu<< two")
    assert ours.encode_with_offsets(">>deu<< one two").offsets[0] == (0, 7)
    with pytest.raises(InvalidRequest, match="no token for the source language"):
        ours.with_source_language("deu")


def test_pieces_without_an_id_are_unknown(tmp_path: Path) -> None:
    """Some pieces of the SentencePiece file are not in the ``vocab.json``."""
    ours = from_files(tmp_path, of_class("MarianTokenizer", 1))
    unknown = ours.id_of("<unk>")
    (tmp_path / "vocab.json").rename(tmp_path / "source.json")
    assert ours.vocab_size == len(json.loads((tmp_path / "source.json").read_text()))
    found = ours.encode(LONG + "abcdefghijklmnopqrstuvwxyz")
    assert unknown in found
    assert max(found) < ours.vocab_size
    with pytest.raises(
        FileFormatError, match=r"vocab.json: file: missing: source.spm of a MarianTokenizer has its ids"
    ):
        load_tokenizer(tmp_path)


def test_blenderbot_begins_with_a_space_by_default(tmp_path: Path) -> None:
    case = CASES[of_class("BlenderbotTokenizer")]
    for file, source in case["files"].items():
        (tmp_path / file).write_bytes(contents(source))
    ours = configured(tmp_path, {"tokenizer_class": "BlenderbotTokenizer"})
    assert ours.encode("one") == ours.encode(" one")


@pytest.mark.parametrize(
    ("name", "config", "error", "message"),
    [
        ("MBartTokenizer", {"src_lang": "xx"}, FileFormatError, "src_lang: 'xx' is not known; known are ar_AR"),
        ("M2M100Tokenizer", {"language_codes": "x"}, UnsupportedModel, "'x' is not known; known are mbart"),
        ("DebertaV2Tokenizer", {"split_by_punct": True}, UnsupportedModel, "split_by_punct"),
        ("T5Tokenizer", {"extra_ids": 1 << 40}, FileFormatError, "extra_ids: is 1099511627776"),
        ("PegasusTokenizer", {"offset": "x"}, FileFormatError, "offset: is 'x'; it must be a number from 0"),
        ("BertTokenizer", {"tokenizer_class": "BertJapaneseTokenizer"}, UnsupportedModel,
         "vocab.txt of a BertJapaneseTokenizer is not implemented; known are BertTokenizer, "),
        ("BertTokenizer", {"cls_token": "[NONE]"}, FileFormatError, "cls_token: '.NONE.' is not in the vocabulary"),
        ("T5Tokenizer", {"tokenizer_class": "BertTokenizer"}, UnsupportedModel, "spiece.model of a BertTokenizer"),
        ("T5Tokenizer", {"tokenizer_class": "XLNetTokenizer"}, UnsupportedModel, "spiece.model of a XLNetTokenizer"),
        ("XLMRobertaTokenizer", {"added_tokens_decoder": {"7": {"content": "<mask>"}}}, FileFormatError,
         "'<mask>' has id 7, but the file has it as"),
    ],
)  # fmt: skip
def test_what_a_class_cannot_read_is_refused(
    tmp_path: Path, name: str, config: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        from_files(tmp_path, of_class(name), **config)
