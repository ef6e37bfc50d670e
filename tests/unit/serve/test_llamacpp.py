"""llama.cpp's own paths: fields have llama.cpp's format and meaning, and results equal the Python API's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.served import Served, models_folder, serving

import pellucid
from pellucid.cli.options import template_of
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.sample.step import steps
from pellucid.serve.apis.llamacpp import rendered
from pellucid.serve.apis.llamacpp_completion import prompts_of
from pellucid.serve.apis.llamacpp_fields import LLAMACPP_RULES, SAMPLERS
from pellucid.serve.chat.chat_run import Conversation
from pellucid.serve.generation_options import ALIASES, LLAMACPP, STRUCTURED
from pellucid.serve.guard import AccessRules
from pellucid.testing import random_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
USER: list[Any] = [{"role": "user", "content": "Hi"}]
USUAL: dict[str, Any] = dict(LLAMACPP_RULES.defaults)
DRAWN = {"seed": 3, "n_predict": 9, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("llamacpp"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as made:
        yield made


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=2) as made:
        yield made


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "encoder", threads=1) as made:
        yield made


def named(path: str, body: Any) -> Any:
    """A body for a path. Paths of OpenAI and Anthropic need the name of a model."""
    return {"model": "one", **body} if path.startswith("/v1/") and isinstance(body, dict) else body


def post(served: Served, path: str, body: Any) -> Any:
    made = httpx.post(served.url + path, json=named(path, body), timeout=60)
    assert made.status_code == 200, made.text
    return made.json()


def refusal(served: Served, path: str, body: Any) -> str:
    made = httpx.post(served.url + path, json=named(path, body), timeout=60)
    assert made.status_code == 400, made.text
    return str(made.json()["error"]["message"])


def events(served: Served, path: str, body: Any) -> list[dict[str, Any]]:
    text = httpx.post(served.url + path, json={**named(path, body), "stream": True}, timeout=60).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def wanted_of(llm: LLM, prompt: Any, **more: Any) -> Any:
    """The Python API's generation, without the end tokens, because llama.cpp forbids them with ``ignore_eos``."""
    usual = {**USUAL, "seed": 3, "max_new_tokens": 9, "ignore_eos": True}
    return llm.generate(prompt, **{**usual, "banned": sorted(llm.tokenizer.eos_ids), **more})


def test_completion(served: Served, llm: LLM) -> None:
    wanted = wanted_of(llm, "to see", logprobs=3)
    asked = {**DRAWN, "prompt": "to see", "n_probs": 3, "return_tokens": True}
    made = post(served, "/completion", asked)
    assert (made["content"], made["tokens"], made["stop_type"]) == (wanted.text, wanted.ids, "limit")
    assert (made["tokens_predicted"], made["tokens_evaluated"], made["truncated"]) == (9, 6, False)
    assert made["prompt"] == llm.tokenizer.decode(llm.tokenizer.encode("to see"), skip_special=False)
    assert made["generation_settings"]["seed"] == 3
    assert [one["logprob"] for one in made["completion_probabilities"]] == wanted.logprobs.chosen.tolist()
    tops = [[top["id"] for top in one["top_logprobs"]] for one in made["completion_probabilities"]]
    assert tops == wanted.logprobs.top_ids.tolist()
    assert post(served, "/completions", asked)["content"] == wanted.text
    pieces = events(served, "/completion", asked)
    assert "".join(one["content"] for one in pieces) == wanted.text
    assert [token for one in pieces[:-1] for token in one["tokens"]] == wanted.ids
    streamed = [one["completion_probabilities"][0] for one in pieces[:-1]]
    assert streamed == made["completion_probabilities"]
    assert [one["stop"] for one in pieces] == [False] * 9 + [True]


