"""A vocabulary gives the same ids in every file format. The cache of parsed files depends on the contents."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.fresh import fresh
from tokenizer_cases import GOLDENS, from_fields, from_folder

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.tokenize import Tokenizer, load_tokenizer, parsed_cache
from pellucid.tokenize.files.sidecar import parse_json
from pellucid.tokenize.stages.decode import byte_alphabet
from pellucid.util import trusted_files

TEXTS = ["the text", "  Hello world's 123\n", "naïve 日本語 👍🏽", "<|endoftext|> a", ""]
ALPHABET = [*byte_alphabet()]


def byte_pairs() -> tuple[list[str], list[str]]:
    """Pieces and the merges that make them, in order of their ids."""
    merges = ["t h", "th e", "Ġ the", "e x", "ex t", "Ġ t"]
    return [*ALPHABET, *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"], merges


def gpt2_json(folder: Path) -> Tokenizer:
    tokens, merges = byte_pairs()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    spec = {
        "added_tokens": [{"id": len(tokens) - 1, "content": tokens[-1], "special": True}],
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens[:-1])}, "merges": merges},
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return load_tokenizer(folder)


def gpt2_older(folder: Path) -> Tokenizer:
    tokens, merges = byte_pairs()
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    return load_tokenizer(folder)


def gpt2_gguf(folder: Path) -> Tokenizer:
    tokens, merges = byte_pairs()
    types = [*[1] * (len(tokens) - 1), 3]
    return from_fields({"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": types, "merges": merges})


@pytest.mark.parametrize("read", [gpt2_older, gpt2_gguf])
def test_byte_level_files(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = gpt2_json(tmp_path / "a"), read(tmp_path / "b")
    for text in TEXTS:
        for special in (False, True):
            assert first.encode(text, parse_special=special) == second.encode(text, parse_special=special)
    assert first.encode("<|endoftext|>", parse_special=True) == [first.vocab_size - 1]


def test_bytes_need_no_file_but_the_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer", "extra_ids": 2}))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("aé") == [100, 198, 172, 1]
    assert ours.vocab_size == 3 + 256 + 2
    assert ours.decode(ours.encode("日本語 naïve")) == "日本語 naïve"
    assert ours.encode_with_offsets("aé", add_special=False).offsets == [(0, 1), (1, 2), (1, 2)]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer", "extra_ids": -1}))
    with pytest.raises(FileFormatError, match="extra_ids: is -1"):
        load_tokenizer(tmp_path)


def test_wordpiece_of_gguf_is_that_of_json() -> None:
    reference = from_folder(GOLDENS / "tiny_wordpiece")
    pieces = reference.vocabulary.tokens
    special = {name: pieces.index(f"[{name}]") for name in ("CLS", "SEP", "UNK")}
    spelled = [
        piece if piece[0] == "[" and piece[-1] == "]" else piece[2:] if piece.startswith("##") else f"▁{piece}"
        for piece in pieces
    ]
    types = [3 if piece[0] == "[" and piece[-1] == "]" and len(piece) > 2 else 1 for piece in pieces]
    ours = from_fields(
        {
            "model": "bert",
            "tokens": spelled,
            "token_type": types,
            "normalizer.lowercase": False,
            "normalizer.strip_accents": True,
            "cls_token_id": special["CLS"],
            "seperator_token_id": special["SEP"],
            "unknown_token_id": special["UNK"],
        }
    )
    for text in TEXTS:
        assert ours.encode(text) == reference.encode(text)


def test_merges_of_gemma4_are_those_of_json(tmp_path: Path) -> None:
    spec = json.loads((GOLDENS / "tiny_byte_fallback" / "tokenizer.json").read_text())
    spec["normalizer"] = spec["normalizer"]["normalizers"][1]  # Gemma puts no space before the text
    spec["decoder"]["decoders"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    reference = load_tokenizer(tmp_path)
    pieces = reference.vocabulary.tokens
    ours = from_fields(
        {
            "model": "gemma4",
            "tokens": pieces,
            "token_type": [3] * 3 + [6 if piece.startswith("<0x") else 1 for piece in pieces[3:]],
            "merges": [" ".join(pair) for pair in spec["model"]["merges"]],
            "bos_token_id": 1,
            "unknown_token_id": 0,
            "add_bos_token": False,  # the first published files had this error
        }
    )
    for text in (*TEXTS, "aaxx ab\n\n  aab", "▁ a"):
        assert ours.encode(text) == reference.encode(text)
        assert ours.decode(ours.encode(text)) == reference.decode(reference.encode(text))


@pytest.mark.parametrize("name", ["mmbert", "granite-embed-multi-311m"])
def test_bpe_with_spaces_in_a_gguf_is_that_of_tokenizers(tmp_path: Path, name: str) -> None:
    """Against Hugging Face ``tokenizers`` (tests/oracles/spaced_bpe_oracle.py). Files call the kind byte-level."""
    golden = json.loads((GOLDENS / "spaced_bpe.json").read_text("utf-8"))[name]
    spec = golden["spec"]
    pieces = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    types = [1] * len(pieces)
    for token in spec["added_tokens"]:
        types[token["id"]] = 3 if token["special"] else 4
    spelled = [piece.replace("▁", " ") if kind == 4 else piece for piece, kind in zip(pieces, types)]
    fields = {
        "model": "gpt2",
        "pre": name,
        "tokens": spelled,
        "token_type": types,
        "merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "mask_token_id": 4,
    }
    ours = from_fields(fields)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    folder = load_tokenizer(tmp_path)
    for text, ids in golden["ids"].items():
        assert ours.encode(text, add_special=False, parse_special=True) == ids, text
        assert folder.encode(text, add_special=False, parse_special=True) == ids, text
        assert ours.decode(ids) == folder.decode(ids) == golden["decoded"][text], text
    for stated, begins in (({}, False), ({"add_bos_token": False}, False), ({"add_bos_token": True}, True)):
        assert (from_fields({**fields, **stated}).encode("the")[0] == 2) is (begins or name != "mmbert")
    with pytest.raises(UnsupportedModel, match=r"'mmbert2' is not known; known are .*, mmbert, "):
        from_fields({**fields, "pre": "mmbert2"})


def test_numbers_are_read_as_tokenizers_reads_them() -> None:
    numbers = json.loads((GOLDENS / "numbers.json").read_text())
    values = parse_json(f'{{"all": [{",".join(numbers)}]}}'.encode(), Path("tokenizer.json"))["all"]
    assert [value.hex() for value in values] == [*numbers.values()]
    assert sum(float(text) != value for text, value in zip(numbers, values)) > 20


@pytest.mark.parametrize("text", ["0." + "1" * 9000, "1" * 9000 + ".5", "1e" + "9" * 9000, "-1e-" + "9" * 9000])
def test_numbers_without_end_are_no_trouble(text: str) -> None:
    assert parse_json(f'{{"a": {text}}}'.encode(), Path("tokenizer.json"))["a"] == float(text)


def test_added_tokens_of_a_folder(tmp_path: Path) -> None:
    gpt2_older(tmp_path)
    size = len(byte_pairs()[0])
    tokens = {str(size): {"content": "<tool>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": tokens}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": size, "<note>": size + 1}))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("<tool><note>", parse_special=True) == [size, size + 1]
    assert ours.encode("<note>") == [size + 1]
    assert len(ours.encode("<tool>")) > 1


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"vocab.json": "{}"}, UnsupportedModel, "no tokenizer found"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b"}, FileFormatError, "'b' is not in the vocabulary"),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "CLIPTokenizer"}'},
            UnsupportedModel,
            "of a CLIPTokenizer is not implemented; known are GPT2Tokenizer",
        ),
        (
            {"spiece.model": "", "tokenizer_config.json": '{"tokenizer_class": "BarthezTokenizer"}'},
            UnsupportedModel,
            "of a BarthezTokenizer is not implemented; save the tokenizer as tokenizer.json",
        ),
        ({"spiece.model": ""}, FileFormatError, "the vocabulary is empty"),
        ({"added_tokens.json": '{"a": "b"}', "vocab.txt": "a"}, FileFormatError, "the id is 'b'"),
        (
            {"tokenizer_config.json": '{"added_tokens_decoder": {"x": {}}}', "vocab.txt": "a"},
            FileFormatError,
            "is not a token with an id",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, files: dict[str, str], error: type[Exception], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        load_tokenizer(tmp_path)


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache every file in an empty folder. Returns the folder."""
    monkeypatch.setattr(parsed_cache, "WORTH_CACHING", 1)
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tokenizers"


