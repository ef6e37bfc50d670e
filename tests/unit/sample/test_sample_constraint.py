"""Constraints: other programs confirm that generated texts satisfy their schema, regex, grammar or list of choices.

A random Llama generates thousands of tokens per second. Its tokens are bytes, pairs of letters, and tokens that cross
the borders of lexemes. ``support/constraints.py`` has the constraints and the validators.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import processes
from support.command import Command
from support.constraints import ALL, BAD, CHOICES, LATE, SCHEMAS, Case, closed, valid, whole
from support.endless import never_endless
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.engine.output import Generation
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.sample.candidates import Candidates
from pellucid.sample.chain import Sampler
from pellucid.sample.grammars import grammar
from pellucid.sample.grammars import matching as trees
from pellucid.sample.options import Options
from pellucid.tokenize import Tokenizer, load_tokenizer

CONTEXT = 2048
PROMPT = "to see that it rains in the east"
EVERY = {**ALL, **{f"choices: {name}": ("choices", texts) for name, texts in CHOICES.items()}}
FREE: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "max_new_tokens": 400}
DRAWN = [{**FREE, "temperature": t, "seed": seed} for t in (0.7, 1.3, 4.0, 20.0) for seed in (1, 2)]
GREEDY = {**FREE, "temperature": 0}
SOME = [
    "schema: flat object",
    "schema: tree",
    "schema: chat with tool calls",
    "lark: sums",
    "gbnf: JSON",
    "gbnf: chess",
    "regex: quotes",
    "choices: strange",
]
ACROSS = [
    '{"', "[{", '["', '"}', '"]', "}]", "}}", "]]", '":', '":"', '",', '","', "[[", "},", "],", "()", "((", "))", ",Ġ",
    ":Ġ", '":Ġ', '",Ġ', "{ĊĠ", '"Ċ', "ĠĠ", "ĠĠĠĠ", "ĊĠ", "true", "null", "00", "10", "19", "-1", "1.", ".0", "0.",
    "Ã©", "Â°", '©"', "<|", "|>", "re(", "\\n", '\\"', "==", "..",
]  # fmt: skip
"""Tokens of several characters, in the alphabet of byte-level vocabularies."""


def widen(folder: Path) -> None:
    """Add the tokens of ``ACROSS`` to the vocabulary."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for token in ACROSS:
        for end in range(2, len(token) + 1):
            if token[:end] not in vocabulary and all(letter in vocabulary for letter in token):
                merges.append(f"{token[: end - 1]} {token[end - 1]}")
                vocabulary[token[:end]] = len(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_llama(tmp_path_factory.mktemp("models") / "tiny", vocabulary=448, context=CONTEXT)
    write_tokenizer(path)
    widen(path)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    llm = pellucid.load(folder, threads=1)
    yield llm
    llm.close()


def finished(made: Generation, kind: str, value: Any) -> bool:
    """True if a text finished; checks that it is valid. An unfinished text must have the maximum length."""
    if made.finish_reason == "stop":
        assert valid(kind, value, made.text), made.text
        return True
    assert (made.finish_reason, len(made.ids)) == ("length", FREE["max_new_tokens"])
    return False


def random_logits(tokenizer: Tokenizer, seed: int, index: int) -> np.ndarray:
    return np.float32(np.random.default_rng((seed, index)).normal(size=tokenizer.vocab_size) * 3)


def begun(tokenizer: Tokenizer, spare_core: bool = False, **options: Any) -> Sampler:
    """A sampler at the start of a text. With ``spare_core`` a separate thread computes masks."""
    made = Options.of(**{"seed": 0, "temperature": 1.0, **FREE, **options})
    return made.chain().start(tokenizer, [1, 2, 3], made.ends(tokenizer, tokenizer.vocab_size), spare_core=spare_core)


def sampled(sampler: Sampler, tokenizer: Tokenizer, seed: int = 0, most: int = 400, whole: bool = True) -> list[int]:
    """Ids that a sampler draws from random logits until the text ends. With ``whole`` it must end."""
    ids: list[int] = []
    for _ in range(most):
        ids.append(sampler.sample(random_logits(tokenizer, seed, sampler.history.index)).token)
        if sampler.complete or ids[-1] in tokenizer.eos_ids:
            return ids
    assert not whole, "it does not end"
    return ids


# Generated texts are valid


def test_as_many_as_were_promised() -> None:
    kinds = [name.partition(":")[0] for name in ALL]
    assert {kind: kinds.count(kind) for kind in kinds} == {"schema": 41, "lark": 8, "gbnf": 7, "regex": 5}
    assert len(BAD) >= 30
    assert not any(valid(*one, text) for one in ALL.values() for text in ("\x00", "{]", "no"))


@pytest.mark.parametrize("name", EVERY)
def test_what_ends_is_valid(llm: LLM, name: str) -> None:
    kind, value = EVERY[name]
    ends = [finished(llm.generate(PROMPT, **{kind: value}, **options), kind, value) for options in DRAWN]
    assert sum(ends) * 4 >= len(ends)


def test_greedy_texts_are_valid_and_always_the_same(llm: LLM) -> None:
    ends = []
    for kind, value in EVERY.values():
        made = llm.generate(PROMPT, **{kind: value}, **GREEDY)
        assert llm.generate(PROMPT, **{kind: value}, **GREEDY).ids == made.ids
        ends.append(finished(made, kind, value))
    assert sum(ends) * 2 >= len(ends)


@pytest.mark.parametrize("name", ["schema: function call", "gbnf: names", "regex: version"])
@pytest.mark.parametrize(
    "steps",
    [{"top_k": 1}, {"top_k": 3, "top_p": 0.5}, {"min_p": 0.4}, {"typical_p": 0.3}, {"top_n_sigma": 0.5}, {"top_h": 0.3},
     {"xtc_probability": 1.0, "xtc_threshold": 0.01}, {"epsilon_cutoff": 0.3}, {"eta_cutoff": 0.3},
     {"mirostat": 2, "top_k": 0}, {"repetition_penalty": 8.0}, {"dry_multiplier": 5.0, "dry_allowed_length": 1}],
    ids=str,
)  # fmt: skip
def test_other_steps_choose_among_what_may_come(llm: LLM, name: str, steps: dict[str, Any]) -> None:
    kind, value = EVERY[name]
    options = {name: value for name, value in FREE.items() if not ("mirostat" in steps and name[:3] == "top")}
    for seed in range(3):
        made = llm.generate(PROMPT, **{**options, "seed": seed, "temperature": 1.5, kind: value, **steps})
        finished(made, kind, value)


@pytest.mark.parametrize("name", SOME)
def test_several_answers_and_beams_are_valid(llm: LLM, name: str) -> None:
    kind, value = EVERY[name]
    ends = [finished(one, kind, value) for one in llm.samples(PROMPT, 4, **{kind: value}, **DRAWN[2])]
    assert any(ends)
    for do_sample in (False, True):
        options = {"temperature": 3.0, **FREE, "max_new_tokens": 100, "seed": 1, kind: value}
        beams = llm.beam_search(
            PROMPT, num_beams=3, num_return_sequences=3, do_sample=do_sample, early_stopping=True, **options
        )
        for one in beams.texts:
            assert one.finish_reason == "length" or valid(kind, value, one.text), one.text


def test_special_tokens_do_not_spell_their_names(llm: LLM) -> None:
    for seed in range(10):
        made = llm.generate(PROMPT, regex=r"(<\|turn\|>|<\|end\|>|x){3,5}", seed=seed, **FREE)
        assert finished(made, "regex", r"(<\|turn\|>|<\|end\|>|x){3,5}")
        assert not any(llm.tokenizer.is_special(token) for token in made.ids[:-1])


# The same seed gives the same text


@pytest.mark.slow
def test_a_seed_gives_its_text_while_other_threads_generate(llm: LLM) -> None:
    def made(name: str) -> list[list[int]]:
        kind, value = EVERY[name]
        return [llm.generate(PROMPT, **{kind: value}, **options).ids for options in DRAWN[2:5]]

    alone = {name: made(name) for name in SOME}
    found: list[tuple[str, list[list[int]]]] = []
    problems: list[BaseException] = []

    def work(names: Sequence[str]) -> None:
        try:
            found.extend((name, made(name)) for name in names)
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work, args=(SOME[at:] + SOME[:at],)) for at in (0, 2, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems
    assert sorted(found) == sorted(list(alone.items()) * 3)


@pytest.mark.parametrize("name", EVERY)
def test_a_stream_joins_to_the_same_text(llm: LLM, name: str) -> None:
    kind, value = EVERY[name]
    made = llm.generate(PROMPT, **{kind: value}, **DRAWN[3])
    assert "".join(llm.stream(PROMPT, **{kind: value}, **DRAWN[3])) == made.text
    assert llm.tokenizer.decode(made.ids) == made.text


# Together with other options that end or change a text


@pytest.mark.parametrize("name", SOME)
def test_a_stop_string_cuts_a_text_off(llm: LLM, name: str) -> None:
    kind, value = EVERY[name]
    text = llm.generate(PROMPT, **{kind: value}, **DRAWN[2]).text
    for stop in {*text[:3], text[len(text) // 2 :][:3], text[-1:]} - {""}:
        cut = llm.generate(PROMPT, **{kind: value}, **DRAWN[2], stop=["never", stop])
        assert (cut.text, cut.finish_reason, cut.stop_reason) == (text[: text.index(stop)], "stop", stop)


def test_an_end_waits_for_min_new_tokens_but_a_whole_text_does_not(llm: LLM) -> None:
    lengths = []
    for seed in range(20):
        made = llm.generate(PROMPT, regex="[ab]{1,30}", min_new_tokens=10, seed=seed, **FREE)
        assert finished(made, "regex", "[ab]{1,30}")
        lengths.append(len(made.text))
        made = llm.generate(PROMPT, choices=["yes", "yes, so", "no"], min_new_tokens=50, seed=seed, **FREE)
        assert made.text in ("yes, so", "no")
        assert made.finish_reason == "stop"
    assert min(lengths) >= 10
    assert len(set(lengths)) > 3


def test_ignore_eos_goes_on_until_nothing_can_follow(llm: LLM) -> None:
    for seed in range(20):
        made = llm.generate(PROMPT, regex="[ab]{1,8}", ignore_eos=True, seed=seed, **FREE)
        assert (len(made.text), made.finish_reason) == (8, "stop")
        assert valid("regex", "[ab]{1,8}", made.text)


def test_token_0_may_be_a_word(tmp_path: Path) -> None:
    """It is "!" in GPT-2, Llama 3 and Qwen."""
    write_tokenizer(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    pieces = ["!", *(piece for piece in spec["model"]["vocab"] if piece != "!" and piece[:2] != "<|")]
    spec["model"]["vocab"] = {piece: at for at, piece in enumerate([*pieces, "<|end|>", "<|turn|>"])}
    for token in spec["added_tokens"]:
        token["id"] = spec["model"]["vocab"][token["content"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = from_folder(tmp_path)
    assert tokenizer.token_bytes(0) == b"!"
    for seed in range(10):
        ids = sampled(begun(tokenizer, regex="[ab]{1,8}", ignore_eos=True), tokenizer, seed)
        assert valid("regex", "[ab]{1,8}", tokenizer.decode(ids))


def test_a_token_of_ones_own_cuts_a_text_off(llm: LLM) -> None:
    [quote] = llm.tokenizer.encode('"', add_special=False)
    for seed in range(5):
        made = llm.generate(PROMPT, json_schema={"enum": ["red"]}, stop_token_ids=[quote], seed=seed, **FREE)
        assert (made.text, made.stop_reason) in (("", quote), ('"red', quote), ('"red"', None))


def test_biases_and_bans_are_heeded(llm: LLM) -> None:
    b, c, x = (llm.tokenizer.encode(letter, add_special=False)[0] for letter in "bcx")
    for how in (
        {"logit_bias": {b: -np.inf}},
        {"logit_bias": {b: -1000.0, x: 1000.0}},
        {"banned": ["b"]},
        {"allowed": ["c", "x"]},
    ):
        for temperature in (0, 1.0, 9.0):
            made = llm.generate(PROMPT, regex="[bc]{5}", **{**FREE, "temperature": temperature, **how})
            assert (made.text, made.finish_reason) == ("ccccc", "stop")
    for how in ({"logit_bias": {b: -np.inf, c: -np.inf}}, {"banned": ["b", "c"]}, {"allowed": ["x"]}):
        with pytest.raises(InvalidRequest, match="forbids every token"):
            llm.generate(PROMPT, regex="[bc]{5}", **FREE, **how)


@pytest.mark.parametrize(
    "samplers", [["constraint"], ["top_k", "constraint"], ["temperature", "top_p", "min_p", "constraint"]], ids=",".join
)
def test_an_order_of_ones_own_may_leave_nothing_but_nothing_invalid(llm: LLM, samplers: list[str]) -> None:
    kind, value = "regex", "[a-z]{2,4}[.!?;]"
    cuts = {name: number for name, number in {"top_k": 60, "top_p": 0.7, "min_p": 0.001}.items() if name in samplers}
    outcomes = []
    for seed in range(40):
        try:
            made = llm.generate(PROMPT, **{kind: value}, samplers=samplers, seed=seed, max_new_tokens=400, **cuts)
        except InvalidRequest as problem:
            outcomes.append(str(problem).partition(": ")[2])
        else:
            outcomes.append("stop" if finished(made, kind, value) else "length")
    nothing = "constraint forbids every token: relax a constraint"
    assert {*outcomes} == ({"stop"} if samplers == ["constraint"] else {"stop", nothing})


def test_any_form_of_a_schema_is_the_same(llm: LLM) -> None:
    class Model:
        """Has the interface of pydantic models."""

        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return SCHEMAS["flat object"]

    forms = (Model, Model(), SCHEMAS["flat object"], json.dumps(SCHEMAS["flat object"], indent=1))
    made = [llm.generate(PROMPT, json_schema=form, **DRAWN[0]) for form in forms]
    assert len({one.text for one in made}) == 1
    assert finished(made[0], "json_schema", SCHEMAS["flat object"])
    for schema in ({}, "{}", {"type": "boolean"}, '{"$schema": "http://json-schema.org/draft-07/schema#"}'):
        made = [llm.generate(PROMPT, json_schema=schema, **options) for options in DRAWN]
        for one in made:
            finished(one, "json_schema", schema if isinstance(schema, dict) else json.loads(schema))


def test_the_trace_tells_what_a_constraint_removed(llm: LLM) -> None:
    made = llm.generate(PROMPT, regex="[bc]{2}d", watch=True, samplers=["constraint"], max_new_tokens=9)
    assert made.trace is not None
    padding = [token.steps[0] for token in made.trace]
    assert {(step.name, step.left) for step in padding} == {("vocabulary", llm.tokenizer.vocab_size)}
    steps = [step for token in made.trace for step in token.steps[1:]]
    assert [(step.name, step.left) for step in steps] == [("constraint", n) for n in (2, 2, 1)]
    assert {step.left + step.removed for step in steps} == {llm.tokenizer.vocab_size}
    assert all(0 < step.removed_mass <= 1 for step in steps)
    assert [step.entropy_after for step in steps][-1] == 0


# Isolated state


@pytest.mark.slow
@pytest.mark.parametrize("spare_core", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_a_fork_goes_on_by_itself(llm: LLM, name: str, spare_core: bool) -> None:
    (kind, value), tokenizer = EVERY[name], llm.tokenizer
    for head in (0, 1, 6):
        for seed in range(3):
            sampler = begun(tokenizer, spare_core, **{kind: value})
            ids = sampled(sampler, tokenizer, seed, head, whole=False)
            if sampler.complete or set(ids) & tokenizer.eos_ids:
                continue
            same, other = sampler.fork(), sampler.fork().fork()
            otherwise = sampled(other, tokenizer, seed + 100, whole=False)
            rest = sampled(sampler, tokenizer, seed, whole=False)
            assert sampled(same, tokenizer, seed, whole=False) == rest
            for tail in (rest, otherwise):
                assert len(tail) == 400 or valid(kind, value, tokenizer.decode([*ids, *tail]))


@pytest.mark.parametrize("spare_core", [False, True])
def test_forks_at_work_in_threads_do_not_meet(llm: LLM, spare_core: bool) -> None:
    (kind, value), tokenizer = EVERY["schema: invoice"], llm.tokenizer
    sampler = begun(tokenizer, spare_core, **{kind: value})
    head = sampled(sampler, tokenizer, most=12, whole=False)
    forks = [sampler.fork() for _ in range(12)]
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        found[number] = sampled(forks[number], tokenizer, number % 3, 600)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 12
    for number, tail in found.items():
        assert tail == found[number % 3]
        assert valid(kind, value, tokenizer.decode([*head, *tail]))
    assert sampled(sampler, tokenizer, 0, 600) == found[0]


def test_a_fork_of_a_whole_text_is_whole(llm: LLM) -> None:
    sampler = begun(llm.tokenizer, choices=["only"])
    sampled(sampler, llm.tokenizer)
    assert sampler.complete
    assert sampler.fork().complete


@pytest.mark.slow
def test_abandoned_generations_leave_nothing_behind(llm: LLM) -> None:
    kind, value = EVERY["schema: invoice"]
    wanted = llm.generate(PROMPT, **{kind: value}, **DRAWN[0]).ids
    gc.disable()  # see test_what_was_abandoned_may_be_collected_at_any_time
    try:
        for number in range(400):
            constraint = {kind: value} if number % 2 else {"regex": "[a-z]{3000}" if number % 4 else "a{9000}"}
            pieces = iter(llm.start(PROMPT, **constraint, seed=number, **FREE))
            for _ in range(number % 5):
                next(pieces)
            del pieces
            if number % 40 == 0:
                gc.collect()
                assert llm.generate(PROMPT, **{kind: value}, **DRAWN[0]).ids == wanted
    finally:
        gc.enable()


@pytest.mark.parametrize("spare_core", [False, True])
def test_samplers_dropped_by_many_threads(llm: LLM, spare_core: bool) -> None:
    tokenizer, problems = llm.tokenizer, []

    def work(seed: int) -> None:
        try:
            for number in range(40):
                sampler = begun(tokenizer, spare_core, regex="(ab?c{1,9}){400}" if number % 2 else "a{2000}")
                sampled(sampler, tokenizer, seed, number % 3, whole=False)
                del sampler
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems


def apart(code: str, *arguments: str) -> str:
    """Run code in a new process and return its output."""
    done = subprocess.run(
        processes.python(code, *arguments),
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-500:]}"
    return done.stdout.strip()


def quick(code: str, *arguments: str) -> str:
    """Run code in a new process with at most 5 seconds of processor time."""
    before = os.times()
    output = apart(code, *arguments)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 5
    return output


@pytest.mark.slow
def test_what_was_abandoned_may_be_collected_at_any_time(folder: Path) -> None:
    code = """
import gc, sys, pellucid
llm = pellucid.load(sys.argv[1], threads=1)
gc.disable()
for _ in range(2):
    next(iter(llm.start("to", seed=1)))
fill = llm.runner._step.fill
def collecting(*arguments):
    gc.collect()
    return fill(*arguments)
llm.runner._step.fill = collecting
print(llm.generate("of", max_new_tokens=3).finish_reason)
"""
    assert quick(code, str(folder)) == "length"


@pytest.mark.slow
def test_a_program_may_end_while_a_mask_is_computed(folder: Path) -> None:
    code = """
import sys, pellucid
llm = pellucid.load(sys.argv[1], threads=1)
pieces = iter(llm.start("to", regex="a{50000}", seed=1))
next(pieces), next(pieces)
print("done")
"""
    assert apart(code, str(folder)) == "done"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_process_that_had_constraints_has_its_own(folder: Path) -> None:
    code = """
import os, signal, sys, warnings, pellucid
warnings.simplefilter("ignore")
pellucid.load(sys.argv[1], threads=1).generate("to", regex="[ab]{5}", seed=1)
if os.fork() == 0:
    signal.alarm(5)
    made = pellucid.load(sys.argv[1], threads=1).generate("to", regex="[ab]{5}", seed=1)
    os._exit(made.finish_reason != "stop")
sys.exit(os.wait()[1])
"""
    apart(code, str(folder))


# Vocabularies


GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenize"
VOCABULARIES = [
    "tiny_byte_level",
    *(
        f"tiny_{name}"
        for name in ("byte_fallback", "unigram_t5", "unigram_bytes", "unigram_ties", "sentencepiece_unigram",
                     "sentencepiece_bpe", "sentencepiece_char")
    ),
    pytest.param("smollm2", marks=pytest.mark.model),
    pytest.param("gemma3", marks=pytest.mark.model),
]  # fmt: skip


def from_folder(folder: Path) -> Tokenizer:
    return load_tokenizer(SimpleNamespace(kind="safetensors", path=folder, metadata={}, tensors={}))  # type: ignore[arg-type]


def vocabulary(name: str) -> Tokenizer:
    if name.startswith("tiny_"):
        return from_folder(GOLDENS / name)
    from pellucid.weights.open import open_checkpoint
    from pellucid.weights.store import resolve

    return load_tokenizer(open_checkpoint(resolve(name)))


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(stream.push(token) for token in ids if token not in tokenizer.eos_ids) + stream.flush()


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_kind_of_vocabulary_spells_what_is_forced(name: str) -> None:
    tokenizer = vocabulary(name)
    schema = closed({"name": {"enum": ["a", "abc", "the end"]}, "age": whole(0, 9)})
    for seed in range(4):
        for option, value in (("json_schema", schema), ("choices", ["rain in the east", "a stone", "the end"])):
            ids = sampled(begun(tokenizer, **{option: value}), tokenizer, seed)
            assert valid(option, value, streamed(tokenizer, ids))


@pytest.mark.parametrize("name", ["tiny_byte_level"])
def test_a_space_in_front_is_part_of_the_text(name: str) -> None:
    """Only for vocabularies without a prepended space, as the decoder of others removes the first space."""
    tokenizer = vocabulary(name)
    for seed in range(8):
        ids = sampled(begun(tokenizer, choices=[" rain", " stone"]), tokenizer, seed)
        assert streamed(tokenizer, ids) in (" rain", " stone")


# Refused constraints


def refusal(case: Case, call: Callable[[], Any]) -> str:
    option, _, part = case
    with never_endless(), pytest.raises(InvalidRequest) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable(), message  # hence a single line
    assert len(message) < 400
    assert option in message
    assert part in message
    return message


def named(cases: Sequence[Case]) -> list[str]:
    return [f"{at}-{option}-{re.sub('[^A-Za-z0-9]+', '_', part)}" for at, (option, _, part) in enumerate(cases)]


@pytest.mark.parametrize("case", BAD, ids=named(BAD))
def test_what_is_wrong_is_refused_at_once(case: Case) -> None:
    refusal(case, lambda: Options.of(**{case[0]: case[1]}))


@pytest.mark.parametrize("case", LATE, ids=named(LATE))
def test_what_turns_out_wrong_is_refused_then(llm: LLM, case: Case) -> None:
    refusal(case, lambda: llm.generate(PROMPT, **{case[0]: case[1]}, seed=1, **FREE))
    assert llm.generate(PROMPT, choices=["fine"]).text == "fine"


def test_refusals_do_not_quote_the_inside_of_a_parser(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(PROMPT, grammar='start: "a" start', **FREE)
    assert "<state>" not in str(caught.value)


@pytest.mark.parametrize("pair", [*combinations(["json_schema", "regex", "choices", "grammar"], 2)], ids=" and ".join)
def test_two_constraints_are_one_too_many(pair: tuple[str, str]) -> None:
    values = {"json_schema": {}, "regex": "a", "choices": ["a"], "grammar": 'start: "a"'}
    with pytest.raises(InvalidRequest, match=" and ".join(pair)):
        Options.of(**{name: values[name] for name in pair})


def test_refusals_come_before_the_first_piece(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="regex"):
        llm.stream(PROMPT, regex="(")
    with pytest.raises(InvalidRequest, match="constraint: add it"):
        llm.stream(PROMPT, regex="a", samplers=["top_k"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--json-schema", "{"), "json_schema cannot be enforced: it is no JSON"),
        (("--json-schema", '{"type": "objekt"}'), 'json_schema cannot be enforced: #: type "objekt" is not a type'),
        (("--json-schema", "3"), "json_schema=3: must be a JSON schema"),
        (("--json-schema", ""), "'--json-schema': it is empty"),
        (("--regex", "("), "regex cannot be enforced"),
        (("--regex", ""), "'--regex': it is empty"),
        (("--regex", r"a\zb"), "regex cannot be enforced"),
        (("--grammar", "nonsense"), "grammar cannot be enforced"),
        (("--grammar", 'start: "a'), "grammar cannot be enforced"),
        (("--choices", ""), "choices"),
        (("--choices", "a,,b"), "choices='': must be a text of 1 to 4,096 characters"),
        (("--choices", "a", "--regex", "a"), "regex and choices are given"),
        (("--regex", "a", "--samplers", "top_k"), "regex='a', but samplers has no constraint"),
    ],
    ids=str,
)
def test_the_command_line_refuses_in_one_line(
    command: Command, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in command("run", str(folder), PROMPT, *arguments).refusal


def test_the_command_line_follows_constraints(command: Command, folder: Path) -> None:
    def text(*arguments: str) -> str:
        return command("run", str(folder), PROMPT, "--seed", "1", *arguments).answer.removesuffix("\n")

    assert text("--choices", "rain, stone") in ("rain", " stone")
    assert re.fullmatch("[ab]{4}", text("--regex", "[ab]{4}"))
    assert text("--grammar", 'root ::= "a" | "b"') in ("a", "b")
    assert valid("json_schema", SCHEMAS["flat object"], text("--json-schema", json.dumps(SCHEMAS["flat object"])))


MONSTERS = """
import resource, sys
from support.constraints import BAD, LATE
from pellucid.errors import InvalidRequest
from pellucid.sample.options import Options
from pellucid.tokenize import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for option, value, _ in [*BAD, *LATE]:
    try:
        made = Options.of(**{option: value})
        sampler = made.chain().start(tokenizer, [1], made.ends(tokenizer, tokenizer.vocab_size))
        import numpy as np
        for _ in range(30):
            sampler.sample(np.float32(np.random.default_rng(1).normal(size=tokenizer.vocab_size)))
    except InvalidRequest:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_refusals_cost_little_memory(folder: Path) -> None:
    assert int(apart(MONSTERS, str(folder))) < 1_000_000  # KiB


TOGETHER = """
import gc, sys, threading, time
import numpy as np
from pellucid.errors import InvalidRequest
from pellucid.sample.options import Options
from pellucid.tokenize import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024
def follow(number):
    made = Options.of(regex="[ab]?" * (number % 2) + f"(a{{1000}}){{{1000 + number}}}", seed=1)
    sampler = None
    try:
        sampler = made.chain().start(tokenizer, [1], made.ends(tokenizer, tokenizer.vocab_size))
        for _ in range(5):
            sampler.sample(np.float32(np.random.default_rng(1).normal(size=tokenizer.vocab_size)))
    except InvalidRequest:
        pass
    if sampler:
        sampler.end()
before = resident()
threads = [threading.Thread(target=follow, args=(number,)) for number in range(12)]
for one in threads:
    one.start()
for one in threads:
    one.join()
gc.collect()
time.sleep(0.5)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_many_large_grammars_at_once_give_their_memory_back(folder: Path) -> None:
    assert int(apart(TOGETHER, str(folder))) < 400  # MB; 950 if grammars force texts without a limit


# Known defects of llguidance


CRASHES = {
    "a chain of rules in Lark's form": "grammar=chain(5000)['lark']",
    "a chain of rules in GBNF": "grammar=chain(5000)['gbnf']",
    "a chain of references": "json_schema=chain(5000)['schema']",
    "a chain of objects": "json_schema=chain(2000)['objects']",
    "a wrong value in letters beyond ASCII": "json_schema={'required': 'é' * 100}",
    "the lowest of 64 bits": "json_schema={'const': -(2**63)}",
    "an object of many properties": "json_schema={'const': dict.fromkeys(map(str, range(40_000)), 0)}",
    "a multiple of much": "json_schema={'type': 'integer', 'multipleOf': 99_999_999}",
    "multiples of many": "json_schema={'type': 'integer', 'allOf': [{'multipleOf': n} for n in (97, 101, 103, 107)]}",
    "many patterns": "json_schema={'type': 'object', 'patternProperties': {f'^p{i}$': {} for i in range(400)}}",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", CRASHES)
def test_no_constraint_ends_the_process_or_takes_long(folder: Path, what: str) -> None:
    code = f"""
import sys
from support.constraints import chain
from pellucid.errors import InvalidRequest
from pellucid.sample.options import Options
from pellucid.tokenize import load_tokenizer
try:
    made = Options.of({CRASHES[what]})
    made.chain().start(load_tokenizer(sys.argv[1]), [1])
except InvalidRequest:
    pass
"""
    quick(code, str(folder))


def follows(tokenizer: Tokenizer, option: str, value: Any, text: str) -> bool:
    """True if a text can be generated, always with the longest allowed token."""
    sampler, rest = begun(tokenizer, **{option: value}, samplers=["constraint"]), text.encode()
    while True:
        left, _ = sampler.apply_steps(Candidates.of(np.zeros(tokenizer.vocab_size, np.float32), ""))
        allowed = left.ids_at()[left.raw == 0].tolist()
        if not rest:
            return not tokenizer.eos_ids.isdisjoint(allowed)
        pieces = {tokenizer.token_bytes(token): token for token in allowed if not tokenizer.is_special(token)}
        piece = max((piece for piece in pieces if rest.startswith(piece)), key=len, default=b"")
        if not piece:
            return False
        sampler.accept(pieces[piece])
        rest = rest[len(piece) :]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "format": "date"}, '"2023-02-29"'),
        ({"type": "string", "format": "date"}, '"0000-01-01"'),
        ({"const": 2**64 + 1}, "18446744073709552000"),
        ({"enum": [10**20 + 1, 5]}, "100000000000000000000"),
        ({"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 7}, str(2**53)),
        (
            {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
            r'{"\u0061":"x"}',
        ),
        (
            {"type": "object", "patternProperties": {"^k$": {}}, "additionalProperties": False, "minProperties": 2},
            '{"k":1,"k":2}',
        ),
    ],
    ids=str,
)  # fmt: skip
def test_texts_that_are_not_of_their_schema(llm: LLM, schema: dict[str, Any], text: str) -> None:
    from jsonschema import Draft202012Validator

    checker = Draft202012Validator.FORMAT_CHECKER
    assert not Draft202012Validator(schema, format_checker=checker).is_valid(json.loads(text)), "it is of it"
    try:
        assert not follows(llm.tokenizer, "json_schema", schema, text)
    except InvalidRequest:
        return


def test_what_can_be_made(llm: LLM) -> None:
    """Tests that ``follows`` returns both True and False."""
    for text, expected in (("ab", True), ("a", False), ("aba", False), ("b", False), ("abc", True)):
        assert follows(llm.tokenizer, "regex", "abc?", text) is expected


def test_as_many_choices_as_the_limit_says(llm: LLM) -> None:
    choices = [f"w{number}" for number in range(grammar.MAX_CHOICES)]
    assert llm.generate(PROMPT, choices=choices, seed=1, **FREE).text in choices


@pytest.mark.parametrize("schema", [True, "true"])
def test_a_schema_may_be_true(llm: LLM, schema: Any) -> None:
    finished(llm.generate(PROMPT, json_schema=schema, **DRAWN[0]), "json_schema", {})


def test_escapes_of_four_digits_in_gbnf(llm: LLM) -> None:
    made = llm.generate(PROMPT, grammar=r'root ::= "\u00e9" [\u00e0-\u00e8]', seed=1, **FREE)
    assert re.fullmatch("é[à-è]", made.text)


def test_trees_of_a_vocabulary_do_not_pile_up(llm: LLM) -> None:
    first = trees.tree_of(llm.tokenizer, frozenset({100}))
    assert trees.tree_of(llm.tokenizer, frozenset({100})) is first
    for token in range(101, 101 + trees.MAX_TREES):
        trees.tree_of(llm.tokenizer, frozenset({token}))
    assert trees.tree_of(llm.tokenizer, frozenset({100})) is not first, "the oldest has made way"


# A real model


@pytest.mark.model
def test_smollm2_follows_schemas(smollm2: LLM) -> None:
    ends = []
    for number, (name, schema) in enumerate(SCHEMAS.items()):
        messages = [{"role": "user", "content": f"Write an example of JSON: {name}."}]
        made = smollm2.chat(messages, json_schema=schema, seed=number, max_new_tokens=80)
        if made.finish_reason == "stop":
            assert valid("json_schema", schema, made.text), made.text
        ends.append(made.finish_reason == "stop")
    assert sum(ends) >= 20
