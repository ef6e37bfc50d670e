"""Random requests with receipts on tiny random models, and changes of receipts that a verification must notice."""

from __future__ import annotations

import copy
import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from pellucid.engine.request import run_together
from pellucid.llm import LLM
from pellucid.receipts.receipt import LINK, Receipt
from pellucid.testing import random_model
from pellucid.trace import ablate, mask, scale

Json: TypeAlias = "dict[str, Any]"
MODELS: Mapping[str, Callable[[Path], Path]] = {
    "floats": lambda path: random_model("llama", path, kind="safetensors", vocabulary=320, context=512),
    "blocks": lambda path: random_model("llama", path / "m.gguf", form="Q4_K", vocabulary=320, context=512, width=256),
    "experts": lambda path: random_model("qwen3_moe", path, kind="safetensors", vocabulary=320, context=512),
    "states": lambda path: random_model("lfm2", path, kind="safetensors", vocabulary=320, context=512),
    "sources": lambda path: random_model("t5", path, kind="safetensors", vocabulary=320, context=512),
}  # fmt: skip
TEXT = "to see that it rains in the east and the west while seven cats sat on a mat"
WORDS = TEXT.split()
SCHEMA = {
    "type": "object",
    "properties": {"b": {"type": "integer"}, "a": {"enum": ["x", "y"]}},
    "required": ["b", "a"],
    "additionalProperties": False,
}
OPTIONS: tuple[Json, ...] = (
    {},
    {"temperature": 0},
    {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"stop": ["e", "zz"]},
    {"logit_bias": {101: 2.5, "t": -1.0, 7: float("-inf")}},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    {"dry_multiplier": 0.8},
    {"mirostat": 2},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"samplers": ["top_k", "temperature"], "top_k": 12},
    {"regex": "(ab|cd){2,9}"},
    {"json_schema": SCHEMA},
    {"choices": ["a long answer", "another one", "b"]},
    {"ignore_eos": True, "logprobs": 3, "watch": True},
    {"min_new_tokens": 5, "stop_token_ids": [116]},
    {"prompt_lookup": True, "temperature": 0.05},
)


def prompt(random: Random) -> str:
    """A prompt that often begins as other prompts do, so that the prefix cache has its beginning."""
    words = [*WORDS[: random.randrange(0, 60, 20)], *random.choices(WORDS, k=random.randrange(1, 30))]
    return " ".join(words)


def receipts(llm: LLM, random: Random, count: int, name: str = "floats") -> list[Receipt]:
    """The receipts of ``count`` random answers. Several requests run together, some with several answers."""
    found = list[Receipt]()
    while len(found) < count:
        requests = []
        for _ in range(random.randrange(1, 6)):
            options = dict(random.choice(OPTIONS))
            if name == "sources" and random.random() < 0.2:
                options = {}
            elif name in ("floats", "experts") and random.random() < 0.2:
                edit = random.choice(
                    [scale("blocks.1.residual", 1.5), ablate("blocks.0.attention.heads[heads=0]"),
                     mask("blocks.0.attention.scores[tokens=-1; keys=0:1]")]
                )  # fmt: skip
                options = {"edits": [edit]}
            options |= {"max_new_tokens": random.randrange(1, 32), "seed": random.randrange(1 << 62)}
            requests.append(llm.request(prompt(random), random.choice((1, 1, 3)), receipt=True, **options))
        run_together(requests)
        made = [one.receipt for request in requests for one in request.results()]
        assert all(made)
        found += [one for one in made if one is not None]
    return found[:count]


def checked(llm: LLM, value: Receipt | Json) -> str:
    """The part that a verification names, "" if the run is equal, or the class of an error."""
    try:
        return llm.verify_receipt(value).part
    except Exception as error:
        return type(error).__name__


def _links(receipt: Json, change: Callable[[bytearray], object]) -> None:
    raw = bytearray(b64decode(receipt["links"]))
    change(raw)
    receipt["links"] = b64encode(bytes(raw)).decode()


def _flip_hex(text: str, random: Random) -> str:
    at = random.randrange(len(text))
    return text[:at] + format(int(text[at], 16) ^ random.randrange(1, 16), "x") + text[at + 1 :]


def _flip_link(receipt: Json, random: Random) -> None:
    def change(raw: bytearray) -> None:
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)

    _links(receipt, change)


def _token(receipt: Json, random: Random) -> None:
    at = random.randrange(len(receipt["tokens"]))
    receipt["tokens"][at] = (receipt["tokens"][at] + random.randrange(1, 300)) % 320


def _order(receipt: Json, random: Random) -> None:
    tokens = receipt["tokens"]
    different = [(i, j) for i in range(len(tokens)) for j in range(i) if tokens[i] != tokens[j]]
    if not different:
        _token(receipt, random)
        return
    i, j = random.choice(different)
    tokens[i], tokens[j] = tokens[j], tokens[i]