@pytest.mark.parametrize("name", ["tiny_byte_level", "tiny_byte_fallback", "tiny_wordpiece"])
def test_what_is_kept_gives_the_same_tokenizer(keeping: Path, name: str) -> None:
    first, second = from_folder(GOLDENS / name), from_folder(GOLDENS / name)
    assert len(list(keeping.iterdir())) == 1
    for text in [*TEXTS, "<s> user <table> [CLS]"]:
        for special in (False, True):
            found = [one.encode_with_offsets(text, parse_special=special) for one in (first, second)]
            assert found[0] == found[1]
    assert second.vocabulary.types == first.vocabulary.types


@pytest.mark.parametrize("name", ["tiny_sentencepiece_unigram", "tiny_unigram_t5"])
def test_a_character_map_that_is_kept_is_the_same(keeping: Path, name: str) -> None:
    first = from_folder(GOLDENS / name).normalizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsed_cache, "write", lambda *_: pytest.fail("the map is parsed again"))
        second = from_folder(GOLDENS / name).normalizer
    found = [one.map.rules for one in (first, second) for one in getattr(one, "stages", [one]) if hasattr(one, "map")]
    assert len(found) == 2
    assert found[0] == found[1] != {}


@pytest.mark.parametrize("name", ["tiny_sentencepiece_unigram", "tiny_sentencepiece_bpe", "tiny_sentencepiece_word"])
def test_a_sentencepiece_file_that_is_kept_is_the_same(keeping: Path, name: str) -> None:
    first = from_folder(GOLDENS / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsed_cache, "write", lambda *_: pytest.fail("the file is parsed again"))
        second = from_folder(GOLDENS / name)
    assert second.vocabulary.types == first.vocabulary.types
    for text in [*TEXTS, "<s> user <table> ﬁ½"]:
        for special in (False, True):
            found = [one.encode_with_offsets(text, parse_special=special) for one in (first, second)]
            assert found[0] == found[1]
        assert second.decode(second.encode(text)) == first.decode(first.encode(text))


