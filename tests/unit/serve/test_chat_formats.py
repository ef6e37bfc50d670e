"""Formats of tool calls: written calls are parsed again, in pieces of any length. Grammars allow only valid calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.endless import never_endless
from support.served import with_control_tokens

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.serve.chat.answer_parser import KNOWN, AnswerParser, ChatAnswer, ReasoningMarks, assemble
from pellucid.serve.chat.call_format import MOST_CALLS, CallFormat, JsonCalls, LarkBuilder, TaggedCalls, known_formats
from pellucid.serve.chat.chat_run import chat_style
from pellucid.serve.chat.formats.literal_calls import HERMES
from pellucid.serve.chat.messages import Tool, ToolChoice, tool, tool_choice
from pellucid.testing import random_model

FORMATS = known_formats()
CONTROL = sorted(
    {
        *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"),
        *("<|start|>", "<|call|>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        *("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>", "<|START_ACTION|>"),
        *("<|END_ACTION|>", "[THINK]", "[/THINK]"),
    }
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "deep": {"$ref": "#/$defs/deep"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"deep": {"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 2}},
}
LOOK, ADD = tool("a", "look-up.2", "Looks", SCHEMA), tool("b", "add", None, None)
TOOLS = {one.name: one for one in (LOOK, ADD)}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose tokenizer has the control tokens of all formats."""
    path = Path(random_model("llama", tmp_path_factory.mktemp("f") / "m", kind="safetensors", context=1024))
    with_control_tokens(path, CONTROL)
    with pellucid.load(path, threads=1) as made:
        yield made


def read(
    calls: CallFormat | None,
    text: str,
    cuts: list[int] | None = None,
    tools: Mapping[str, Tool] = TOOLS,
    marks: ReasoningMarks | None = None,
    begun: bool = False,
) -> ChatAnswer:
    """Parse an answer that arrives in pieces."""
    parser, parts, at = AnswerParser(marks, begun, calls, tools), [], 0
    for cut in sorted({min(cut, len(text)) for cut in cuts or ()}):
        parts += parser.push(text[at:cut])
        at = cut
    return assemble([*parts, *parser.push(text[at:], last=True)])


def filled(text: str) -> str:
    return text.replace("{id}", "abcdefgh1").replace("{index}", "0")


CUTS = st.lists(st.integers(0, 400), max_size=30)
ARGUMENTS = st.fixed_dictionaries(
    {"city": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<{"), max_size=9)},
    optional={"days": st.integers(), "deep": st.lists(st.booleans() | st.text(max_size=3), max_size=3)},
)


@pytest.mark.parametrize("name", FORMATS)
@given(arguments=ARGUMENTS, cuts=CUTS)
@settings(deadline=None)
def test_a_written_call_is_read(name: str, arguments: dict[str, Any], cuts: list[int]) -> None:
    calls = FORMATS[name]
    found = read(calls, filled(calls.written_call("look-up.2", arguments)), cuts)
    assert [one.name for one in found.calls] == ["look-up.2"]
    assert json.loads(found.calls[0].arguments) == arguments
    assert found.text == ""
    assert calls.id_length is None or len(found.calls[0].id) == calls.id_length


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if not one.always])
@given(text=st.text(st.sampled_from("ab <\n[{"), max_size=20), cuts=CUTS)
@settings(deadline=None)
def test_text_is_text(name: str, text: str, cuts: list[int]) -> None:
    assert read(FORMATS[name], text, cuts) == ChatAnswer(text)
    assert read(None, text, cuts) == ChatAnswer(text)


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if not getattr(one, "at_start", 1)])
def test_text_before_a_call(name: str) -> None:
    calls = FORMATS[name]
    found = read(calls, f"I look.\n\n{filled(calls.written_call('add', {}))}", [3, 9, 20])
    assert (found.text, [(one.name, one.arguments) for one in found.calls]) == ("I look.", [("add", "{}")])


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_model_may_write_is_a_valid_call(name: str, llm: LLM) -> None:
    calls, build = FORMATS[name], LarkBuilder(llm.tokenizer)
    grammar = build.grammar(calls.grammar(build, ToolChoice([LOOK], True, False), None))
    for seed in range(6):
        made = llm.generate("x", grammar=grammar, keep_special=True, seed=seed, max_new_tokens=400, **HOT)
        if made.finish_reason == "length" and calls.always:
            continue  # its reasoning does not end
        assert made.finish_reason == "stop"
        found = read(calls, made.text)
        assert [one.name for one in found.calls] == ["look-up.2"], made.text
        jsonschema.validate(json.loads(found.calls[0].arguments), SCHEMA)


HOT = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": False}