def test_prompts_of_every_shape(served: Served, llm: LLM) -> None:
    ids = llm.tokenizer.encode("to see")
    several = post(served, "/completion", {**DRAWN, "prompt": ["to see", ids, {"prompt_string": "to see"}]})
    assert len({one["content"] for one in several}) == 1
    assert [one["index"] for one in several] == [0, 1, 2]
    assert several[0]["content"] == wanted_of(llm, "to see").text
    mixed = post(served, "/completion", {**DRAWN, "prompt": [*ids, "to see", 9]})
    joined = [*ids, *llm.tokenizer.encode("to see", add_special=False), 9]
    assert mixed["content"] == wanted_of(llm, joined).text
    twice = post(served, "/completion", {**DRAWN, "prompt": "to see", "n_cmpl": 2})
    assert [one["index"] for one in twice] == [0, 1]
    # A prompt that a client has rendered contains control tokens.
    special = post(served, "/completion", {**DRAWN, "prompt": "<|fim_prefix|>to"})
    assert special["content"] == wanted_of(llm, llm.tokenizer.encode("<|fim_prefix|>to", parse_special=True)).text


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "prompt is missing"),
        ({"prompt": []}, "prompt=[]"),
        ({"prompt": 5.5}, "prompt=5.5"),
        ({"prompt": [1 << 40]}, "prompt holds a token id"),
        ({"prompt": ["a", {}]}, "prompt[1]={}"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}}, "multimodal_data"),
        ({"prompt": "a", "odd": 5}, "unknown option 'odd'"),
        ({"prompt": "a", "samplers": ["odd"]}, "samplers has 'odd'"),
        ({"prompt": "a", "samplers": [["top_k"]]}, "samplers[0]=['top_k']"),
        ({"prompt": "a", "logit_bias": [5]}, "logit_bias[0]=5"),
        ({"prompt": "a", "logit_bias": [[5, "x"]]}, "logit_bias[0]='x'"),
        ({"prompt": "a", "logit_bias": [[1 << 40, 1]]}, "logit_bias[0] holds a token id"),
        ({"prompt": "a", "lora": [{"id": 0, "scale": 1}]}, "lora="),
        ({"prompt": "a", "min_keep": 3}, "min_keep=3"),
        ({"prompt": "a", "n_predict": 3, "max_tokens": 4}, "n_predict=3 and max_tokens=4 are names of one option"),
        ({"prompt": ["a", "b"], "return_progress": True}, "return_progress needs a single prompt"),
        ({"prompt": "a", "response_fields": 5}, "response_fields=5"),
        ({"prompt": "a", "structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"prompt": "a", "structured_outputs": {"json_object": 5}}, "structured_outputs.json_object"),
    ],
)  # fmt: skip
def test_wrong_completions(served: Served, body: dict[str, Any], word: str) -> None:
    assert word in refusal(served, "/completion", {"n_predict": 2, **body})


def test_fields_that_stand_for_nothing(served: Served) -> None:
    nothing = {"n_probs": 0, "grammar": "", "stop": [""], "top_n_sigma": -1.0, "lora": [], "logit_bias": []}
    harmless = dict.fromkeys(LLAMACPP, 1)
    asked = {**DRAWN, "prompt": "to see"}
    one = post(served, "/completion", asked)["content"]
    assert post(served, "/completion", {**asked, **nothing, **harmless})["content"] == one
    made = post(served, "/completion", {"prompt": "to see", "n_predict": -1, "seed": -1, "ignore_eos": True})
    assert made["truncated"]
    assert made["tokens_predicted"] + made["tokens_evaluated"] == 1024


def test_end_tokens_are_forbidden_where_they_are_ignored(served: Served, llm: LLM) -> None:
    made = post(served, "/completion", {**DRAWN, "prompt": "to see"})
    biased = {one["token"]: one["bias"] for one in made["generation_settings"]["logit_bias"]}
    assert biased == dict.fromkeys(llm.tokenizer.eos_ids)


