"""pellucid run --receipt, and pellucid verify-run: output, exit codes, errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import Command
from support.receipts import write_key

from pellucid.testing import random_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model("llama", tmp_path_factory.mktemp("models") / "tiny.gguf", vocabulary=320, context=256))


@pytest.fixture
def receipt(command: Command, model: str, tmp_path: Path) -> Path:
    path = tmp_path / "receipt.json"
    how = ("--raw", "to see", "--max-new-tokens", "7", "--ignore-eos", "--receipt", str(path))
    assert command("run", model, *how).code == 0
    return path


def test_a_receipt_is_equal(command: Command, model: str, receipt: Path) -> None:
    done = command("verify-run", str(receipt), model)
    assert (done.code, done.out, done.err) == (0, "equal: 7 tokens\n", "")
    document = json.loads(command("verify-run", str(receipt), model, "--json", "--threads", "2").out)
    assert document == {
        "equal": True, "tokens": 7, "part": "", "message": "equal: 7 tokens", "public_key": "",
    }  # fmt: skip


def test_a_difference_has_code_1(command: Command, model: str, receipt: Path) -> None:
    value = json.loads(receipt.read_text())
    value["tokens"][3] = (value["tokens"][3] + 1) % 320
    receipt.write_text(json.dumps(value))
    done = command("verify-run", str(receipt), model)
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("differs at token 3: the replay generates token ")


def test_another_model_has_code_1(command: Command, receipt: Path, tmp_path: Path) -> None:
    other = random_model("llama", tmp_path / "tiny.gguf", vocabulary=320, context=128, seed=1)
    done = command("verify-run", str(receipt), str(other))
    assert done.code == 1
    assert done.out.startswith("differs in the weights: SHA-256 ")


def test_precise_and_the_kv_cache_come_from_the_receipt(command: Command, model: str, tmp_path: Path) -> None:
    path = str(tmp_path / "precise.json")
    how = ("--raw", "to see", "--max-new-tokens", "5", "--precise", "--receipt", path)
    assert command("run", model, *how).code == 0
    assert command("verify-run", path, model).code == 0


def test_the_model_of_a_receipt_is_only_a_name(
    command: Command, model: str, receipt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    for name in (model, "hf:owner/name", "smollm2", "../tiny"):
        value = json.loads(receipt.read_text())
        value["model"]["name"] = name
        receipt.write_text(json.dumps(value))
        done = command("verify-run", str(receipt))
        assert done.code == 1  # the header was changed: no model is opened
        assert done.out.startswith("differs in the header: ")
    fresh = tmp_path / "fresh.json"
    how = ("--raw", "to see", "--max-new-tokens", "2", "--receipt", str(fresh))
    assert command("run", model, *how).code == 0
    done = command("verify-run", str(fresh))
    assert done.code == 2
    assert done.err == (
        "pellucid: model 'tiny' of the receipt is not on this machine: name it, pellucid verify-run FILE MODEL\n"
    )
    stored = tmp_path / "home" / "models" / "tiny"
    stored.mkdir(parents=True)
    (stored / "tiny.gguf").write_bytes(Path(model).read_bytes())
    (stored / ".pellucid.json").write_text(
        json.dumps({"source": "test", "files": {"tiny.gguf": Path(model).stat().st_size}})
    )
    assert command("verify-run", str(fresh)).out == "equal: 2 tokens\n"


@pytest.mark.parametrize("content", ["", "{}", "[]", "{", '{"links": ""}', '{"receipt": 5}', "[" * 100_000])
def test_a_malformed_file_has_code_2(command: Command, tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    done = command("verify-run", str(path), "no-model")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert done.err.startswith("pellucid: bad.json: ")


def test_signatures(command: Command, model: str, tmp_path: Path) -> None:
    import pellucid

    key = write_key(tmp_path / "key.pem")
    path = tmp_path / "signed.json"
    with pellucid.load(model, threads=1, receipt_key=key) as llm:
        made = llm.generate("to see", max_new_tokens=3, receipt=True).receipt
        assert made is not None
        assert made.signature is not None
        made.save(path)
    public = made.signature.public_key
    done = command("verify-run", str(path), model, "--signed-by", f"{key}.pub")
    assert (done.code, done.out) == (0, f"equal: {len(made.tokens)} tokens, signed by the key {public}\n")
    value = made.as_dict()
    value["signature"]["value"] = "0" * 128
    path.write_text(json.dumps(value))
    assert command("verify-run", str(path), model).code == 1
    assert command("verify-run", str(path), model, "--ignore-signature").code == 0
    both = command("verify-run", str(path), model, "--ignore-signature", "--signed-by", "x")
    assert both.code == 2
    assert "leave --ignore-signature out" in both.err


def test_a_conversation_has_no_receipt(command: Command, model: str, tmp_path: Path) -> None:
    done = command("run", model, "--raw", "--receipt", str(tmp_path / "x"))
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


def test_a_wrong_receipt_key_is_refused_before_a_model_is_loaded(command: Command, tmp_path: Path) -> None:
    done = command("serve", "no-such-model", "--receipt-key", str(tmp_path / "none"))
    assert done.code == 2
    assert "receipt_key=" in done.err
