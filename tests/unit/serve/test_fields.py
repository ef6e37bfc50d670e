"""Every field of every request changes the answer, is refused, or is in the table of harmless fields.

The fields come from the schemas of all routes that discovery finds. Each field is set to values that its schema allows.
``SHOWN`` lists the fields that have an effect only together with other fields.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
from msgspec import structs
from support import dictionaries
from support.decisions import decision_model
from support.encoder_models import NAMES as ENCODERS
from support.encoder_models import encoder_models
from support.served import NAMES, Served, models_folder, serving

import pellucid
from pellucid.errors import ModelNotFound
from pellucid.llm import LLM
from pellucid.serve.api import known_apis
from pellucid.serve.generation_options import IGNORED, table
from pellucid.tokenize.stages.postprocess import Template

ROOT = Path(__file__).parents[3]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{{ m.reasoning_content }}{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "{{ call.id }}\n</tool_call>{% endfor %}{{ m.name }}{{ m.tool_call_id }}\n{% endfor %}"
    "{{ reasoning_effort }}{{ extra }}"
    "{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
)
USER: list[Any] = [{"role": "user", "content": "Hi"}]
SOME = {"model": "one", "seed": 1, "ignore_eos": True}
OPTIONS = {"options": {"seed": 1, "ignore_eos": True, "num_predict": 8}}
LOOK = {"model": "one", "prompt": "to see"}
PATTERN = "blocks.0.attention.pattern"
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**SOME, "messages": USER, "max_tokens": 8},
    "/v1/completions": {**SOME, "prompt": "to see", "max_tokens": 8},
    "/v1/embeddings": {"model": "encoder", "input": "to see"},
    "/v1/responses": {**SOME, "input": "Hi", "max_output_tokens": 8},
    "/v1/responses/input_tokens": {"model": "one", "input": "Hi"},
    "/v1/messages": {**SOME, "messages": USER, "max_tokens": 8},
    "/v1/messages/count_tokens": {"model": "one", "messages": USER},
    "/api/show": {"model": "one"},
    "/api/generate": {"model": "one", "prompt": "to see", **OPTIONS},
    "/api/chat": {"model": "one", "messages": USER, **OPTIONS},
    "/api/embed": {"model": "encoder", "input": "to see"},
    "/api/embeddings": {"model": "encoder", "prompt": "to see"},
    "/api/pull": {"model": "one"},
    "/completion": {**SOME, "prompt": "to see", "n_predict": 8},
    "/infill": {**SOME, "input_prefix": "to ", "input_suffix": " see", "n_predict": 8},
    "/apply-template": {"model": "one", "messages": USER},
    "/embedding": {"model": "encoder", "content": "to see"},
    "/rerank": {"model": "encoder", "query": "to see", "documents": ["a b c", "to"]},
    "/v1/systemone": {
        "model": "decider",
        "state": "to see",
        "questions": {"a": {"type": "choice", "instructions": "to", "criteria": {"b": "to", "c": "see"}}},
    },
    "/v1/embed": {"model": "encoder", "texts": ["to see"]},
    "/v2/embed": {"model": "encoder", "texts": ["to see"], "input_type": "clustering"},
    "/score": {"model": "ranker", "text_1": "to see", "text_2": "a b c"},
    "/classify": {"model": "labels", "input": "to see"},
    "/pooling": {"model": "labels", "input": "to see"},
    "/": {"model": "encoder", "inputs": "to see"},
    "/embed": {"model": "plain", "inputs": "to see"},
    "/embed_sparse": {"model": "sparse", "inputs": "to see"},
    "/predict": {"model": "labels", "inputs": "to see"},
    "/similarity": {"model": "encoder", "inputs": {"source_sentence": "to see", "sentences": ["a b c"]}},
    "/decode": {"model": "encoder", "ids": [257, 97]},
    "/tokenize": {"model": "one", "prompt": "to see"},
    "/detokenize": {"model": "one", "tokens": [97, 98]},
    "/look/generate": {**SOME, "prompt": "to see", "max_tokens": 8, "stream": False},
    "/look/trace": {**SOME, "prompt": "to see", "points": ["embed"], "max_tokens": 8, "temperature": 1.0},
    "/look/lens": LOOK,
    "/look/beams": LOOK,
    "/look/features": {**LOOK, "dictionary": "sae"},
    "/look/profile": {"model": "one"},
    "/look/attribution": {**LOOK, "token": 97},
    "/look/graph": {**LOOK, "nodes": 20},
    "/look/causes": {**LOOK, "token": 97, "tried": 4},
    "/look/heads": LOOK,
    "/look/raised": {**LOOK, "points": ["blocks.0.feedforward.hidden[dims=3]"]},
    "/look/place": LOOK,
    "/look/report": LOOK,
    "/look/neighbours": {"model": "one", "words": "a"},
    "/look/weights": {"model": "one", "point": "blocks.0.attention.q", "index": 0},
    "/look/pieces": {"model": "one", "ids": [97]},
    "/look/tokenize": {"model": "one", "text": "to see"},
}
BASES |= {f"/{name}": BASES[f"/v1/{name}"] for name in ("chat/completions", "responses")}
"""The base request of each route; the tests add fields to it."""
BODIES = {name: route.body.schema for api in known_apis().values() for name, route in api.routes.items() if route.body}
SAME = {id(schema) for name, schema in BODIES.items() if name.split(" ")[1] in BASES}
ROUTES = {name: schema for name, schema in BODIES.items() if name.split(" ")[1] in BASES or id(schema) not in SAME}
"""Schemas of request bodies, by the first route of each schema."""
FINDING = ("causes", "heads", "raised", "place")
A, TWO = {"logit_bias": {"97": 100}}, {"allowed": [97, 98]}
"""The answer consists of the letter a; of a and b."""
NO_LIMIT = dict.fromkeys(("max_tokens", "max_output_tokens", "n_predict", "num_predict"))
END = {"logit_bias": {"257": 100}}
"""The answer would end at once."""
DRY = {**TWO, "temperature": 0, "dry_multiplier": 5.0}
SCHEMA = {"enum": ["abc"]}
STRICT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
F, G = {"name": "f"}, {"name": "g"}
CHAT_TOOLS = {"tools": [{"type": "function", "function": one} for one in (F, G)], "max_tokens": 200, "seed": 3}
TOOLS = {"tools": [{"type": "function", **one} for one in (F, G)], "max_output_tokens": 200, "seed": 3}
CLAUDES_TOOLS = {
    "tools": [{**one, "input_schema": {"type": "object", "additionalProperties": False}} for one in (F, G)]
}
CLAUDES_CHOICE = {**CLAUDES_TOOLS, "max_tokens": 200, "seed": 3}
CHOSEN = {"tools": [{"type": "function", **one} for one in (F, G)]}
CALLED = {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}
RESULT = {"input": [{"type": "function_call_output", "call_id": "c", "output": "a"}]}
ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": F}]}
VIEW = {"views": [{"title": "v", "point": "blocks.0.attention.pattern"}]}
EDIT = {"edits": [{"edit": "scale", "point": "blocks.0.residual", "factor": 2.0}]}
ADDED = {"edits": [{"edit": "add", "point": "blocks.0.residual[tokens=0]", "values": [0.0] * 64}]}
LOOK_MESSAGES = [
    ("role", USER[0], "system"),
    *(
        (f"content[].{field}", {"role": "user", "content": [{"type": kind, field: "a"}]}, "b")
        for kind, field in (("text", "text"), ("refusal", "refusal"))
    ),
]
LONG = "q" + "a b " * 2500
ENCODER_PATHS = (
    *("/v1/embed", "/v2/embed", "/score", "/classify", "/pooling"),
    *("/", "/embed", "/embed_sparse", "/predict", "/similarity", "/decode"),
)
SHOWN: dict[str, tuple[Any, ...]] = {
    "/v1/systemone state": ({}, "x"),
    "/v1/systemone uncalibrated": ({"model": "one"}, True),  # of a model without calibration
    # generation options, which are also fields of Ollama's ``options``
    "repeat_last_n": ({**TWO, "temperature": 0, "frequency_penalty": 50.0}, 0),
    "dry_multiplier": ({**TWO, "temperature": 0}, 5.0),
    "dry_base": ({**DRY, "dry_multiplier": 0.01}, 1.0, 10.0, 100.0),
    "dry_allowed_length": (DRY, 0, 4),
    "dry_penalty_last_n": (DRY, 2),
    "dry_sequence_breakers": (DRY, ["a"]),
    "logit_bias": ({}, {"97": 100}),
    "banned": (A, [97]),
    "min_new_tokens": ({**END, "ignore_eos": False}, 3),
    "target_language": ({}, "<s>"),
    "dynatemp_exponent": ({"dynatemp_range": 0.9}, 0.01, 50.0),
    "xtc_probability": (TWO, 1.0),
    "xtc_threshold": ({**TWO, "xtc_probability": 1.0}, 0.5),
    "mirostat_tau": ({"mirostat": 2}, 0.1, 20.0),
    "mirostat_eta": ({"mirostat": 2, "mirostat_tau": 3.0}, 0.0, 1.0),
    "samplers": ({"temperature": 3.0, "min_p": 0.5}, ["temperature", "min_p"], ["min_p", "temperature"]),
    "stop": (A, "a"),
    "stop_sequences": (A, ["a"]),
    "stop_token_ids": (A, [97]),
    "ignore_eos": (END, False),
    "max_time": ({}, 1e-6),
    "keep_special": (END, True),
    "deadline": ({**NO_LIMIT, "max_new_tokens": 400}, 0.001),
    "/v1/messages deadline": ({"max_tokens": 400}, 0.001),
    # fields that need other fields
    **{f"/api/{route} name": ({"model": None}, "two") for route in ("chat", "generate")},
    **{f"/api/{route} name": ({"model": None}, "encoder") for route in ("embed", "embeddings", "show")},
    "max_new_tokens": (NO_LIMIT, 3),
    "max_completion_tokens": (NO_LIMIT, 3),
    "/v1/messages max_new_tokens": ({}, 3),
    "stream_options": ({"stream": True}, {"include_usage": True}),
    "stream_options.include_usage": ({"stream": True}, True),
    "chat_template_kwargs": ({}, {"extra": "x"}),
    "add_generation_prompt": ({"continue_final_message": True}, True),
    "messages[].content": ({}, "Who?"),
    "return_progress": ({"stream": True}, True),
    **{f"{path} keep_special": ({"logit_bias": {"256": 100}}, True) for path in ("/completion", "/infill")},
    "post_sampling_probs": ({"n_probs": 2, "top_k": 2}, True),
    "/rerank truncate": ({"documents": [LONG]}, False),
    "/rerank truncation_direction": ({"model": "ranker", "documents": [LONG]}, "Left"),
    "/rerank raw_scores": ({"model": "ranker"}, True),
    "/rerank rank_fields": ({"documents": [{"text": "a", "b": "c"}]}, ["b"]),
    **{f"{path} model": ({}, "odd") for path in ENCODER_PATHS},
    **{
        f"{path} truncation_direction": ({"inputs": LONG, "truncate": True}, "Left")
        for path in ("/", "/embed", "/embed_sparse", "/predict")
    },
    **{f"{path} truncate": ({"inputs": LONG}, True) for path in ("/", "/embed", "/embed_sparse", "/predict")},
    **{
        f"/similarity parameters.{name}": (
            {"inputs": {"source_sentence": "to see", "sentences": [LONG]}, "parameters": parameters},
            value,
        )
        for name, parameters, value in (
            ("truncate", {}, True),
            ("truncation_direction", {"truncate": True}, "Left"),
            ("prompt_name", {}, "odd"),
        )
    },
    "/similarity parameters": ({}, {"prompt_name": "odd"}),
    "/ parameters": ({"model": "labels"}, {"top_k": 1}),
    "/ raw_scores": ({"model": "labels"}, True),
    **{
        f"{path} parameters.{name}": ({"model": "labels", "parameters": {}}, value)
        for path in ("/", "/predict")
        for name, value in (("top_k", 1), ("function_to_apply", "none"))
    },
    "/v1/embeddings truncate": ({"input": LONG}, True),
    "/v1/embeddings input_type": ({"model": "prompted"}, "query"),
    "/v1/embeddings task": ({"model": "prompted"}, "retrieval.query"),
    "/v1/embed input_type": ({"model": "prompted"}, "search_query"),
    "/v2/embed input_type": ({"model": "prompted"}, "search_query"),
    "/v1/embed truncate": ({"texts": [LONG]}, "NONE"),
    "/v2/embed truncate": ({"texts": [LONG]}, "NONE"),
    "/v2/embed inputs": ({"texts": None}, [{"content": [{"type": "text", "text": "a"}]}]),
    **{
        f"/v2/embed inputs[].content[].{name}": (
            {"texts": None, "inputs": [{"content": [{"type": "text", "text": "a"}]}]},
            value,
        )
        for name, value in (("type", "odd"), ("text", "b"))
    },
    "/v2/embed inputs[].content": (
        {"texts": None, "inputs": [{"content": [{"type": "text", "text": "a"}]}]},
        [{"type": "text", "text": "b"}],
    ),
    "/pooling encoding_format": ({"model": "encoder"}, "base64"),
    "/tokenize inputs": ({"prompt": None}, "a"),
    "/tokenize prompt_name": ({"prompt": None, "inputs": "a"}, "odd"),
    "/api/pull name": ({"model": None}, "odd"),
    # constraints and tools
    "structured_outputs": ({}, {"regex": "a"}),
    "response_format": ({}, {"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
    "response_format.type": ({"response_format": {"type": "text"}}, "json_object"),
    "response_format.schema": ({"response_format": {"type": "json_object"}}, SCHEMA),
    "response_format.json_schema.schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        SCHEMA,
    ),
    "output_config.format.schema": ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, SCHEMA),
    "output_format.schema": ({"output_format": {"type": "json_schema", "schema": {}}}, SCHEMA),
    "output_config": ({}, {"effort": "low"}),
    "text": ({}, {"format": {"type": "json_schema", "schema": SCHEMA}}),
    "text.format": ({}, {"type": "json_schema", "schema": SCHEMA}),
    "reasoning": ({}, {"effort": "low"}),
    "messages[].content[].input": (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]},
        {"a": 1},
    ),
    "previous_response_id": ({}, "resp_none"),
    "truncation": ({"input": [{"role": "user", "content": "a" * 900}, {"role": "user", "content": "b" * 200}]}, "auto"),
    "store": ({}, False),
    "metadata": ({}, {"a": "b"}),
    **{
        f"/v1/responses/input_tokens tool_choice.{name}": (
            {**CHOSEN, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", **F}]}},
            wrong,
        )
        for name, wrong in (("mode", "odd"), ("tools", [{"type": "function", "name": "odd"}]))
    },
    "/v1/responses/input_tokens tool_choice.name": (
        {**CHOSEN, "tool_choice": {"type": "function", "name": "f"}},
        "odd",
    ),
    "input[].arguments": (CALLED, '{"a": 1}'),
    "input[].name": (CALLED, "go"),
    "input[].call_id": (CALLED, "do"),
    "input[].output": (RESULT, "bo"),
    "text.format.schema": ({"text": {"format": {"type": "json_object"}}}, SCHEMA),
    "tools[].function": ({}, F),
    "tools[].function.strict": (
        {
            "tools": [{"type": "function", "function": {**F, "parameters": STRICT}}],
            "tool_choice": "required",
            "max_tokens": 60,
        },
        False,
    ),
    "/api/chat tools[].function.strict": (
        {"tools": [{"type": "function", "function": {**F, "parameters": {"properties": {"a": {"type": "odd"}}}}}]},
        False,
    ),
    "/v1/responses tools[].strict": (
        {**TOOLS, "tools": [{"type": "function", **F, "parameters": STRICT}], "tool_choice": "required"},
        False,
    ),
    "/v1/messages tools[].strict": (
        {"tools": [{**F, "input_schema": STRICT}], "tool_choice": {"type": "any"}, "max_tokens": 60},
        False,
    ),
    "/v1/chat/completions parallel_tool_calls": ({**CHAT_TOOLS, "tool_choice": "required"}, False),
    "/v1/responses parallel_tool_calls": ({**TOOLS, "tool_choice": "required"}, False),
    "tool_choice.disable_parallel_tool_use": ({**CLAUDES_CHOICE, "tool_choice": {"type": "any"}}, True),
    "/v1/chat/completions tool_choice": (CHAT_TOOLS, "required"),
    "/v1/responses tool_choice": (TOOLS, "required"),
    "/v1/messages tool_choice": (CLAUDES_CHOICE, {"type": "any"}),
    "/v1/messages/count_tokens tool_choice": (CLAUDES_TOOLS, {"type": "none"}),
    "/v1/messages tool_choice.type": ({**CLAUDES_CHOICE, "tool_choice": {"type": "auto"}}, "any", "none"),
    "/v1/messages/count_tokens tool_choice.type": ({**CLAUDES_TOOLS, "tool_choice": {"type": "auto"}}, "none"),
    "tool_choice.name": ({**CLAUDES_CHOICE, "tool_choice": {"type": "tool", "name": "f"}}, "g"),
    "/v1/messages/count_tokens tool_choice.name": (
        {**CLAUDES_TOOLS, "tool_choice": {"type": "tool", "name": "f"}},
        "odd",
    ),
    "/v1/responses tool_choice.tools": (
        {**TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", **F}]}},
        [{"type": "function", **G}],
    ),
    "/v1/responses tool_choice.name": ({**TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "g"),
    "/v1/responses tool_choice.type": ({**TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "odd"),
    "tool_choice.mode": (
        {**TOOLS, "tool_choice": {"type": "allowed_tools", **ALLOWED, "tools": [{"type": "function", **F}]}},
        "required",
    ),
    "tool_choice.function": ({**CHAT_TOOLS, "tool_choice": {"type": "function", "function": F}}, G),
    "tool_choice.allowed_tools": (
        {**CHAT_TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}},
        {**ALLOWED, "mode": "required"},
    ),
    "tool_choice.allowed_tools.mode": (
        {**CHAT_TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}},
        "required",
    ),
    "tool_choice.allowed_tools.tools": (
        {**CHAT_TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {**ALLOWED, "mode": "required"}}},
        [{"type": "function", "function": G}],
    ),
    "tool_choice.allowed_tools.tools[].function": (
        {**CHAT_TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {**ALLOWED, "mode": "required"}}},
        G,
    ),
    "tool_choice.allowed_tools.tools[].function.name": (
        {**CHAT_TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {**ALLOWED, "mode": "required"}}},
        "g",
    ),
    **{
        f"{route} {name}{items}.{field}": ({"content": None, name: prompt}, value)
        for route, name in (("/completion", "prompt"), ("/embedding", "content"), ("/embedding", "input"))
        for items, prompt in (("", {}), ("[]", [{}]))
        for field, value in (
            ("prompt_string", "a"),
            ("content", [{"type": "text", "text": "a"}]),
            ("multimodal_data", ["x"]),
        )
    },
    **{
        f"/look/{route} messages[].{field}": ({"prompt": None, "messages": [message]}, value)
        for route in ("generate", "trace", "lens", "beams", "attribution", "graph", "features", *FINDING)
        for field, message, value in LOOK_MESSAGES
    },
    # fields of single routes
    "/v1/chat/completions logprobs_of": ({"logprobs": True, "top_k": 2}, "chain"),
    "/v1/chat/completions top_logprobs": ({"logprobs": True}, 2),
    "/v1/completions logprobs_of": ({"logprobs": 1, "top_k": 2}, "chain"),
    "/look/generate logprobs_of": ({"top_k": 2}, "chain"),
    "/api/embed truncate": ({"input": "a" * 999}, False),
    "/tokenize add_special_tokens": ({"model": "two"}, False),
    "/tokenize add_special": ({"model": "two"}, False),
    "/tokenize parse_special": ({"prompt": "</s>"}, False),
    "/tokenize content": ({"prompt": None}, "a"),
    "/tokenize messages": ({"prompt": None}, USER),
    "/look/lens token": ({}, 98),
    "/look/attribution token": ({}, 98),
    "/look/graph dictionary": ({}, "sae"),
    "/look/graph tokens": ({}, [97]),
    "/look/attribution against": ({}, 98),
    "/look/causes token": ({}, 98),
    "/look/place word": ({}, "t"),
    "/look/place key": ({"word": "e"}, "t"),
    "/look/causes against": ({}, 98),
    "/look/trace edits": ({}, [{"edit": "ablate", "point": "blocks.0.residual"}]),
    "/look/generate points": ({}, ["embed"]),
    "/look/generate norms": ({}, ["embed"]),
    "/look/generate edits": ({}, [{"edit": "ablate", "point": "blocks.0.residual"}]),
    "edits[].edit": (EDIT, "ablate"),
    "edits[].point": (EDIT, "blocks.1.residual"),
    "edits[].factor": (EDIT, 9.0),
    "edits[].values": (ADDED, [9.0] * 64),
    "edits[].shape": (ADDED, [8, 8]),
    "views": ({}, VIEW["views"]),
    "views[].title": (VIEW, "w"),
    "views[].point": (VIEW, "blocks.1.attention.pattern"),
    "views[].head": (VIEW, 1),
    "views[].rows": (VIEW, [0, 2]),
    "views[].pool": (VIEW, 2),
}
"""By field: the other fields that it needs, and values with an effect, if the schema does not say enough."""
ELSEWHERE = {
    "priority": "tests/unit/engine/test_engine.py",
    "probes": "tests/unit/serve/test_control_fields.py",
    "steer": "tests/unit/serve/test_control_fields.py",
    "prompt_lookup": "tests/unit/engine/test_speculation.py",
    "draft": "tests/unit/engine/test_draft.py",
    "timings_per_token": "tests/unit/serve/test_llamacpp.py",
    "remembered": "tests/unit/serve/test_look_remembered.py",
}
"""Fields whose effect is not in an answer, and the test file for the effect."""
UNLIKE = re.compile(
    r"id|created(_at)?|completed_at|call_id|timings|(micro)?seconds|.*_per_second|rate|repetitions|share|.*_duration|"
    r"cached_tokens|tokens_cached|cache_\w+_input_tokens|modified_at|completion_tokens_details|digest"
)
"""Fields of answers whose values differ between runs."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose model has a chat template that shows all fields of a request."""
    folder = encoder_models(models_folder(tmp_path_factory.mktemp("fields")))
    decision_model(folder / "decider", "openjev")
    dictionaries.sae(folder / "dictionaries" / "sae", "blocks.1.hook_resid_post")

    def load(name: str) -> LLM:
        given = [str(folder / "dictionaries" / "sae")] if name == "one" else None
        llm = pellucid.load(folder / name, threads=1, dictionaries=given)
        if name == "decider":  # the template belongs to the model
            return llm
        llm.tokenizer = replace(llm.tokenizer, chat_template=TEMPLATE)
        if name == "two":
            llm.tokenizer = replace(llm.tokenizer, post_processor=Template.around([256], []))
        llm.inputs = structs.replace(llm.inputs, tokenizer=llm.tokenizer)
        return llm

    def pull(name: str, progress: object) -> str:
        if name not in NAMES:
            raise ModelNotFound(f"no model is called {name!r}")
        return name

    with serving(folder, load=load, pull=pull, names=[*NAMES, *ENCODERS, "decider"]) as made, CLIENT:
        yield made


