"""Requests survive the loss of their replica: the output is bit-identical to a run without a loss."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decisions import QUESTIONS, STATES, decision_model
from support.links import messages_changed_by
from support.marked_options import marked_model
from support.option_models import ARCHITECTURES, option_model
from support.replicas import SECONDS, SECRET, finished, replicas, run

import pellucid
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.replica_link import ReplicaLink
from pellucid.cluster.secret import ClusterSecret
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.errors import InvalidRequest, KernelError, QueueFull
from pellucid.llm import LLM
from pellucid.serve.batch import Batch
from pellucid.testing import random_model
from pellucid.trace import call

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat, and "


def same(made: Any, wanted: Any) -> None:
    assert made.ids == wanted.ids
    assert (made.text, made.finish_reason, made.stop_reason) == (wanted.text, wanted.finish_reason, wanted.stop_reason)
    for name in ("logprobs", "prompt_logprobs"):
        one, other = getattr(made, name), getattr(wanted, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values()))
    assert made.trace == wanted.trace


CASES: dict[str, dict[str, Any]] = {
    "plain": {"seed": 5, "temperature": 1.3},
    "greedy": {"temperature": 0},
    "logprobs": {"seed": 5, "logprobs": 3, "prompt_logprobs": 2, "watch": True},
    "history": {"seed": 6, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "dry_multiplier": 0.8},
    "mirostat": {"seed": 7, "mirostat": 2, "temperature": 1.5},
    "schema": {
        "seed": 8,
        "json_schema": {
            "type": "object",
            "required": ["a", "b"],
            "additionalProperties": False,
            "properties": {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 12, "maxItems": 20},
                           "b": {"type": "string", "maxLength": 20}},
        },
    },
    "regex": {"seed": 9, "regex": "(ab|cd){40,50}"},
    "stop": {"seed": 10, "stop": ["zzzz", "qq"]},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("after", [0, 17])
def test_a_request_outlives_its_replica(llama_file: Path, alone: LLM, case: str, after: int) -> None:
    short = case in ("schema", "regex", "stop")  # the request may end before the replica is killed
    options = {"max_new_tokens": 400, "ignore_eos": case not in ("schema", "regex"), **CASES[case]}
    wanted = alone.generate(PROMPT, **options)

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            group = model.request(PROMPT, **options)
            if not after:
                asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(made.kill()))
            await finished(group, lambda count: made.kill() if count == after else None)
            assert made.fleet.moved == 1 or short
            same(group.results()[0], wanted)

    run(work())


def test_a_long_prompt_is_read_again(llama_file: Path, alone: LLM) -> None:
    prompt = PROMPT * 60
    wanted = alone.generate(prompt, max_new_tokens=10, seed=3)

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            group = model.request(prompt, max_new_tokens=10, seed=3)
            group.start()
            await asyncio.sleep(0.004)  # during prefill
            await made.kill()
            await group.finished()
            same(group.results()[0], wanted)

    run(work())


def test_speculation_goes_on(llama_file: Path, alone: LLM) -> None:
    prompt, options = ("abcdefgh" * 40, {"max_new_tokens": 120, "temperature": 0.2, "seed": 4, "ignore_eos": True})
    wanted = alone.generate(prompt, **options)

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            group = model.request(prompt, **options)
            await finished(group, lambda count: made.kill() if count == 50 else None)
            same(group.results()[0], wanted)

    run(work())


def test_several_answers_each_go_on_from_where_they_are(llama_file: Path, alone: LLM) -> None:
    options = {"max_new_tokens": 40, "seed": 11, "stop": ["e"], "logprobs": 1}
    wanted = alone.samples(PROMPT, 4, **options)

    async def work() -> None:
        async with replicas(llama_file, 3) as (made, model):
            group = model.request(PROMPT, 4, **options)
            await finished(group, lambda count: made.kill() if count in (6, 20) else None)
            for one, other in zip(group.results(), wanted):
                same(one, other)

    run(work())


def test_beams_are_searched_again(llama_file: Path, alone: LLM) -> None:
    options = {"num_beams": 3, "max_new_tokens": 30}
    wanted = alone.beam_search(PROMPT, **options)

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            search = asyncio.ensure_future(asyncio.to_thread(lambda: model.beam_search(PROMPT, **options)))
            while not made.fleet.running:
                await asyncio.sleep(0.002)
            await made.kill()
            found = await search
            assert made.fleet.moved == 1
            assert [vars(one) for one in found.texts] == [vars(one) for one in wanted.texts]
            assert found.tree == wanted.tree

    run(work())


def test_sentence_vectors(tmp_path: Path) -> None:
    path = Path(random_model("bert", tmp_path / "encoder", kind="safetensors"))
    with pellucid.load(path, threads=2) as llm:
        wanted = llm.embed(["a sentence", "another one"])

    async def work() -> None:
        async with replicas(path, 1) as (_, model):
            ids = model.inputs.sentences(["a sentence", "another one"])
            found = await asyncio.to_thread(model.encode, [EncoderInput(one) for one in ids])
            assert np.array_equal(np.concatenate(found), wanted)

    run(work())


@pytest.mark.parametrize("kind", ["lev", "laya"])
def test_decisions(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "decision.gguf"
    path = marked_model(path) if kind == "laya" else decision_model(path, kind)
    with pellucid.load(path, threads=2) as llm:
        wanted = [llm.decide(state, QUESTIONS, explain=True) for state in STATES]

    async def work() -> None:
        async with replicas(path, 2) as (_, model):
            for state, one in zip(STATES, wanted):
                found = await asyncio.to_thread(model.decide, state, QUESTIONS, explain=True)
                assert (found.answers, found.prompt_tokens) == (one.answers, one.prompt_tokens)
                plain = await asyncio.to_thread(model.decide, state, QUESTIONS)
                assert [list(answer.scores) for answer in plain.values()] == [
                    list(answer.scores) for answer in one.values()
                ]
            with pytest.raises(InvalidRequest, match=r"questions.q.type='x'"):
                model.decide("s", {"q": {"type": "x"}})

    run(work())


@pytest.mark.parametrize("kind", ["marked", *ARCHITECTURES])
def test_decisions_of_a_model_that_scores_options_itself(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.gguf"
    path = option_model(path, kind) if kind in ARCHITECTURES else marked_model(path)
    with pellucid.load(path, threads=2) as llm:
        wanted = [llm.decide(state, QUESTIONS) for state in STATES]

    async def work() -> None:
        async with replicas(path, 2) as (_, model):
            for state, one in zip(STATES, wanted):
                found = await asyncio.to_thread(model.decide, state, QUESTIONS)
                assert (found.answers, found.prompt_tokens) == (one.answers, one.prompt_tokens)
            if kind in ("kev", "clef"):
                with pytest.raises(InvalidRequest, match="leave explain out"):
                    model.decide(STATES[0], QUESTIONS, explain=True)

    run(work())


def test_many_requests_while_replicas_end(llama_file: Path, alone: LLM) -> None:
    """No token is lost, duplicated or different."""
    rng, count = random.Random(3), 60
    prompts = [PROMPT * rng.randint(1, 8) + str(number % 7) for number in range(count)]
    options = [{"max_new_tokens": rng.randint(20, 700), "seed": number, "ignore_eos": True} for number in range(count)]
    wanted = [alone.generate(prompt, **one) for prompt, one in zip(prompts, options)]

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            ended = 0

            async def one(number: int) -> None:
                nonlocal ended
                await asyncio.sleep(rng.random() * 4)
                group = model.request(prompts[number], **options[number])
                heard = [token async for token in group.stream()]
                assert [token.id for token in heard] == wanted[number].ids
                same(group.results()[0], wanted[number])
                ended += 1

            async def killer() -> None:
                while ended < count:
                    await asyncio.sleep(0.8)
                    await made.kill()
                    await asyncio.to_thread(made.add_later)
                    await made.up(2)

            ending = asyncio.ensure_future(killer())
            await asyncio.gather(*(one(number) for number in range(count)))
            await ending
            assert ended == count
            assert made.fleet.moved > 0

    run(work())


def bound(source: Path, target: Path) -> Batch:
    batch = Batch(source, target, "any", 8)
    batch.bind("a" * 64, "b" * 64)
    return batch


def test_a_batch_is_in_order_whatever_ends(llama_file: Path, alone: LLM, tmp_path: Path) -> None:
    """The first request is slow, another request fails, and a replica is killed."""
    lengths = [600, *(3 + number % 9 for number in range(40))]
    bodies = [
        {"prompt": [number + 1, 5, 6], "max_tokens": length if number != 7 else -1, "seed": 1, "ignore_eos": True}
        for number, length in enumerate(lengths)
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"custom_id": str(n), "url": "/v1/completions", "body": body} for n, body in enumerate(bodies)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bound(source, tmp_path / "alone.jsonl").run(alone)

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            batch = bound(source, target)
            running = asyncio.ensure_future(asyncio.to_thread(batch.run, model))
            while batch.answered < 10:
                await asyncio.sleep(0.01)
            await made.kill()
            await running
            assert made.fleet.moved

    run(work())
    found, wanted = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (target, tmp_path / "alone.jsonl")
    )
    assert [one["custom_id"] for one in found] == [str(n) for n in range(len(bodies))]
    assert [one["response"]["status_code"] == 400 for one in found].index(True) == 7
    for one, other in zip(found, wanted):
        bodies_of = one["response"]["body"], other["response"]["body"]
        assert bodies_of[0].get("choices") == bodies_of[1].get("choices")


def test_what_runs_is_handed_over(llama_file: Path, alone: LLM) -> None:
    wanted = alone.generate(PROMPT, max_new_tokens=200, seed=1, ignore_eos=True)

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            group = model.request(PROMPT, max_new_tokens=200, seed=1, ignore_eos=True)

            async def drain() -> None:
                (link,) = made.busy
                link.send("drain")

            await finished(group, lambda count: drain() if count == 20 else None)
            same(group.results()[0], wanted)
            assert made.fleet.moved == 1

    run(work())


@pytest.mark.parametrize("gone", ["lost", "moved"])
def test_a_replica_goes_after_the_last_token(llama_file: Path, alone: LLM, gone: str) -> None:
    """All tokens have arrived, but not the end message. No other replica has to generate anything."""
    wanted = alone.generate(PROMPT, max_new_tokens=20, seed=1, ignore_eos=True)

    def change(link: ReplicaLink, message: Sequence[Any]) -> Sequence[Any]:
        return [gone if message[0] == "end" else message[0], *message[1:]]

    async def work() -> None:
        with messages_changed_by(change):
            async with replicas(llama_file) as (made, model):
                group = model.request(PROMPT, max_new_tokens=20, seed=1, ignore_eos=True)
                await asyncio.wait_for(finished(group, lambda _: None), SECONDS)
                assert made.fleet.moved == 1
                same(group.results()[0], wanted)

    run(work())


def test_a_client_that_goes_costs_nothing(llama_file: Path) -> None:
    async def work() -> None:
        async with replicas(llama_file, 1) as (made, model):
            group = model.request(PROMPT, max_new_tokens=1500, ignore_eos=True)
            async for _ in group.stream():
                break
            group.close()
            (link,) = made.fleet.links
            for _ in range(100):
                if link.state and not link.state.running and not link.state.pages_in_use:
                    break
                await asyncio.sleep(0.05)
            assert link.state is not None
            assert (link.state.running, link.state.pages_in_use) == (0, 0)
            assert made.fleet.running == 0

    run(work())


def test_errors_are_those_of_the_model(llama_file: Path) -> None:
    async def work() -> None:
        async with replicas(llama_file, 1) as (made, model):
            for options, said in (
                ({"temperature": -1}, "temperature"),
                ({"no_such": 1}, "no_such"),
                ({"regex": "("}, "regex"),
                ({"samplers": [object()]}, "samplers"),
                ({"edits": [object()]}, "must be made by"),
                ({"edits": [call("embed", abs)]}, "cannot be sent to a replica"),
            ):
                with pytest.raises(InvalidRequest, match=said):
                    model.request(PROMPT, **options)
            full = Fleet(ClusterSecret(SECRET), queue=0)  # without a replica
            with pytest.raises(QueueFull, match="the queue is full"):
                RemoteModel(made.opened, full).request(PROMPT).start()
            await full.close()

    run(work())


def test_a_request_that_ends_replicas_is_given_up(llama_file: Path) -> None:
    began, lost = set[str](), list[str]()

    def change(link: ReplicaLink, message: Sequence[Any]) -> Sequence[Any] | None:
        if message[0] == "token":
            began.add(link.address)
            return ["values", message[1]] if lost else message  # the replica has begun, and its token is lost
        return message

    async def work() -> None:
        with messages_changed_by(change):
            async with replicas(llama_file, 3) as (made, model):
                group = model.request(PROMPT, max_new_tokens=1500, ignore_eos=True)

                async def kill() -> None:
                    for _ in range(3):
                        (link,) = made.busy
                        lost.append(link.address)
                        while link.address not in began:
                            await asyncio.sleep(0.01)
                        await made.kill()

                with pytest.raises(KernelError, match="3 replicas were lost while they ran this request"):
                    await finished(group, lambda count: kill() if count == 5 else None)
                assert len(set(lost)) == 3

    run(work())


def test_a_request_that_gets_on_may_lose_many_replicas(llama_file: Path, alone: LLM) -> None:
    wanted = alone.generate(PROMPT, max_new_tokens=1900, seed=1, ignore_eos=True)

    async def work() -> None:
        async with replicas(llama_file, 5) as (made, model):
            group = model.request(PROMPT, max_new_tokens=1900, seed=1, ignore_eos=True)
            await finished(group, lambda count: made.kill() if count in (10, 300, 600, 900) else None)
            same(group.results()[0], wanted)

    run(work())


def test_a_request_waits_for_a_replica(llama_file: Path, alone: LLM) -> None:
    wanted = alone.generate(PROMPT, max_new_tokens=20, seed=2)

    async def work() -> None:
        async with replicas(llama_file, 1) as (made, model):
            group = model.request(PROMPT, max_new_tokens=20, seed=2)
            group.start()
            await made.kill()
            assert made.fleet.waiting == 1
            await asyncio.to_thread(made.add_later)
            await group.finished()
            same(group.results()[0], wanted)

    run(work())


@pytest.mark.parametrize("had", [0, 25])
def test_an_ingress_that_is_started_again_gets_what_runs(llama_file: Path, alone: LLM, had: int) -> None:
    wanted = alone.generate(PROMPT, max_new_tokens=600, seed=1, ignore_eos=True, logprobs=2)
    options = {"max_new_tokens": 600, "seed": 1, "ignore_eos": True, "logprobs": 2}

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            first = model.request(PROMPT, **options)
            first.set_name("the name of a request", False)
            stream = first.stream()
            for _ in range(had):
                await anext(stream)
            if not had:
                await asyncio.sleep(0.01)
            for link in made.fleet.links:
                link.up = False  # the ingress disappears without a message
                await link.close()
            again = Fleet(ClusterSecret(SECRET))
            for address in made.processes:
                again.add(address)
            try:
                await again.ready(SECONDS)
                while sum(link.up for link in again.links) < 2:
                    await asyncio.sleep(0.01)
                group = RemoteModel(made.opened, again).request(PROMPT, **options)
                group.set_name("the name of a request", True)
                await finished(group, lambda count: None)
                same(group.results()[0], wanted)
                await asyncio.sleep(0.3)
                steps = sum(link.state.steps for link in again.links if link.state)
                assert steps < 800, "it was not made twice"
                other = RemoteModel(made.opened, again).request(PROMPT, **options)
                other.set_name("a name that nobody knows", True)
                await finished(other, lambda count: None)
                same(other.results()[0], wanted)
            finally:
                await again.close()

    run(work())


def test_a_name_makes_the_seed(llama_file: Path) -> None:
    async def work() -> None:
        async with replicas(llama_file, 1) as (_, model):
            made = []
            for name in ("a", "a", "b"):
                group = model.request(PROMPT, max_new_tokens=20, temperature=1.5, min_p=0)
                group.set_name(name, False)
                await finished(group, lambda count: None)
                made.append(group.results()[0])
            assert made[0].ids == made[1].ids != made[2].ids
            assert made[0].seed == made[1].seed != made[2].seed
            greedy = model.request(PROMPT, max_new_tokens=5, temperature=0)
            greedy.set_name("a", False)
            await finished(greedy, lambda count: None)
            assert greedy.results()[0].seed is None

    run(work())
