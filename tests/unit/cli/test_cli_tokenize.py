"""``pellucid tokenize`` in the real program: its output as text and as JSON, and refused arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import Command, pellucid
from support.terminal import terminal

TOKENIZERS = Path(__file__).parents[2] / "goldens" / "tokenize"
WORDPIECE, BYTE_LEVEL = str(TOKENIZERS / "tiny_wordpiece"), str(TOKENIZERS / "tiny_byte_level")


def test_pieces_with_ids_bytes_and_characters(command: Command) -> None:
    out = command("tokenize", BYTE_LEVEL, "the naïve").answer
    first, _, *table = out.splitlines()
    assert first.startswith("<|begin|>|")
    assert table[0].split() == ["id", "piece", "bytes", "characters"]
    assert table[1].split()[:3] == ["0", "0", "<|begin|>"]
    assert [row.split()[-2:] for row in table[-3:]] == [["c3", "6-7"], ["af", "6-7"], ["76", "7-8"]] or table


def test_one_document(command: Command) -> None:
    found = command("tokenize", WORDPIECE, "the text", "--json").document
    assert found["text"] == "the text"
    assert [token["start"] for token in found["tokens"]][:2] == [0, 0]
    assert found["tokens"][0]["special"] is True
    assert found["tokens"][1].keys() == {"id", "piece", "bytes", "start", "end", "special"}


def test_every_stage_is_told(command: Command) -> None:
    told = command("tokenize", BYTE_LEVEL, "the text", "--explain").answer
    assert "normalize: Normalize(form='NFC')" in told
    assert "symbols t h e" in told
    assert "e + x = ex" in told
    found = command("tokenize", BYTE_LEVEL, "the text", "--explain", "--json").document
    assert found["normalized"] == "the text"
    merges = found["pre_tokens"][0]["how"]["merges"]
    assert [merge["rank"] for merge in merges] == sorted(merge["rank"] for merge in merges)
    tries = command("tokenize", WORDPIECE, "zzz", "--explain", "--json").document["pre_tokens"][0]["how"]
    assert tries["tries"]


def test_control_tokens_are_text_unless_it_is_said(command: Command) -> None:
    plain = command("tokenize", BYTE_LEVEL, "<|im_end|>", "--json").document["tokens"]
    parsed = command("tokenize", BYTE_LEVEL, "<|im_end|>", "--parse-special", "--json").document["tokens"]
    assert len(plain) > 2
    assert [token["piece"] for token in parsed] == ["<|begin|>", "<|im_end|>"]


def test_text_from_standard_input() -> None:
    assert pellucid("tokenize", WORDPIECE, "--json", given="the text").document["text"] == "the text"
    assert pellucid("tokenize", WORDPIECE, "-", "--json", given="x").document["text"] == "x"


def test_a_file_alone(command: Command) -> None:
    assert (
        command("tokenize", f"{WORDPIECE}/tokenizer.json", "the").answer == command("tokenize", WORDPIECE, "the").answer
    )


def test_colours_only_in_a_terminal(command: Command) -> None:
    assert "\x1b[" not in command("tokenize", WORDPIECE, "the text").answer
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with terminal("tokenize", WORDPIECE, "the text", env=env) as run:
            assert run.end() == 0
            assert ("\x1b[3" in run.output) == coloured


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json: JSON"),
        ("tokenizer.json", b'{"model": {"type": "Bigram"}}', "model type 'Bigram' is not implemented"),
        ("spiece.model", b"\x0a\xff\xff\xff", "not a SentencePiece model"),
        ("ranks.tiktoken", b"IQ== 0\n", "no file names the pattern that cuts texts: name the file after one of"),
        ("cl100k_base.tiktoken", b"?? 0\n", "is not base64"),
        ("vocab.txt", b"[UNK]\n[UNK]\n", "is listed twice"),
        ("notes.txt", b"\xff", "not UTF-8"),
    ],
)
def test_what_is_no_tokenizer(command: Command, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in command("tokenize", str(tmp_path / name), "text").refusal


def test_what_is_not_there(command: Command, tmp_path: Path) -> None:
    assert "no tokenizer found" in command("tokenize", str(tmp_path), "text").refusal
    assert "there is no file" in command("tokenize", str(tmp_path / "absent.model"), "text").refusal


def test_text_that_would_do_something_to_a_terminal_is_shown(command: Command) -> None:
    out = command("tokenize", BYTE_LEVEL, "\x1b[31m\n\t", "--explain").answer
    assert "\x1b" not in out
    assert json.dumps("\x1b")[1:-1] in out or "\\x1b" in out