@pytest.mark.parametrize("name", FORMATS)
def test_the_grammar_accepts_what_templates_write(name: str, llm: LLM) -> None:
    calls, build = FORMATS[name], LarkBuilder(llm.tokenizer)
    for required in (False, True):
        grammar = build.grammar(calls.grammar(build, ToolChoice([LOOK, ADD], required), None))
        for arguments in ({"city": "Rome", "days": 2}, {"city": "Oslo", "days": 9, "deep": [1, "a"]}):
            text = filled(calls.written_call("look-up.2", arguments))
            # Scores under the constraint are finite only for tokens that it allows.
            ids = llm.tokenizer.encode(text, parse_special=True, add_special=False)
            assert accepted(llm, grammar, ids), text
        if not isinstance(calls, TaggedCalls):
            assert not accepted(llm, grammar, llm.tokenizer.encode(text.replace("Oslo", "Bonn"), parse_special=True))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("required", [True, False])
def test_a_choice_of_one_call_has_no_second(name: str, required: bool, llm: LLM) -> None:
    calls, arguments = FORMATS[name], {"city": "Rome", "days": 2}
    twice = filled(calls.written_call("look-up.2", arguments)) * 2
    if isinstance(calls, (JsonCalls, TaggedCalls)):
        one = calls.before + "look-up.2" + calls.middle + calls.written_arguments(arguments)
        twice = filled(calls.begin + one + calls.after + calls.between + one + calls.after + calls.end)
        assert len(read(calls, twice).calls) == 2
    ids = llm.tokenizer.encode(twice, parse_special=True, add_special=False)
    for parallel in (True, False):
        build = LarkBuilder(llm.tokenizer)
        grammar = build.grammar(calls.grammar(build, ToolChoice([LOOK, ADD], required, parallel), None))
        assert accepted(llm, grammar, ids) is (parallel and not calls.always), parallel


def test_an_answer_has_a_bounded_number_of_calls(llm: LLM) -> None:
    build = LarkBuilder(llm.tokenizer)
    grammar = build.grammar(HERMES.grammar(build, ToolChoice([ADD], True), None))
    for count, fine in ((MOST_CALLS, True), (MOST_CALLS + 1, False)):
        text = (HERMES.begin + HERMES.before + "add" + HERMES.middle + "{}" + HERMES.after + HERMES.between) * count
        text = text[: len(text) - len(HERMES.between)] + HERMES.end
        assert accepted(llm, grammar, llm.tokenizer.encode(text, parse_special=True, add_special=False)) is fine


def accepted(llm: LLM, grammar: str, ids: list[int]) -> bool:
    """True if the grammar allows a text, checked token by token."""
    from pellucid.sample.candidates import Candidates
    from pellucid.sample.grammars.grammar import compiled
    from pellucid.sample.grammars.matching import Matching
    from pellucid.sample.step import RequestContext

    context = RequestContext(llm.tokenizer, llm.tokenizer.eos_ids, 0, False, llm.tokenizer.vocab_size)
    matching = Matching(compiled("grammar", grammar), context)
    every = Candidates.of(np.zeros(llm.tokenizer.vocab_size, np.float32), "the test")
    for token in ids:
        if matching.complete or not len(matching.restrict(every).positions(np.array([token]))):
            return False
        matching.accept(token)
    return True


def test_each_format_is_found_by_what_its_template_writes(llm: LLM) -> None:
    from dataclasses import replace

    for name, calls in FORMATS.items():
        written = json.dumps(filled(calls.written_call("lookup", {"city": "Paris", "days": 1})))
        template = "{{ tools }}{% for m in messages %}{% if m.tool_calls %}{{ " + written + " }}{% endif %}{% endfor %}"
        assert chat_style(replace(llm.tokenizer, chat_template=template)).calls is calls, name
    assert chat_style(replace(llm.tokenizer, chat_template="{{ messages[0].content }}")).calls is None
    assert chat_style(replace(llm.tokenizer, chat_template=None)).calls is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"name": "add", "arguments": {}}', "add"),
        ('Sure:\n```json\n{\n  "name": "add",\n  "arguments": {}\n}\n```', "add"),
        ('```json\n{"name": "other", "arguments": {}}\n```', None),
        ("<tool_call>\nnothing", None),
    ],
)
@given(cuts=CUTS)
@settings(deadline=None)
def test_calls_without_marks(text: str, name: str | None, cuts: list[int]) -> None:
    found = read(HERMES, text, cuts)
    assert [one.name for one in found.calls] == ([name] if name else [])
    assert found.text == ("Sure:" if text.startswith("Sure") else "" if name else found.text)


@pytest.mark.parametrize("marks", KNOWN)
@given(cuts=CUTS)
@settings(deadline=None)
def test_reasoning(marks: ReasoningMarks, cuts: list[int]) -> None:
    call = HERMES.written_call("add", {})
    begun = f"\nHm.\n\nSo {marks.open[:2]}\n{marks.close}\n\nIt is.\n{call}"
    for text, is_begun in ((begun, True), (f"\n{marks.open}{begun}", False)):
        found = read(HERMES, text, cuts, marks=marks, begun=is_begun)
        assert found.reasoning == f"Hm.\n\nSo {marks.open[:2]}".rstrip()
        assert (found.text, found.calls[0].name) == ("It is.", "add")
    assert read(HERMES, "It is.", cuts, marks=marks) == ChatAnswer("It is.")