def test_what_is_kept_is_of_these_very_bytes(keeping: Path, tmp_path: Path) -> None:
    gpt2_json(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:1]
    before = load_tokenizer(tmp_path).encode("the")
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert load_tokenizer(tmp_path).encode("the") != before
    assert len(list(keeping.iterdir())) == 2


def test_damage_is_as_if_nothing_were_kept(keeping: Path, tmp_path: Path) -> None:
    ids = gpt2_json(tmp_path).encode("the text")
    (place,) = keeping.iterdir()
    whole = place.read_bytes()
    for content in (b"", whole[:-1], whole[:50], bytes([whole[0] ^ 1]) + whole[1:], whole[:-1] + b"\xff"):
        place.write_bytes(content)
        assert load_tokenizer(tmp_path).encode("the text") == ids
        assert place.read_bytes() == whole


def test_the_last_few_are_kept(keeping: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsed_cache, "MAX_FILES", 3)
    for index in range(6):
        place = parsed_cache.cache_name(b"%d" % index)
        parsed_cache.write(place, {"numbers": memoryview(b"12345678").cast("i")})
        os.utime(keeping / place, (index, index))
    assert len(list(keeping.iterdir())) == 3
    found = parsed_cache.read(parsed_cache.cache_name(b"5"))
    assert found is not None
    assert found["numbers"].tobytes() == b"12345678"
    assert parsed_cache.read(parsed_cache.cache_name(b"0")) is None


def test_a_place_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsed_cache, "WORTH_CACHING", 1)
    for folder in ("home", "cache/pellucid"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "tokenizers").write_text("a file, no folder")
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(parsed_cache, "TrustedFolder", fresh(trusted_files).TrustedFolder)
    with pytest.warns(RuntimeWarning, match="is not a folder"):
        assert gpt2_json(tmp_path).encode("the")