def test_biases(served: Served, llm: LLM) -> None:
    first = post(served, "/completion", {"prompt": "to see", "n_predict": 1, "temperature": 0, "return_tokens": True})
    (token,) = first["tokens"]
    text = llm.tokenizer.decode([token])
    forms: list[Any] = [[[token, False]], [[token, -100]], {str(token): -100}]
    if llm.tokenizer.encode(text, add_special=False) == [token]:
        forms += [[[text, False]], {text: -100} if not text.isdigit() else {str(token): -100}]
    for bias in forms:
        asked = {"prompt": "to see", "n_predict": 3, "temperature": 0, "return_tokens": True, "logit_bias": bias}
        assert token not in post(served, "/completion", asked)["tokens"], bias
    # A text biases each of its tokens. Biases of a token add up, within their limits.
    many = {"prompt": "a", "n_predict": 1, "logit_bias": [["ab", -100]] * 40}
    assert {one["bias"] for one in post(served, "/completion", many)["generation_settings"]["logit_bias"]} == {-1000}
    shown = post(served, "/completion", {"prompt": "a", "n_predict": 1, "logit_bias": [["ab", 1.0], ["ab", 0.5]]})
    wanted = dict.fromkeys(llm.tokenizer.encode("ab", add_special=False), 1.5)
    assert {one["token"]: one["bias"] for one in shown["generation_settings"]["logit_bias"]} == wanted


def test_samplers_are_named_as_in_llama_cpp(served: Served, llm: LLM) -> None:
    assert set(SAMPLERS) <= set(steps())
    names = ["temperature", "top-k", "typ_p", "infill"]
    # top_p is not in the chain, so its value has no effect.
    body = {**DRAWN, "prompt": "to see", "samplers": names, "top_k": 5, "typical_p": 0.9, "top_p": 0.01}
    chain = {"samplers": ["banned", "temperature", "top_k", "typical"], "top_k": 5, "typical_p": 0.9}
    ends = sorted(llm.tokenizer.eos_ids)
    wanted = llm.generate("to see", temperature=0.8, seed=3, max_new_tokens=9, ignore_eos=True, banned=ends, **chain)
    made = post(served, "/completion", body)
    assert made["content"] == wanted.text
    assert made["generation_settings"]["samplers"] == ["temperature", "top_k", "typ_p"]
    cuts = {"mirostat": 2, "top_k": 5, "min_p": 0.1}  # all clients send these too
    mirostat = llm.generate("to see", mirostat=2, temperature=0.8, seed=3, max_new_tokens=9)
    for more in (cuts, {"mirostat": 2}, {**cuts, "samplers": names}):
        found = post(served, "/completion", {"prompt": "to see", "seed": 3, "n_predict": 9, **more})
        assert found["content"] == mirostat.text
    ollama = {"prompt": "to see", "raw": True, "stream": False, "options": {"mirostat": 2, "seed": 3, "num_predict": 9}}
    assert post(served, "/api/generate", ollama)["response"] == mirostat.text


def test_probabilities_after_the_chain(served: Served) -> None:
    asked = {**DRAWN, "prompt": "to see", "n_probs": 10, "top_k": 3, "post_sampling_probs": True}
    for one in post(served, "/completion", asked)["completion_probabilities"]:
        assert 0 < one["prob"] <= 1
        assert 1 <= len(one["top_probs"]) <= 3
        assert sum(top["prob"] for top in one["top_probs"]) == pytest.approx(1)
        assert all(top["prob"] > 0 for top in one["top_probs"])


def test_chosen_fields(served: Served) -> None:
    fields = ["content", "generation_settings/n_predict", "timings/odd", "odd", "content/odd"]
    made = post(served, "/completion", {**DRAWN, "prompt": "to see", "response_fields": fields})
    assert set(made) == {"content", "generation_settings/n_predict"}
    assert made["generation_settings/n_predict"] == 9