Schema: TypeAlias = "Mapping[str, Any]"


CLIENT = httpx.Client(headers={"X-Request-Id": "fields"}, timeout=60)


def asked(served: Served, path: str, body: Any) -> tuple[int, Any]:
    """Status and content of an answer, without values that differ between runs."""
    raw = json.dumps(body).encode()
    answer = CLIENT.post(served.url + path, content=raw)
    if answer.headers["content-type"] == "application/json":
        return answer.status_code, steady(answer.json())
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return answer.status_code, [steady(json.loads(line)) for line in lines if line.startswith("{")]


def steady(value: Any) -> Any:
    if isinstance(value, list):
        return [steady(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {name: steady(one) for name, one in value.items() if not UNLIKE.fullmatch(name)}
    if "cache_read_input_tokens" in value:
        del made["input_tokens"]  # counts only tokens that were not cached
    if "operations" in value:  # sorted by time
        made["operations"] = sorted(map(json.dumps, made["operations"]))
    return made


Around: TypeAlias = "tuple[tuple[str, Schema], ...]"
"""(path, schema) of the objects around a field, from the outermost."""


def objects(schema: Schema, path: str = "", around: Around = ()) -> Iterator[tuple[Schema, Around]]:
    """Yield the objects of a schema with known fields, at any depth, with the objects around them."""
    for one in schema.get("anyOf", ()):
        yield from objects(one, path, around)
    if "items" in schema:
        yield from objects(schema["items"], f"{path}[]", around)
    if "properties" in schema:
        around = (*around, (path, schema)) if path else ()
        yield schema, around
        for name, one in schema["properties"].items():
            yield from objects(one, f"{path}.{name}" if path else name, around)


def fields(schema: Schema) -> Iterator[tuple[str, Schema, Around]]:
    """Yield the fields of a schema at any depth, for example ``tools[].function.name``."""
    for about, around in objects(schema):
        where = f"{around[-1][0]}." if around else ""
        for name, one in about["properties"].items():
            yield where + name, one, around


def filled(body: Any, around: Around) -> Any:
    """The body with the required fields of all objects around a field."""
    for path, schema in around:
        here = at(body, path)
        body = with_field(body, path, {**next(values(schema)), **(here if isinstance(here, dict) else {})})
    return body


def at(body: Any, path: str) -> Any:
    """Value at a path of the body; None if it is missing."""
    for step in steps(path):
        try:
            body = body[step]
        except (LookupError, TypeError):
            return None
    return body


def steps(path: str) -> list[Any]:
    return [step for part in path.split(".") for step in (part.split("[]")[0], *[0] * part.count("[]"))]


def values(schema: Schema) -> Iterator[Any]:
    """Yield some values that a schema allows."""
    for one in schema.get("anyOf", ()):
        yield from values(one)
    if "enum" in schema:
        yield from schema["enum"]
        return
    kind = schema.get("type")
    low, high = schema.get("minimum", schema.get("exclusiveMinimum", 0)), schema.get("maximum", 1 << 20)
    if kind == "boolean":
        yield from (True, False)
    elif kind == "integer":
        yield from (one for one in (low, low + 1, 2, 5) if low <= one <= high)
    elif kind == "number":
        yield from (one for one in (low + 0.01, low + 0.5, 2.0, low + 1.0, high - 0.01) if low < one <= high)
    elif kind == "string":
        yield from ("a", "the")
    elif kind == "array":
        yield from ([one] for one in values(schema.get("items", {})))
    elif kind == "object":
        required = {name: list(values(schema["properties"][name])) for name in schema.get("required", ())}
        if all(required.values()):
            yield {name: found[0] for name, found in required.items()}


def with_field(body: Any, path: str, value: Any) -> Any:
    """The body with a field set. Missing objects and lists around the field are created."""
    made = here = copy.deepcopy(body)
    way = steps(path)
    for step, following in itertools.pairwise(way):
        inner = here[step] if step in here or (step == 0 and here) else None
        if not isinstance(inner, list if following == 0 else dict):
            inner = [] if following == 0 else {}
            put(here, step, inner)
        here = inner
    put(here, way[-1], value)
    return made


def put(at: Any, step: Any, value: Any) -> None:
    if isinstance(at, list) and not at:
        at.append(value)
    else:
        at[step] = value


def context_of(route: str, path: str, around: Around) -> tuple[dict[str, Any], list[Any]]:
    """The request for a field, and values with an effect if the schema does not say enough."""
    base, inner = BASES[route], path.removeprefix("options.")
    for key in (f"{route} {path}", f"/v1{route} {path}", inner):
        if key in SHOWN:
            more, *found = SHOWN[key]
            if "options" in base and key != f"{route} {path}":
                more = {"options": {**base["options"], **more}}
            return {**base, **more}, found
    return filled(base, around), []


@pytest.mark.parametrize("name", ROUTES)
def test_no_field_is_without_effect(served: Served, name: str) -> None:
    schema, path = ROUTES[name], name.split(" ")[1]
    base = BASES[path]
    assert asked(served, path, base)[0] == 200
    assert asked(served, path, base) == asked(served, path, base), "the answer to one request is one answer"
    silent = []
    for field, about, around in fields(schema):
        plain, found = context_of(path, field, around)
        before = asked(served, path, plain)
        if about.get("description", "").startswith("Changes nothing"):
            for value in list(values(about)) or ("a", True, [], {"a": 1}):
                assert unechoed(asked(served, path, with_field(plain, field, value)), schema) == unechoed(
                    before, schema
                ), field
        elif "const" in about:
            assert asked(served, path, with_field(plain, field, about["const"])) == before, field
            status, said = asked(served, path, with_field(plain, field, ["odd"]))
            assert (status, field.split(".")[-1] in json.dumps(said)) == (400, True), (field, said)
        elif field.removeprefix("options.") not in ELSEWHERE and not shows(
            served, path, field, plain, found or list(values(about)), before
        ):
            silent.append(field)
    assert not silent, " ".join(silent)


def unechoed(answer: tuple[int, Any], schema: Schema) -> Any:
    """An answer without its echo of the request's fields."""
    status, said = answer
    if not isinstance(said, dict):
        return answer
    return status, {name: one for name, one in said.items() if name not in schema["properties"]}


def shows(served: Served, path: str, field: str, plain: Any, found: list[Any], before: tuple[int, Any]) -> bool:
    """True if a value changes the answer or is refused."""
    if field.endswith("type"):  # synonyms
        found = [*found, "odd"]
    return any(asked(served, path, with_field(plain, field, value)) != before for value in found)


@pytest.mark.parametrize("name", ROUTES)
def test_an_unknown_field_is_refused(served: Served, name: str) -> None:
    schema, path = ROUTES[name], name.split(" ")[1]
    passed = []
    for about, around in objects(schema):
        if about.get("additionalProperties", True) is not False:
            continue
        where = f"{around[-1][0]}." if around else ""
        wanted = with_field(filled(BASES[path], around), f"{where}unheard_of", [])
        status, said = asked(served, path, wanted)
        if status != 400 or "unheard_of" not in json.dumps(said):
            passed.append((where, status))
    assert passed == []


def wrong_values(schema: Schema) -> Iterator[Any]:
    """Yield values of a type that a schema does not allow, and numbers outside its range. Null means absent."""
    kinds = {one.get("type") for one in schema.get("anyOf", (schema,))}
    if None in kinds or "anyOf" in schema:  # any value, or alternatives that convert values
        return
    if kinds <= {"integer", "number"}:
        yield from ("odd", [], {"odd": 1})
        if "minimum" in schema:
            yield schema["minimum"] - 1
        if "exclusiveMinimum" in schema:
            yield schema["exclusiveMinimum"]
        if "maximum" in schema:
            yield schema["maximum"] + 1
    elif kinds == {"boolean"}:
        yield from ("odd", 5, [], {"odd": 1})
    elif kinds == {"string"}:
        yield from (5, True, [5], {"odd": 1})
    elif kinds == {"array"}:
        yield from (5, True, {"odd": 1})
    elif kinds == {"object"}:
        yield from (5, "odd", [5])


CONSTRAINTS = ("json_schema", "regex", "choices", "choice", "grammar", "json_object")
NAMED = dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "schema", "json"), CONSTRAINTS)
"""Names of constraints in errors, by names of other engines for them."""


