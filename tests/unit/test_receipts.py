"""Receipts: a run is replayed with the same bits, and every change of a receipt is noticed."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import receipts as cases
from support.small_llm import PROMPT

import pellucid
from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.llm import LLM
from pellucid.receipts.receipt import LINK, Receipt, canonical, end_of, link, text_hash
from pellucid.trace import ControlVector, LinearProbe, RegisteredVectors, ablate, add, call, scale

HOW: dict[str, Any] = {"max_new_tokens": 12, "seed": 5, "receipt": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("receipts")


@pytest.fixture(scope="module")
def key(folder: Path) -> Path:
    return cases.write_key(folder / "key.pem")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return cases.MODELS["floats"](folder / "floats")


@pytest.fixture(scope="module")
def llm(path: Path, key: Path) -> Iterator[LLM]:
    with pellucid.load(path, threads=1, receipt_key=key) as made:
        yield made


def receipt_of(llm: LLM, prompt: Any = PROMPT, **options: Any) -> Receipt:
    receipt = llm.generate(prompt, **{**HOW, **options}).receipt
    assert receipt is not None
    return receipt


def test_the_chain_is_the_documented_chain(llm: LLM) -> None:
    rows = list[np.ndarray]()
    request = llm.start(PROMPT, **HOW)
    for token in request:
        assert token.draw is not None
        rows.append(np.array(token.draw.logits.raw))
    made = request.result()
    receipt = made.receipt
    assert receipt is not None
    last = receipt.header
    wanted = [last[:LINK]]
    for token_id, row in zip(made.ids, rows):
        assert row.dtype == np.float32
        last = link(last, token_id, hashlib.sha256(row.data).digest())
        wanted.append(last[:LINK])
    assert receipt.links == b"".join(wanted)
    assert receipt.end == end_of(last, made.finish_reason, made.stop_reason, text_hash(made.text))
    assert receipt.tokens == made.ids


def test_without_the_option_there_is_no_receipt_and_no_digest(llm: LLM) -> None:
    request = llm.start(PROMPT, max_new_tokens=3)
    assert all(token.digest is None for token in request)
    assert request.result().receipt is None
    assert request.result().as_dict()["receipt"] is None


def test_it_is_small_and_plain_json(llm: LLM) -> None:
    receipt = receipt_of(llm, max_new_tokens=200, ignore_eos=True)
    text = json.dumps(receipt.as_dict())
    assert len(text) < 2500 + 30 * 200
    assert llm.verify_receipt(json.loads(text))
    # A program in JavaScript writes 1.0 as 1, and other programs sort keys.
    plain = json.loads(json.dumps(json.loads(text, parse_float=js_number), sort_keys=True))
    assert llm.verify_receipt(plain)


def js_number(text: str) -> Any:
    value = float(text)
    return int(value) if value.is_integer() else value


@pytest.mark.parametrize("name", cases.MODELS)
def test_honest_receipts_are_equal(name: str, folder: Path) -> None:
    path = folder / f"honest-{name}"
    path.mkdir()
    with pellucid.load(cases.MODELS[name](path), threads=2) as llm:
        found = cases.receipts(llm, Random(name), 24, name)
    with pellucid.load(path / "m.gguf" if name == "blocks" else path, threads=1) as llm:
        assert [llm.verify_receipt(one).message for one in found] == [
            f"equal: {len(one.tokens):,} token{'s' * (len(one.tokens) != 1)}" for one in found
        ]


@pytest.mark.parametrize("kind", cases.TAMPERS)
def test_every_change_is_noticed(llm: LLM, kind: str) -> None:
    random = Random(kind)
    for receipt in cases.receipts(llm, random, 12):
        assert cases.checked(llm, cases.tampered(receipt, kind, random)), kind
        if kind in cases.HEADER:
            mended = cases.tampered(receipt, kind, random, mends_header=True)
            assert cases.checked(llm, mended) not in ("", "header"), kind


def test_the_first_difference_is_named(llm: LLM) -> None:
    receipt = receipt_of(llm, temperature=0, ignore_eos=True)
    value = receipt.as_dict()
    tokens = list(receipt.tokens)
    tokens[4] = (tokens[4] + 1) % 320
    found = llm.verify_receipt({**value, "tokens": tokens})
    assert (found.part, found.tokens) == ("token", 4)
    assert found.message.startswith(f"differs at token 4: the replay generates token {receipt.tokens[4]}, ")
    assert not found


@pytest.mark.parametrize("bit", [0, 12, 22])
def test_a_flipped_weight_bit_is_noticed(llm: LLM, path: Path, folder: Path, bit: int) -> None:
    receipt = receipt_of(llm, temperature=0)
    other = folder / f"flipped-{bit}"
    shutil.copytree(path, other)
    (file,) = other.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    at = len(raw) - 4 * (1000 + bit)
    raw[at + bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)
    with pellucid.load(other, threads=1) as changed:
        found = changed.verify_receipt(receipt)
    assert (found.part, found.tokens) == ("weights", 0)


def test_the_weights_hash_is_of_contents_not_of_names(llm: LLM, path: Path, folder: Path) -> None:
    other = folder / "renamed"
    shutil.copytree(path, other)
    with pellucid.load(other, threads=1) as same:
        assert same.identity().weights == llm.identity().weights
        assert same.verify_receipt(receipt_of(llm))


def test_the_plan_names_the_options_that_differ(llm: LLM, path: Path) -> None:
    receipt = receipt_of(llm)
    with pellucid.load(path, threads=1, kv_cache="bf16") as other:
        found = other.verify_receipt(receipt)
    assert (found.part, found.message) == (
        "plan", "differs in the plan: loaded with kv_cache=None, this model bf16",
    )  # fmt: skip


def test_another_context_and_thread_count_give_the_same_receipt(llm: LLM, path: Path) -> None:
    receipt = receipt_of(llm)
    with pellucid.load(path, threads=2, context=64) as other:
        assert other.verify_receipt(receipt)
    with (
        pellucid.load(path, threads=2, context=40) as short,
        pytest.raises(
            InvalidRequest, match="needs a context of 44 tokens, and this model has 40: load it with context=44"
        ),
    ):
        short.verify_receipt(receipt)


def test_samples_have_receipts_of_their_own(llm: LLM) -> None:
    found = [one.receipt for one in llm.samples(PROMPT, 3, **HOW)]
    assert [one and one.request.sequence for one in found] == [0, 1, 2]
    assert all(one and llm.verify_receipt(one) for one in found)


def test_a_time_limit_is_replayed_without_a_clock(llm: LLM) -> None:
    receipt = receipt_of(llm, max_time=0.01, max_new_tokens=400, ignore_eos=True, stop=["\x00\x01"])
    assert receipt.finish_reason == "time"
    assert llm.verify_receipt(receipt)


def test_a_cancelled_request_has_no_receipt(llm: LLM) -> None:
    request = llm.start(PROMPT, max_new_tokens=40, ignore_eos=True, receipt=True)
    next(iter(request))
    assert request.result().receipt is None


def test_edits_are_part_of_the_request(llm: LLM) -> None:
    edited = receipt_of(llm, edits=[scale("blocks.1.residual", 1.5)])
    assert llm.verify_receipt(edited)
    with llm.trace(edits=[ablate("blocks.0.attention.heads[heads=1]")]):
        traced = receipt_of(llm)
    assert len(traced.request.edits) == 1
    assert llm.verify_receipt(traced)
    with llm.trace(edits=[ablate("blocks.1.residual")]):  # a trace changes no replay
        assert llm.verify_receipt(traced)


def test_edits_with_arrays_are_given_again(llm: LLM) -> None:
    vector = np.linspace(-1, 1, 64, dtype=np.float32)
    edits = [add("blocks.0.residual", vector, factor=0.5)]
    receipt = receipt_of(llm, edits=edits)
    assert llm.verify_receipt(receipt, edits=edits)
    with pytest.raises(InvalidRequest, match=r"has only their hashes: use llm.verify_receipt\(receipt, edits="):
        llm.verify_receipt(receipt)
    with pytest.raises(InvalidRequest, match="are not the edits of the receipt"):
        llm.verify_receipt(receipt, edits=[add("blocks.0.residual", vector)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": lambda text: False}, "until=.*: a receipt cannot hold a function"),
        ({"edits": [call("blocks.0.residual", lambda x: x)]}, "edits of .*: a receipt cannot hold a function"),
        ({"receipt": "yes"}, "receipt='yes': must be True or False"),
        ({"samplers": [object()]}, "samplers"),
    ],
)
def test_what_cannot_be_replayed_is_refused_at_once(llm: LLM, options: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        llm.request(PROMPT, **{**HOW, **options})


def test_beams_and_continued_runs_have_no_receipt(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="receipt"):
        llm.beam_search(PROMPT, receipt=True)
    with pytest.raises(InvalidRequest, match="receipt=True: the request continues an earlier answer"):
        llm.request(PROMPT, resumed=[5], receipt=True)


def test_signatures(llm: LLM, key: Path, folder: Path) -> None:
    receipt, public = receipt_of(llm), Path(f"{key}.pub")
    found = llm.verify_receipt(receipt, signed_by=public)
    assert found
    assert receipt.signature is not None
    assert found.public_key == receipt.signature.public_key
    other = cases.write_key(folder / "other.pem")
    refused = llm.verify_receipt(receipt, signed_by=f"{other}.pub")
    assert refused.part == "signature"
    assert "is signed by the key" in refused.message
    unsigned = {name: value for name, value in receipt.as_dict().items() if name != "signature"}
    assert llm.verify_receipt(unsigned)
    assert (
        llm.verify_receipt(unsigned, signed_by=public).message == "differs in the signature: the receipt is not signed"
    )


def test_keys_of_openssh_and_wrong_keys(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from pellucid.receipts.receipt import Signer, public_key_in

    key = Ed25519PrivateKey.generate()
    file = folder / "id"
    file.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption()))
    public = folder / "id.pub"
    public.write_bytes(key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH))
    raw = key.public_key().public_bytes_raw().hex()
    assert Signer(file).public_key == public_key_in("signed_by", public) == public_key_in("signed_by", file) == raw
    wrong = folder / "wrong"
    wrong.write_text("no key")
    for path, problem in (
        (wrong, "has no Ed25519 key"),
        (folder / "none", "cannot be read"),
        (public, "has no Ed25519"),
    ):
        with pytest.raises(InvalidRequest, match=f"receipt_key=.*{problem}"):
            Signer(path)


def test_keys_of_small_order_sign_nothing() -> None:
    """Anybody can make signatures of such keys: with all bytes 0, one message of four has the signature of zeros."""
    from pellucid.receipts.receipt import SMALL_ORDER, Signature, signature_is_valid

    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p

    def doubled(x: int, y: int) -> tuple[int, int]:
        product = d * x * x * y * y % p
        return (2 * x * y * pow(1 + product, -1, p) % p, (y * y + x * x) * pow(1 - product, -1, p) % p)

    for raw in SMALL_ORDER:
        y = int.from_bytes(raw, "little") % p
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        if x * x % p != square:
            x = x * pow(2, (p - 1) // 4, p) % p
        assert x * x % p == square
        point = (x, y)
        for _ in range(3):
            point = doubled(*point)
        assert point == (0, 1)
        for sign in (0, 0x80):
            key = bytes([*raw[:-1], raw[-1] | sign]).hex()
            for zeros in ("00" * 64, key + "00" * 32):
                for message in range(16):
                    assert not signature_is_valid(Signature(key, zeros), bytes([message]))


def test_without_cryptography_a_signature_is_not_skipped(llm: LLM, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = receipt_of(llm)
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'pellucid\[receipts\]'"):
        llm.verify_receipt(receipt)


def test_it_is_saved_and_opened(llm: LLM, tmp_path: Path) -> None:
    receipt = receipt_of(llm)
    receipt.save(tmp_path / "one.json")
    assert Receipt.open(tmp_path / "one.json") == receipt
    (tmp_path / "answer.json").write_text(json.dumps({"choices": [{"receipt": receipt.as_dict()}]}))
    assert Receipt.open(tmp_path / "answer.json") == receipt
    (tmp_path / "two.json").write_text(json.dumps({"choices": [{"receipt": receipt.as_dict()}] * 2}))
    with pytest.raises(FileFormatError, match="2 receipts: a file must have one"):
        Receipt.open(tmp_path / "two.json")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        receipt.save(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"links": "AAAA"},
        {"links": "!"},
        {"tokens": []},
        {"tokens": [-1]},
        {"tokens": [1 << 40]},
        {"end": "x"},
        {"more": 1},
        {"finish_reason": "until"},
        {"request": None},
        {"signature": {"public_key": "", "value": ""}},
    ],
)
def test_a_malformed_receipt_is_refused_in_one_line(llm: LLM, change: Any) -> None:
    with pytest.raises(InvalidRequest, match="receipt: is not a receipt of version 1: ") as caught:
        llm.verify_receipt({**receipt_of(llm).as_dict(), **change})
    assert len(str(caught.value).splitlines()) == 1


def test_odd_base64_and_numbers_are_refused(llm: LLM) -> None:
    value = receipt_of(llm, max_new_tokens=3).as_dict()
    text = value["links"]
    assert text.endswith("=")
    spare = text.rstrip("=")[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    odd = text.rstrip("=")[:-1] + alphabet[alphabet.index(spare) | 1] + "=" * text.count("=")
    if odd != text:
        with pytest.raises(InvalidRequest, match="base64"):
            llm.verify_receipt({**value, "links": odd})
    value["request"]["options"]["temperature"] = float("nan")
    with pytest.raises(InvalidRequest, match="is not a receipt"):
        llm.verify_receipt(value)


def test_canonical_bytes() -> None:
    assert canonical({"b": 1.0, "a": [0.1, 1e300, True]}) == canonical({"a": [0.1, 1e300, True], "b": 1})
    assert canonical({"a": 1}) != canonical({"a": 2})


def test_ctrl_c_can_leave_no_lock_of_a_hash_locked(path: Path, conditions_of_main: list[threading.Condition]) -> None:
    from pellucid.weights.manifest import tensor_hash
    from pellucid.weights.open import open_checkpoint

    assert len(tensor_hash(open_checkpoint(path))) == 64
    assert not conditions_of_main


def test_the_hash_of_weights_is_kept_until_the_file_changes(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import time

    from pellucid.weights import manifest as module

    computed = list[Any]()

    def sha256(*content: bytes) -> Any:
        computed.append(content)
        return hashlib.sha256(*content)

    monkeypatch.setattr(module, "hashlib", SimpleNamespace(sha256=sha256))
    monkeypatch.setenv("PELLUCID_HOME", str(folder / "home"))
    other = folder / "kept"
    shutil.copytree(path, other)
    (file,) = other.glob("*.safetensors")
    now = time.time() + 60  # a slow test must not outlast the file's youth
    os.utime(file, (now, now))

    def hashed() -> tuple[str, int]:
        computed.clear()
        with pellucid.load(other, threads=1) as llm:
            return llm.identity().weights, len(computed)

    first, count = hashed()
    assert count > 0
    assert hashed() == (first, count)  # the file has just been written: its hash is not kept
    old = time.time() - 100
    os.utime(file, (old, old))
    assert hashed() == (first, count)
    assert hashed() == (first, 1), "only the name of the kept hash"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    os.utime(file, (old + 1, old + 1))
    changed, count_again = hashed()
    assert changed != first
    assert count_again == count


def test_a_steered_run_replays_with_its_edits(llm: LLM) -> None:
    """Vectors are edits with arrays: the receipt has their hashes. A probe that may end the text has no receipt."""
    width = llm.spec.embedding.width
    vector = ControlVector({0: np.ones(width, np.float32)})
    llm.vectors = RegisteredVectors(
        {"calm": vector}, {"late": LinearProbe("late", "blocks.0.residual", np.ones(width))}
    )
    try:
        how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True, "receipt": True}
        made = llm.generate("a prompt", steer={"calm": 0.5}, **how)
        plain = llm.generate("a prompt", **how)
        assert made.receipt is not None
        assert plain.receipt is not None
        assert llm.verify_receipt(made.receipt, edits=vector.edits(0.5)).equal
        assert llm.verify_receipt(plain.receipt).equal
        with pytest.raises(InvalidRequest, match="edits"):
            llm.verify_receipt(made.receipt)
        assert llm.generate("a prompt", probes=["late"], **how).receipt is not None
        with pytest.raises(InvalidRequest, match="a probe may end the text"):
            llm.generate("a prompt", probes={"late": {"stop_above": 0.5}}, **how)
    finally:
        llm.vectors = RegisteredVectors({}, {})