def test_timings(served: Served) -> None:
    for path, asked in (
        ("/completion", {"prompt": "to see it", "n_predict": 5, "ignore_eos": True}),
        ("/chat/completions", {"messages": USER, "max_tokens": 5, "ignore_eos": True}),
        ("/v1/chat/completions", {"messages": USER, "max_tokens": 5, "ignore_eos": True, "timings_per_token": True}),
        ("/v1/completions", {"prompt": "to see", "max_tokens": 5, "ignore_eos": True, "timings_per_token": True}),
    ):
        one = post(served, path, asked)["timings"]
        assert one["predicted_n"] == 5
        assert one["prompt_ms"] > 0
        assert all(math.isfinite(value) and value >= 0 for value in one.values())
        assert one["predicted_per_second"] == pytest.approx(4e3 / one["predicted_ms"])
        usage = post(served, path, asked)
        assert usage["timings"]["prompt_n"] >= 1
        pieces = events(served, path, asked)
        assert pieces[-1]["timings"]["predicted_n"] == 5
        counts = [piece["timings"]["predicted_n"] for piece in pieces if "timings" in piece]
        assert counts == sorted(counts)
    first = post(served, "/completion", {"prompt": "to see", "n_predict": 1})["timings"]
    assert (first["predicted_per_second"], first["predicted_per_token_ms"]) == (0.0, 0.0)
    assert "timings" not in post(served, "/v1/chat/completions", {"messages": USER, "max_tokens": 2})


def test_verbose_answers_show_their_prompt(served: Served, llm: LLM) -> None:
    prompt = llm.tokenizer.apply_chat_template(USER)
    asked = {"messages": USER, "max_tokens": 2}
    for path in ("/chat/completions", "/v1/chat/completions"):
        assert post(served, path, {**asked, "verbose": True})["__verbose"] == {"prompt": prompt}
        assert "__verbose" not in post(served, path, {**asked, "verbose": False})
        shown = [one["__verbose"] for one in events(served, path, {**asked, "verbose": True}) if "__verbose" in one]
        assert shown == [{"prompt": prompt}]


def test_progress(served: Served, llm: LLM) -> None:
    prompt, drawn = "to see it " * 60, {"temperature": 0, "ignore_eos": True}
    size = len(llm.tokenizer.encode(prompt))
    for path, asked in (
        ("/completion", {"prompt": prompt, "n_predict": 2}),
        ("/v1/completions", {"prompt": prompt, "max_tokens": 2}),
        ("/chat/completions", {"messages": [{"role": "user", "content": prompt}], "max_tokens": 2}),
    ):
        pieces = events(served, path, {**drawn, **asked, "return_progress": True})
        told = [piece["prompt_progress"] for piece in pieces if "prompt_progress" in piece]
        assert told[0]["processed"] == told[0]["cache"]
        assert told[-1]["processed"] == told[-1]["total"] >= size
        processed = [one["processed"] for one in told]
        assert processed == sorted(set(processed))
        plain = events(served, path, {**drawn, **asked})
        assert [one for one in pieces if "prompt_progress" not in one and _text(one)]
        assert not [one for one in plain if "prompt_progress" in one]
    refused = httpx.post(
        served.url + "/completion", json={"prompt": "a " * 4000, "return_progress": True, "stream": True}
    )
    assert refused.status_code == 400


def _text(event: dict[str, Any]) -> str:
    if "content" in event:
        return str(event["content"])
    (choice,) = event["choices"]
    return str(choice.get("text") or choice.get("delta", {}).get("content") or "")


def test_chat_is_openais(served: Served) -> None:
    with (
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as own,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as other,
    ):
        more: Any = {"seed": 5, "max_tokens": 7, "extra_body": {"cache_prompt": False, "id_slot": 0}}
        made, wanted = (client.chat.completions.create(model="one", messages=USER, **more) for client in (own, other))
        assert made.choices == wanted.choices
        assert (made.system_fingerprint or "").startswith("b")
        assert [model.id for model in own.models.list().data] == ["one", "two", "encoder"]
    unlimited = {"messages": USER, "max_tokens": -1, "seed": -1, "stop": ["e"]}
    assert post(served, "/chat/completions", unlimited)["choices"]


def test_a_stream_begins_with_the_role(served: Served) -> None:
    asked = {"messages": USER, "max_tokens": 3}
    for path, content in (("/chat/completions", None), ("/v1/chat/completions", "")):
        first = events(served, path, asked)[0]["choices"][0]["delta"]
        assert first == {"role": "assistant", "content": content}


@pytest.mark.parametrize("text", [b"\xff", b"a" * 1_000_001, None])
def test_a_template_that_cannot_be_read(tmp_path: Path, text: bytes | None) -> None:
    file = tmp_path / "template.jinja"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(InvalidRequest, match="chat_template="):
        template_of(str(file))
    file.write_text("{{ messages }}")
    assert template_of(str(file)) == "{{ messages }}"


