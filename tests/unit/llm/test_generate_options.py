"""The types of the options (``generate_options.py``) are the fields that the options' own classes check."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

import pellucid
from pellucid.base_llm import OTHER_OPTIONS
from pellucid.engine.job import SchedulingOptions
from pellucid.errors import InvalidRequest
from pellucid.generate_options import BeamSearchOptions, GenerationOptions, StepOptions, TextOptions
from pellucid.llm import LLM
from pellucid.sample.beams import BeamOptions
from pellucid.sample.options import OTHER_NAMES, Options
from pellucid.sample.step import owners
from pellucid.serve.generation_options import ALIASES
from pellucid.testing import random_model
from pellucid.trace.edits import Edit
from pellucid.trace.linear_probe import LinearProbe

TYPES: dict[str, Any] = {"Edit": Edit, "LinearProbe": LinearProbe}
"""The types that type checkers import, and running programs only with the first edit."""
OTHERWISE = {"logit_bias"}  # users give a mapping, the step stores pairs


def own(typed: type, base: type | None = None) -> dict[str, Any]:
    """The options that ``typed`` adds to ``base``, with their types."""
    hints = get_type_hints(typed, localns=TYPES)
    return {
        name: hint for name, hint in hints.items() if base is None or name not in get_type_hints(base, localns=TYPES)
    }


def test_the_options_of_the_steps() -> None:
    declared = {name: get_type_hints(step)[name] for name, step in owners().items()}
    typed = own(StepOptions)
    assert typed.keys() == declared.keys()
    differing = {name for name in typed if typed[name] != declared[name]}
    assert differing == OTHERWISE


def test_the_options_of_a_text() -> None:
    declared = {field.name: get_type_hints(Options)[field.name] for field in fields(Options)}
    del declared["sampling"]  # it holds the options of the steps
    assert own(TextOptions, StepOptions) == declared


def test_the_options_of_a_request() -> None:
    declared = get_type_hints(SchedulingOptions)
    del declared["client"]  # ``LLM.for_client`` sets it
    typed = own(GenerationOptions, TextOptions)
    assert typed.keys() == declared.keys() | {"edits", "probes", "steer"} == set(OTHER_OPTIONS)
    assert {name: typed[name] for name in declared} == declared


def test_the_options_of_beam_search() -> None:
    assert own(BeamSearchOptions, GenerationOptions) == get_type_hints(BeamOptions)


def test_the_methods_take_them() -> None:
    takers = {
        **dict.fromkeys(
            ("generate", "agenerate", "stream", "astream", "chat", "start", "samples"), "GenerationOptions"
        ),
        "beam_search": "BeamSearchOptions",
        "record": "TextOptions",
        "resume": "TextOptions",
    }
    for name, typed in takers.items():
        parameters = inspect.signature(getattr(LLM, name)).parameters.values()
        (options,) = [one for one in parameters if one.kind is one.VAR_KEYWORD]
        assert options.annotation == f"Unpack[{typed}]", name


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pellucid.load(random_model("llama", tmp_path_factory.mktemp("models") / "tiny.gguf")) as llm:
        yield llm


def _begun(coroutine: Any) -> None:
    """Run the beginning of ``agenerate``; the other methods have raised before."""
    coroutine.send(None)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("temprature", "unknown option 'temprature': did you mean temperature"),
        ("priorty", "unknown option 'priorty': did you mean priority"),
        ("edit", "unknown option 'edit': did you mean edits"),
        ("max_tokens", "unknown option 'max_tokens': the name is max_new_tokens"),
        ("do_sample", "unknown option 'do_sample': temperature=0 takes the most likely token"),
        ("num_beams", "llm.beam_search(prompt, num_beams=4)"),
    ],
)
def test_an_unknown_option_is_one_line_with_the_name_to_type(llm: Any, option: str, said: str) -> None:
    for call in (llm.generate, llm.stream, llm.start, llm.agenerate):
        with pytest.raises(InvalidRequest) as caught:
            _begun(call("Hi", **{option: 1}))
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_names_of_other_engines_name_options_that_exist() -> None:
    names = {*get_type_hints(TextOptions, localns=TYPES)}
    assert not names & OTHER_NAMES.keys()
    renamed = [hint.removeprefix("the name is ") for hint in OTHER_NAMES.values() if hint.startswith("the name is ")]
    assert set(renamed) <= names
    assert len(renamed) > 20
    for name, own in ALIASES.items():  # names that requests to the server may have
        assert OTHER_NAMES[name] == f"the name is {own}"


def test_a_model_is_loaded_by_load() -> None:
    for make in (lambda: LLM("smollm2"), lambda: LLM(model="smollm2")):  # type: ignore[call-arg,arg-type]
        with pytest.raises(InvalidRequest, match=r"pellucid\.load\(MODEL\) loads a model"):
            make()


def test_the_public_names_are_few() -> None:
    assert dir(pellucid) == sorted([*pellucid.__all__, "__version__"])
    assert len(dir(pellucid)) < 10
