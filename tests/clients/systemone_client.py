"""System One: TypeSafe's SDK and systemone-client ask a random decision model, on a server of its own.

The answers have the form that both clients check, and are the same for both.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from systemone import AsyncClient, Client, SystemOneError
from systemone import Choice as PlainChoice
from systemone import Noul as PlainNoul
from systemone import Score as PlainScore
from typesafe_sdk import Choice, Noul, RetryPolicy, Score, TypeSafeBadRequestError, TypeSafeClient

PYTHON = os.environ.get("PELLUCID_PYTHON", sys.executable)
MODEL = """
import sys
sys.path.insert(0, "tests")
from support.decisions import decision_model
decision_model(sys.argv[1] + "/decider", "openjev")
"""
STATE = {"message": "I was charged twice, and nobody answers.", "plan": ["pro", 2]}
TEAMS = {"billing": "payments", "shipping": None, "technical": "the app"}
LEVELS = ["can wait", "this week", "today"]


def check(url: str) -> None:
    with TypeSafeClient(base_url=url, api_key="none", model="decider", retry=RetryPolicy(max_retries=0)) as client:
        found = client.system_one(
            state=STATE,
            questions={
                "team": Choice(instructions="Which team?", criteria=TEAMS),
                "urgency": Score(instructions="How urgent?", criteria=LEVELS),
                "angry": Noul(instructions="Is the customer angry?"),
            },
        )
        with pytest.raises(TypeSafeBadRequestError, match="2 to 10 levels"):
            client.system_one(state=STATE, questions={"one": Score(instructions="?", criteria=["a"] * 11)})
    assert found.choices["team"].choice in TEAMS
    assert abs(sum(found.choices["team"].probabilities.values()) - 1) < 1e-9
    assert 0 <= found.nouls["angry"].noul <= 1
    questions = {
        "team": PlainChoice("Which team?", TEAMS),
        "urgency": PlainScore("How urgent?", LEVELS),
        "angry": PlainNoul("Is the customer angry?"),
    }
    with Client(url) as client:
        other = client.system_one(STATE, questions)
        with pytest.raises(SystemOneError, match="404"):
            client.system_one(STATE, questions, model="unknown")

    async def together() -> None:
        async with AsyncClient(url) as client:
            each = await asyncio.gather(*(client.system_one(STATE, questions) for _ in range(8)))
        assert all(one.raw == other.raw for one in each)

    asyncio.run(together())
    assert dict(found.choices["team"].probabilities) == other.choices["team"].probabilities
    assert found.scores["urgency"].score == other.scores["urgency"].score
    assert found.nouls["angry"].noul == other.nouls["angry"].noul
    assert found.usage.input_tokens == other.usage.input_tokens


def main() -> None:
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([PYTHON, "-c", MODEL, folder], check=True, cwd=root)
        command = [PYTHON, "-m", "pellucid", "serve", f"{folder}/decider", "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            lines = iter(server.stderr)
            url = next(line.split()[-1] for line in lines if " at http" in line)
            check(url)
        finally:
            server.terminate()
            server.wait()


main()