def test_the_first_model_answers_a_request_that_names_none(served: Served, folder: Path) -> None:
    services: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": USER, "max_tokens": 2}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2}),
        ("/v1/messages", {"messages": USER, "max_tokens": 2}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 2}),
    ]
    for path, body in services:
        for name in ({}, {"model": None}, {"model": ""}):
            assert post(served, path, {**body, **name})["model"] == "one"
    for path, body in (
        ("/completion", {"prompt": "a", "n_predict": 2}),
        ("/chat/completions", {"messages": USER, "max_tokens": 2, "model": None}),
        ("/api/generate", {"prompt": "a", "stream": False, "options": {"num_predict": 2}}),
    ):
        assert post(served, path, body)["model"] == "one"
    other = {"model": "gpt-4", "prompt": "a", "max_tokens": 2}
    assert httpx.post(served.url + "/v1/completions", json=other).status_code == 404
    assert "model=5" in refusal(served, "/v1/completions", {**other, "model": 5})


def test_any_model(folder: Path) -> None:
    with serving(folder) as made:
        made.models.any_name = True
        for path, body in (
            ("/v1/completions", {"prompt": "a", "max_tokens": 2}),
            ("/v1/messages", {"messages": USER, "max_tokens": 2}),
        ):
            assert post(made, path, {"model": "gpt-4", **body})["model"] == "one"
        assert post(made, "/v1/completions", {"model": "two", "prompt": "a", "max_tokens": 2})["model"] == "two"


def test_tokens(served: Served, llm: LLM) -> None:
    text = "to 媽 <|fim_prefix|>"
    asked = {"content": text, "with_pieces": True}
    tokens = post(served, "/tokenize", asked)["tokens"]
    assert [one["id"] for one in tokens] == llm.tokenizer.encode(text, add_special=False, parse_special=True)
    data = b"".join(one["piece"].encode() if isinstance(one["piece"], str) else bytes(one["piece"]) for one in tokens)
    assert data.decode() == text
    plain = post(served, "/tokenize", {"content": text, "add_special": True})["tokens"]
    assert plain == llm.tokenizer.encode(text, parse_special=True)
    assert post(served, "/detokenize", {"tokens": [one["id"] for one in tokens]})["content"] == text


def test_templates(served: Served, llm: LLM) -> None:
    prompt = post(served, "/apply-template", {"messages": USER})["prompt"]
    assert prompt == llm.tokenizer.apply_chat_template(USER)
    # /completion takes the rendered prompt.
    assert post(served, "/completion", {**DRAWN, "prompt": prompt})["content"] == wanted_of(llm, USER).text
    begun = [*USER, {"role": "assistant", "content": "I am"}]
    continues_last = post(served, "/apply-template", {"messages": begun, "continue_final_message": True})["prompt"]
    assert continues_last.endswith("I am")
    assert post(served, "/apply-template", {"messages": USER, "add_generation_prompt": False})["prompt"]
    assert "unknown option 'odd'" in refusal(served, "/apply-template", {"messages": USER, "odd": 1})
    counted = post(served, "/v1/chat/completions/input_tokens", {"messages": USER})["input_tokens"]
    usage = post(served, "/chat/completions", {"messages": USER, "max_tokens": 1})["usage"]
    assert counted == usage["prompt_tokens"]