@pytest.mark.parametrize("name", ROUTES)
def test_a_wrong_value_is_refused_with_the_name_of_the_field(served: Served, name: str) -> None:
    schema, path = ROUTES[name], name.split(" ")[1]
    passed = []
    for field, about, around in fields(schema):
        if about.get("description", "").startswith("Changes nothing"):
            continue
        for value in wrong_values(about):
            plain, last = filled(BASES[path], around), field.split(".")[-1].removesuffix("[]")
            answer = asked(served, path, with_field(plain, field, value))
            if value == -1 and (last == "seed" or answer == asked(served, path, plain)):  # other engines: absent
                continue
            if answer[0] != 400 or not any(one in json.dumps(answer[1]) for one in (last, *NAMED.get(last, ()))):
                passed.append((field, value, answer[0], answer[1] if answer[0] == 400 else ""))
    assert passed == []


def test_the_table_of_harmless_fields_is_in_the_guide() -> None:
    assert "\n".join(table()) in (ROOT / "docs" / "serving.md").read_text()
    described = {
        field for schema in ROUTES.values() for field, about, _ in fields(schema)
        if about.get("description", "").startswith("Changes nothing")
    }  # fmt: skip
    ends = {re.sub(r"^.*?([\w]+)$", r"\1", field) for field in described}
    assert {re.sub(r"^.*?([\w]+)$", r"\1", field) for field in IGNORED} == ends


def test_effects_that_no_answer_shows_have_tests() -> None:
    for field, file in ELSEWHERE.items():
        assert re.search(rf"\b{field}\b", (ROOT / file).read_text()), (field, file)
