"""Each public function with a text, texts, a prompt or token ids as an argument takes it, or refuses it in one line.

The functions are found by the names of their parameters. Every odd value gives a result or a Pellucid error that names
the argument; a text in place of a list of texts is never read letter by letter.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dictionaries import sae
from support.encoder_models import encoder_models
from support.tiny import TASKS

import pellucid
from pellucid.errors import PellucidError, brief
from pellucid.llm import LLM
from pellucid.tokenize import Tokenizer
from pellucid.trace import Dictionary, log_probability

TEXTS = ["texts", "documents", "words", "pairs", "prompts", "corpus"]
ONE = ["prompt", "text", "query", "question", "given", "of", "a", "b", "clean", "corrupted", "subject", "state"]
ONE += ["first", "second", "messages", "ids", "instruction"]
MODULES = ["pellucid.trace", "pellucid.evaluate"]
MODELS = {"embed": "prompted", "sparse": "sparse", "token_vectors": "tokens", "classify": "labels", "fill": "filler"}
MODELS |= {"rerank": "prompted", "tag": "tagger", "encode": "prompted", "label_lens": "labels", "answer": "answerer"}
INNER = {
    "LLM.label_scores", "LLM.rows_at", "LLM.taped", "Tokenizer.aligned_ids", "Tokenizer.ids", "Tokenizer.parts",
    "Tokenizer.pre_tokens", "Tokenizer.segments", "Tokenizer.spans", "Tokenizer.encode_template",
    "Tokenizer.encode_filled",
}  # fmt: skip
"""Methods for other parts of Pellucid, whose arguments are checked before."""
TAKEN = {("given", "None"), ("state", "list of None"), ("state", "real"), ("of", "real")}
"""Odd values that a parameter takes."""
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
SAMPLE = "the red bird"
PAIR = [("the red bird", "an old tree")]
VALUES: dict[str, Callable[[], Any]] = {
    "text": lambda: SAMPLE,
    "list": lambda: [SAMPLE, "an old tree"],
    "tuple": lambda: (SAMPLE, "an old tree"),
    "generator": lambda: (text for text in [SAMPLE, "an old tree"]),
    "array": lambda: np.array([SAMPLE, "an old tree"]),
    "ids": lambda: [70, 71, 72],
    "array of ids": lambda: np.array([70, 71, 72]),
    "floats": lambda: np.array([0.5, 1.5]),
    "nested": lambda: [[SAMPLE], ["an old tree"]],
    "empty text": lambda: "",
    "empty list": list,
    "empty generator": lambda: iter(()),
    "empty texts": lambda: ["", SAMPLE],
    "surrogate": lambda: "\ud800",
    "bytes": lambda: SAMPLE.encode(),
    "list of bytes": lambda: [SAMPLE.encode()],
    "None": lambda: None,
    "list of None": lambda: [None],
    "number": lambda: 5,
    "real": lambda: 1.5,
    "truth": lambda: True,
    "mapping": lambda: {SAMPLE: 1},
    "empty mapping": dict,
    "set": lambda: {SAMPLE, "an old tree"},
    "object": object,
    "path": lambda: Path("a text"),
    "scalar": lambda: np.array(SAMPLE),
    "messages": lambda: [{"role": "user", "content": "Hi"}],
}


def functions() -> Iterator[tuple[str, str, str]]:
    """The name of each public function, its owner, and a parameter that takes a text."""
    owners: list[Any] = [LLM, Tokenizer]
    for module in map(importlib.import_module, MODULES):
        names = getattr(module, "__all__", [*vars(module)])
        found = [getattr(module, name) for name in names if not name.startswith("_")]
        owners += [one for one in found if inspect.isclass(one) and one.__module__.startswith("pellucid.trace")]
        for function in found:
            if inspect.isfunction(function) and function.__module__.startswith(tuple(MODULES)):
                yield from ((module.__name__, function.__name__, name) for name in taken(function))
    for owner in dict.fromkeys(owners):
        for name, function in inspect.getmembers(owner, callable):
            static = inspect.getattr_static(owner, name)
            usable = owner in (LLM, Tokenizer) or isinstance(static, (classmethod, staticmethod))
            if usable and not name.startswith("_") and f"{owner.__name__}.{name}" not in INNER:
                yield from ((owner.__name__, name, parameter) for parameter in taken(function))


def taken(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.name in (*ONE, *TEXTS) and one.annotation != "int"]


CALLS = sorted({*functions()})
OTHERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **dict.fromkeys(ONE, lambda models: SAMPLE),
    "messages": lambda models: [{"role": "user", "content": "Hi"}],
    "texts": lambda models: [SAMPLE],
    "points": lambda models: ["blocks.0.residual"],
    "target": lambda models: log_probability(models["text"], 70),
    "targets": lambda models: [log_probability(models["text"], 70)],
    "copies": lambda models: [[]],
    "n": lambda models: 1,
    "documents": lambda models: ["an old tree"],
    "words": lambda models: [70, 71],
    "questions": lambda models: {"red": {"type": "noul", "instructions": "Is it red?"}},
    "query": lambda models: SAMPLE,
    "key": lambda models: 0,
    "reference": lambda models: models["text"],
    "subject": lambda models: "red",
    "dictionary": lambda models: models["dictionary"],
    "feature": lambda models: 0,
    "token": lambda models: 70,
}
OPTIONS = {
    **{f"LLM.{name}": {"max_new_tokens": 1, "temperature": 0} for name in ("generate", "agenerate", "start", "stream")},
    **{f"LLM.{name}": {"max_new_tokens": 1, "temperature": 0} for name in ("astream", "chat", "request", "samples")},
    "LLM.beam_search": {"max_new_tokens": 1, "num_beams": 1},
    "LLM.record": {"max_new_tokens": 1},
    "pellucid.trace.causal_trace": {"samples": 1},
    "pellucid.trace.integrated_gradients": {"steps": 1},
    "pellucid.trace.attribution_graph": {"nodes": 4, "logits": 1},
    "pellucid.trace.ablation_sweep": {"values": "mean"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = encoder_models(tmp_path_factory.mktemp("models"))
    found: dict[str, Any] = {
        name: pellucid.load(folder / name, threads=1, chat_template=None if name != "text" else TEMPLATE)
        for name in sorted({"text", *MODELS.values()} - {"answerer"})
    }
    found["answerer"] = pellucid.load(TASKS["bert-answer"], threads=1)
    sae(folder / "sae", "blocks.0.hook_resid_post")
    found["dictionary"] = Dictionary.open(folder / "sae", found["text"])
    yield found
    for model in found.values():
        if isinstance(model, LLM):
            model.close()


def called(models: dict[str, Any], owner: str, name: str, given: dict[str, Any], out: Path) -> Any:
    """The result of a public function, with ``given`` and valid other arguments."""
    model = models[MODELS.get(name, "text")]
    start: dict[str, Any] = {}
    if owner == "LLM":
        function = getattr(model, name)
    elif owner == "Tokenizer":
        function = getattr(model.tokenizer, name)
    elif owner in MODULES:
        function, start = getattr(importlib.import_module(owner), name), {"model": model, "llm": model}
    else:
        function, start = getattr(getattr(importlib.import_module(MODULES[0]), owner), name), {"model": model}
    start = {key: one for key, one in start.items() if key in inspect.signature(function).parameters}
    positional, keywords = [], {**OPTIONS.get(f"{owner}.{name}", {})}
    for parameter in inspect.signature(function).parameters.values():
        value = given.get(parameter.name, start.get(parameter.name))
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if parameter.name == "out":
            keywords["out"] = out
        elif parameter.name == "points" and parameter.kind is parameter.VAR_POSITIONAL:
            positional.append("blocks.0.residual")
        elif parameter.name in given or parameter.name in start or needed:
            if parameter.name not in given and parameter.name not in start:
                value = OTHERS[parameter.name](models)
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[parameter.name] = value
            else:
                positional.append(value)
    result = function(*positional, **keywords)
    if inspect.isawaitable(result):
        return asyncio.run(awaited(result))
    if isinstance(result, AsyncIterator):
        return asyncio.run(collected(result))
    return list(result) if isinstance(result, Iterator) or name == "start" else result


async def awaited(result: Any) -> Any:
    return await result


async def collected(result: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in result]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(("owner", "name", "parameter"), CALLS)
def test_every_value_is_taken_or_refused_in_one_line(
    owner: str, name: str, parameter: str, kind: str, models: dict[str, Any], tmp_path: Path
) -> None:
    value = VALUES[kind]()
    with suppress(PellucidError):
        called(models, owner, name, {parameter: value}, tmp_path / "out")


@pytest.mark.parametrize("kind", ["bytes", "None", "list of None", "real", "object", "set"])
@pytest.mark.parametrize(("owner", "name", "parameter"), CALLS)
def test_a_refusal_names_the_argument_or_the_value(
    owner: str, name: str, parameter: str, kind: str, models: dict[str, Any], tmp_path: Path
) -> None:
    value = VALUES[kind]()
    if (parameter, kind) in TAKEN:
        return
    with pytest.raises(PellucidError) as caught:
        called(models, owner, name, {parameter: value}, tmp_path / "out")
    assert "\n" not in str(caught.value)
    named = [parameter, brief(value), *(map(brief, value) if isinstance(value, list) else ())]
    assert any(name in str(caught.value) for name in named)


LISTS = [one for one in CALLS if one[2] in TEXTS]
SINGLE = {"LLM.embed", "LLM.sparse", "LLM.token_vectors", "LLM.classify"}
"""Methods whose result for one text is the first result for a list of one."""


@pytest.mark.parametrize(("owner", "name", "parameter"), LISTS)
def test_a_text_is_never_read_as_its_letters(
    owner: str, name: str, parameter: str, models: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if f"{owner}.{name}" in SINGLE:
        one = called(models, owner, name, {parameter: SAMPLE}, out)
        (first,) = called(models, owner, name, {parameter: [SAMPLE]}, out)
        assert np.array_equal(one, first) if isinstance(one, np.ndarray) else one == first
        return
    if (owner, name) == ("pellucid.trace", "gradients"):  # one prompt, or several
        return
    with pytest.raises(PellucidError):
        called(models, owner, name, {parameter: SAMPLE}, out)


@pytest.mark.parametrize("kind", ["tuple", "generator", "array"])
@pytest.mark.parametrize(
    ("owner", "name", "parameter"),
    [one for one in LISTS if one[1] in ("embed", "sparse", "token_vectors", "classify", "rerank", "similarity")],
)
def test_other_sequences_are_lists(
    owner: str, name: str, parameter: str, kind: str, models: dict[str, Any], tmp_path: Path
) -> None:
    given, listed = ({parameter: VALUES[one]()} for one in (kind, "list"))
    found, wanted = (called(models, owner, name, one, tmp_path / "out") for one in (given, listed))
    assert all(map(np.array_equal, found, wanted)) if name != "classify" else found == wanted


def test_a_text_is_the_first_message_of_a_chat(models: dict[str, Any]) -> None:
    options = {"max_new_tokens": 4, "temperature": 0}
    llm = models["text"]
    one = llm.chat("Hi", **options)
    assert one.ids == llm.chat([{"role": "user", "content": "Hi"}], **options).ids


def test_one_id_is_decoded(models: dict[str, Any]) -> None:
    tokenizer = models["text"].tokenizer
    assert tokenizer.decode(70) == tokenizer.decode([70]) == tokenizer.decode(np.int32(70))
    assert tokenizer.decode(iter([70, 71])) == tokenizer.decode([70, 71])


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("embed", "dimensions"), ("embed", "truncate"), ("sparse", "truncate"), ("token_vectors", "truncate"),
        ("classify", "truncate"), ("rerank", "truncate"), ("rerank", "top"), ("fill", "top"), ("answer", "top"),
        ("answer", "longest"), ("answer", "unanswerable"), ("tag", "grouping"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [1.5, -1, 0, "3", [1], {}, object(), b"1", float("nan"), 10**30])
def test_other_arguments_of_encoders_are_refused_by_name(
    name: str, parameter: str, value: Any, models: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(PellucidError, match=parameter):
        called(models, "LLM", name, {parameter: value}, tmp_path)