def test_bos_is_not_doubled(tmp_path: Path) -> None:
    made = Path(random_model("llama", tmp_path / "bos", kind="safetensors", vocabulary=320, context=64))
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    begun = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": begun,
        "pair": begun,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    (made / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pellucid.load(made, threads=1, chat_template=template) as llm:
        assert llm.tokenizer.encode("") == [256]
        text = rendered(llm, Conversation(USER, {}), True)
        assert prompts_of(llm, "prompt", text) == ([[256, *b"Hi"]], False)
        assert llm.tokenizer.encode_chat(USER) == [256, *b"Hi"]


def test_vectors(served: Served, encoder: LLM) -> None:
    wanted = encoder.embed(["a b", "c"]).astype(np.float64)
    made = post(served, "/embeddings", {"model": "encoder", "input": ["a b", "c"]})
    assert [one["index"] for one in made] == [0, 1]
    vectors = np.array([one["embedding"][0] for one in made])
    assert vectors == pytest.approx(wanted / np.linalg.norm(wanted, axis=1, keepdims=True), abs=1e-6)
    ids = encoder.tokenizer.encode("a b")
    for one in ({"content": ids}, {"content": "a b"}, {"content": {"content": [{"type": "text", "text": "a b"}]}}):
        assert post(served, "/embedding", {"model": "encoder", **one})[0]["embedding"][0] == vectors[0].tolist()
    norms = {-1: wanted, 0: wanted * 32760 / np.abs(wanted).max(axis=1, keepdims=True)}
    for p in (1, 2, 3, 40):
        norms[p] = wanted / (np.abs(wanted) ** p).sum(axis=1, keepdims=True) ** (1 / p)
    for norm, expected in norms.items():
        asked = {"model": "encoder", "content": ["a b", "c"], "embd_normalize": norm}
        found = [one["embedding"][0] for one in post(served, "/embedding", asked)]
        assert np.array(found) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    for body, word in (
        ({"content": []}, "content=[]"),
        ({}, "input is missing"),
        ({"input": "a", "embd_normalize": -2}, "embd_normalize=-2"),
        ({"input": "a", "odd": 2}, "unknown option 'odd'"),
        ({"input": [5] * 9999}, "the limit is"),
        ({"input": "a", "model": "one"}, "makes text, not sentence vectors"),
    ):
        assert word in refusal(served, "/embedding", {"model": "encoder", **body})


def test_ranking_forms(served: Served) -> None:
    texts = ["a b c", "to see", "x"]
    own = post(served, "/rerank", {"model": "encoder", "query": "to see", "documents": texts, "return_documents": True})
    assert own["results"][0]["document"] == {"text": "to see"}
    plain = post(
        served, "/rerank", {"model": "encoder", "query": "to see", "texts": texts, "top_n": 2, "return_text": True}
    )
    assert plain[0]["text"] == "to see"
    scores = [one["relevance_score"] for one in own["results"][:2]]
    assert [one["score"] for one in plain] == scores
    long = {"model": "encoder", "query": "a", "documents": ["a " * 5000]}
    assert post(served, "/rerank", long)["results"]
    assert "the text is too long" in refusal(served, "/rerank", {**long, "truncate": False})


def test_properties_and_slots(served: Served, llm: LLM) -> None:
    made = httpx.get(served.url + "/props").json()
    assert made["default_generation_settings"]["n_ctx"] == llm.context
    params = made["default_generation_settings"]["params"]
    assert {name: params[name] for name in ("temperature", "top_k", "top_p", "min_p")} == {
        name: USUAL[name] for name in ("temperature", "top_k", "top_p", "min_p")
    }
    assert made["chat_template"] == llm.tokenizer.chat_template
    assert "/" not in made["model_path"]
    assert httpx.get(served.url + "/props", params={"model": "four"}).status_code == 404
    (idle,) = httpx.get(served.url + "/slots").json()
    assert (idle["is_processing"], idle["next_token"][0]["n_remain"]) == (False, -1)
    body = {"prompt": "a", "n_predict": 900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", served.url + "/completion", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        busy, *others = httpx.get(served.url + "/slots").json()
        assert busy["is_processing"]
        assert busy["next_token"][0]["n_decoded"] >= 1
        assert [one["is_processing"] for one in others] == [False]


def test_slots_of_others_are_not_seen(folder: Path) -> None:
    with serving(folder, AccessRules(keys=["a", "b"], admins=["c"])) as made:
        body = {"prompt": "a", "n_predict": 900, "ignore_eos": True, "stream": True}

        def busy(key: str) -> bool:
            slots = httpx.get(made.url + "/slots", headers={"X-Api-Key": key}).json()
            return any(one["is_processing"] for one in slots)

        with httpx.stream(
            "POST", made.url + "/completion", json=body, headers={"X-Api-Key": "a"}, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert [busy(key) for key in "bca"] == [False, True, True]


VLLM: dict[str, Any] = {
    "guided_json": {"enum": ["abc"]},
    "guided_regex": "a{5}",
    "guided_choice": ["north", "south"],
    "guided_grammar": 'root ::= "a"{5,5}',
}


@pytest.mark.parametrize("name", VLLM)
def test_guided_texts(served: Served, name: str) -> None:
    value = VLLM[name]
    inner = next(key for key, option in STRUCTURED.items() if option == ALIASES[name])
    for path, asked, text in (
        ("/v1/chat/completions", {"messages": USER}, lambda made: made["choices"][0]["message"]["content"]),
        ("/v1/completions", {"prompt": "a", "max_tokens": 20}, lambda made: made["choices"][0]["text"]),
    ):
        for field in ({name: value}, {"structured_outputs": {inner: value}}):
            made = text(post(served, path, {**asked, **field}))
            assert made in ('"abc"', "aaaaa", "north", "south"), (field, made)
    both = {"prompt": "a", "guided_regex": "a", "structured_outputs": {"choice": ["a"]}}
    assert "are given" in refusal(served, "/v1/completions", both)


OPEN = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}


def test_objects_are_closed(served: Served, llm: LLM) -> None:
    """A random model would add its own names: the bias favours a comma."""
    (comma,) = llm.tokenizer.encode(",", add_special=False)
    bias = {"logit_bias": {str(comma): 100}}
    for path, asked, text in (
        (
            "/v1/chat/completions",
            {
                "messages": USER, "max_tokens": 60, **bias,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": OPEN}},
            },
            lambda made: made["choices"][0]["message"]["content"],
        ),
        ("/completion", {"prompt": "a", "n_predict": 60, "json_schema": OPEN, **bias}, lambda made: made["content"]),
        (
            "/v1/completions",
            {"prompt": "a", "max_tokens": 60, "guided_json": OPEN, **bias},
            lambda made: made["choices"][0]["text"],
        ),
        (
            "/api/generate",
            {"prompt": "a", "raw": True, "stream": False, "format": OPEN, "options": {"num_predict": 60, **bias}},
            lambda made: made["response"],
        ),
        (
            "/api/chat",
            {"messages": USER, "stream": False, "format": OPEN, "options": {"num_predict": 60, **bias}},
            lambda made: made["message"]["content"],
        ),
    ):  # fmt: skip
        assert list(json.loads(text(post(served, path, asked)))) == ["a"], path


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    *("prompt", "samplers", "logit_bias", "stop", "response_fields", "n_probs", "structured_outputs", "guided_json"),
    *("n_predict", "seed", "grammar", "json_schema", "return_progress", "n_cmpl", "post_sampling_probs"),
]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=3))
def test_no_field_breaks_it(served: Served, changes: dict[str, Any]) -> None:
    body = {"prompt": "a", **changes, "max_new_tokens": 2} if "n_predict" not in changes else {"prompt": "a", **changes}
    answer = httpx.post(served.url + "/completion", content=json.dumps(body).encode(), timeout=60)
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/v1/chat/completions", {"messages": USER}, ("max_tokens", "n_predict", "max_completion_tokens")),
        ("/v1/completions", {"prompt": "a"}, ("max_tokens", "n_predict", "max_new_tokens")),
        ("/v1/responses", {"input": "a"}, ("max_output_tokens", "n_predict")),
        ("/v1/messages", {"messages": USER}, ("max_tokens", "n_predict")),
        ("/completion", {"prompt": "a"}, ("n_predict", "max_tokens")),
    ],
)
def test_one_value_under_several_names(served: Served, path: str, body: dict[str, Any], names: tuple[str, ...]) -> None:
    """Clients of several servers send the limit of an answer under the names of each of them."""
    post(served, path, {**body, **dict.fromkeys(names, 3)})
    post(served, path, {**body, "n_predict": -1, **dict.fromkeys(names[:1], 3)})
    different = dict(zip(names, (3, 4, 5)))
    assert "names of one option" in refusal(served, path, {**body, **different})