def _shorter(receipt: Json, random: Random) -> None:
    if len(receipt["tokens"]) == 1:
        _token(receipt, random)
        return
    keep = random.randrange(1, len(receipt["tokens"]))
    del receipt["tokens"][keep:]
    _links(receipt, lambda raw: raw.__delitem__(slice(LINK * (keep + 1), None)))
    receipt["finish_reason"] = random.choice(("length", "stop", "time"))
    if receipt["finish_reason"] != "stop":
        receipt["stop_reason"] = None


def _longer(receipt: Json, random: Random) -> None:
    receipt["tokens"].append(random.randrange(320))
    _links(receipt, lambda raw: raw.extend(random.randbytes(LINK)))


def _seed(receipt: Json, random: Random) -> None:
    seed = receipt["request"]["seed"]
    receipt["request"]["seed"] = "1" if seed is None else str((int(seed) + random.randrange(1, 99)) % (1 << 63))


def _option(receipt: Json, random: Random) -> None:
    options = receipt["request"]["options"]
    name = random.choice([*options, "top_k"])
    value = options.get(name)
    if isinstance(value, bool):
        options[name] = not value
    elif isinstance(value, (int, float)):
        options[name] = value + random.choice((1, 0.001))
    elif isinstance(value, str):
        options[name] = value + " "
    elif isinstance(value, list) and value:
        options[name] = value[:-1] if random.random() < 0.5 else [*value, value[0]]
    else:
        options[name] = 3


def _request(receipt: Json, random: Random) -> None:
    request = receipt["request"]
    kind = random.randrange(4)
    if kind == 0:
        at = random.randrange(len(request["prompt"]))
        request["prompt"][at] = (request["prompt"][at] + 1) % 320
    elif kind == 1:
        request["max_new_tokens"] += 1
    elif kind == 2:
        request["sequence"] = (request.get("sequence", 0) + 1) % 256
    else:
        request["edits"] = [*request.get("edits", []), {"where": "blocks.0.residual", "factor": "1.0",
                            "value": None, "values": None}]  # fmt: skip


def _model(receipt: Json, random: Random) -> None:
    model = receipt["model"]
    name = random.choice(list(model))
    if name in ("weights", "tokenizer", "plan"):
        model[name] = _flip_hex(model[name], random)
    elif name == "context":
        model[name] += 1
    elif name == "precise":
        model[name] = not model[name]
    elif name == "activations":
        model[name] = random.choice([one for one in (None, *range(8, 17)) if one != model[name]])
    else:
        model[name] = f"{model[name] or ''}x"


def _ending(receipt: Json, random: Random) -> None:
    kind = random.randrange(4)
    if kind == 0:
        receipt["end"] = _flip_hex(receipt["end"], random)
    elif kind == 1:
        receipt["text"] = _flip_hex(receipt["text"], random)
    elif kind == 2:
        others = [one for one in ("stop", "length", "time") if one != receipt["finish_reason"]]
        receipt["finish_reason"] = random.choice(others)
    else:
        receipt["stop_reason"] = "x" if receipt["stop_reason"] is None else None


def _signature(receipt: Json, random: Random) -> None:
    if "signature" not in receipt:
        receipt["signature"] = {"public_key": "0" * 64, "value": "0" * 128}
        return
    name = random.choice(("public_key", "value"))
    receipt["signature"][name] = _flip_hex(receipt["signature"][name], random)


TAMPERS: Mapping[str, Callable[[Json, Random], None]] = {
    "token": _token, "order": _order, "shorter": _shorter, "longer": _longer, "seed": _seed, "option": _option,
    "request": _request, "model": _model, "link": _flip_link, "ending": _ending, "signature": _signature,
}  # fmt: skip
"""Changes of a receipt, by name."""
HEADER = ("seed", "option", "request", "model")
"""Changes after which a forger can make the hash of the header fit again."""


def tampered(receipt: Receipt, kind: str, random: Random, *, mends_header: bool = False) -> Json:
    """A changed receipt. ``mends_header``: the first link is made to fit the changed header."""
    value: Json = copy.deepcopy(receipt.as_dict())
    TAMPERS[kind](value, random)
    assert json.dumps(value) != json.dumps(receipt.as_dict()), kind
    if mends_header:
        header = Receipt.of(value).header

        def change(raw: bytearray) -> None:
            raw[:LINK] = header[:LINK]

        _links(value, change)
    return value


def write_key(path: Path) -> Path:
    """A new private key; its public key is in PATH.pub."""
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
    public = key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    path.with_name(f"{path.name}.pub").write_bytes(public)
    return path