def test_harmony_channels() -> None:
    calls = FORMATS["harmony"]
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}'
    )
    found = read(calls, text, list(range(len(text))))
    assert (found.reasoning, found.text) == ("Hm.", "I look.")
    assert [(one.name, one.arguments) for one in found.calls] == [("add", '{"a": 1}')]
    final = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is."
    assert read(calls, final, list(range(len(final)))) == ChatAnswer("It is.", "Hm.")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("a", "x y", None, None), "a.name='x y'"), (("a", "x", None, {"type": "array"}), "a.parameters.type='array'")],
)
def test_wrong_tools(arguments: tuple[Any, ...], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        tool(*arguments)


def test_wrong_choices(llm: LLM) -> None:
    for tools, names, required, word in (
        ([ADD, ADD], None, False, "'add' twice"),
        ([ADD], ["sub"], False, "names 'sub'; tools has add"),
        ([], None, True, "there are no tools"),
        ([ADD] * 129, None, False, "the limit is 128"),
    ):
        with pytest.raises(InvalidRequest, match=word):
            tool_choice(tools, names, required, True)
    build, wrong = LarkBuilder(llm.tokenizer), tool("a", "add", None, {"properties": {"x": {"type": "odd"}}})
    with pytest.raises(InvalidRequest, match="tool add"):
        llm.request("x", grammar=build.grammar(HERMES.grammar(build, ToolChoice([wrong]), None)))


@pytest.mark.parametrize("name", ["qwen3-coder", "hermes"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"x": {"type": "string", "enum": []}}},
        {"properties": {"x": {"type": "string", "enum": [1]}}},
        {"properties": {"x": {"type": "string"}}, "required": 5},
        {"properties": 5},
        {"properties": {"x": {"type": "string", "pattern": "("}}},
    ],
)
def test_schemas_that_are_none_are_refused(name: str, parameters: dict[str, Any], llm: LLM) -> None:
    build, wrong = LarkBuilder(llm.tokenizer), tool("a", "add", None, parameters)
    if name == "hermes" and "enum" in str(parameters):
        pytest.skip("an object without x follows it")
    with pytest.raises(InvalidRequest, match="tool add: parameters"):
        FORMATS[name].grammar(build, ToolChoice([wrong]), None)


def test_arguments_that_follow_no_schema_are_json() -> None:
    calls, free = (FORMATS["qwen3-coder"], tool("a", "add", None, {"properties": {"a": {"type": "integer"}}}, False))
    text = calls.written_call("add", {"a": "two", "b": 3})
    found = read(calls, text, tools={"add": free})
    assert json.loads(found.calls[0].arguments) == {"a": "two", "b": 3}


def test_a_long_enumeration_takes_no_time(llm: LLM) -> None:
    long = tool("a", "add", None, {"properties": {"x": {"enum": ["a" * 100_000, *map(str, range(900))]}}})
    with never_endless():
        FORMATS["qwen3-coder"].grammar(LarkBuilder(llm.tokenizer), ToolChoice([long]), None)


def test_a_call_without_marks_has_its_space(llm: LLM) -> None:
    build = LarkBuilder(llm.tokenizer)
    grammar = build.grammar(HERMES.grammar(build, ToolChoice([LOOK]), None))
    for text in (
        '{"name": "look-up.2", "arguments": {"city": "Rome", "days": 2}}',
        '{"name":"look-up.2","arguments":{"city": "Rome", "days": 2}}',
    ):
        assert accepted(llm, grammar, llm.tokenizer.encode(text)), text
        assert read(HERMES, text).calls[0].arguments == '{"city": "Rome", "days": 2}'


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("harmony", "<|channel|>analysis", ChatAnswer()),
        ("harmony", "<|channel|>analysis<|message|>Hm.\n<|end|><|start|>assistant", ChatAnswer("", "Hm.")),
        ("harmony", "<|channel|>analysis<|message|>Hm.\n", ChatAnswer("", "Hm.")),
        ("harmony", "Hi", ChatAnswer("Hi")),
        ("hermes", 'A <tool_call>\n{"na', ChatAnswer('A <tool_call>\n{"na')),
        ("hermes", "Use <tool_call> so.", ChatAnswer("Use <tool_call> so.")),
    ],
)
@given(cuts=CUTS)
@settings(deadline=None)
def test_answers_that_are_cut_off(name: str, text: str, wanted: ChatAnswer, cuts: list[int]) -> None:
    found = read(FORMATS[name], text, cuts)
    assert (found.text, found.reasoning) == (wanted.text, wanted.reasoning)


def test_a_choice_of_nothing() -> None:
    with pytest.raises(InvalidRequest, match="there are no tools"):
        tool_choice([ADD], [], True, True)
