"""The command line with the real models."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import Command, pellucid

pytestmark = pytest.mark.model

FRANCE = "The capital of France is"


def test_the_capital_of_france() -> None:
    greedy = ("--temperature", "0", "--max-new-tokens", "40")
    assert pellucid("run", "smollm2", "--raw", FRANCE, *greedy).answer.startswith(" Paris")
    asked = pellucid("run", "smollm2", "Why is the sky blue?", *greedy)
    assert "Rayleigh scattering" in asked.answer
    assert "smollm2 is an instruct model, so it answers the prompt; --raw continues it as text\n" in asked.err
    assert pellucid("chat", "smollm2", "Why is the sky blue?", *greedy).answer == asked.answer


def test_gemma_from_a_pipe_until_a_stop_string() -> None:
    answer = pellucid("run", "gemma3", "-", "--temperature", "0", "--stop", "of", given=FRANCE).answer
    assert answer.startswith(" the capital")
    assert "of" not in answer


def test_a_file_of_a_pipe_and_a_question() -> None:
    options = ("--temperature", "0", "--max-new-tokens", "40")
    both = pellucid("run", "smollm2", "Which animal is it about?", *options, given="The cat sleeps on the mat.\n")
    assert "cat" in both.answer


def test_embed(command: Command) -> None:
    texts = ("A cat sits on the mat.", "On the mat there is a cat.", "Interest rates rose.")
    document = command("embed", "minilm", *texts, "--json").document
    near, far = document["cosines"][0][1:]
    assert near > 0.8 > 0.3 > far
    assert {len(vector) for vector in document["vectors"]} == {384}


def test_what_a_model_is_not_made_for(command: Command) -> None:
    assert "no chat template" in command("chat", "gemma3", "hi").refusal
    assert "makes sentence vectors, not text" in command("chat", "minilm", "hi").refusal
    assert "makes sentence vectors, not text" in command("run", "minilm", "hi").refusal
    assert "makes text, not sentence vectors" in command("embed", "smollm2", "hi").refusal
    assert "must be a whole number from 1 to 8,192" in command("run", "smollm2", "hi", "--context", "8193").refusal


@pytest.mark.parametrize("name", ["smollm2", "gemma3", "minilm"])
def test_pull_list_info_plan(command: Command, name: str) -> None:
    path = Path(command("pull", name).answer.rstrip("\n"))
    assert path.exists()
    assert command("pull", name.upper()).answer == f"{path}\n"
    assert {row["name"]: row["here"] for row in command("list", "--json").document}[name]
    assert command("info", name, "--json").document["path"] == str(path)
    assert command("plan", name).answer.splitlines()[-1].startswith("total")
