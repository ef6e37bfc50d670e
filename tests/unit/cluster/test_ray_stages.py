"""A replica with stages on several Ray nodes. Lost stages restart, and their sequences run prefill again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ray = pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from support.ray_server import SECONDS, ClusterServer, ray_nodes  # noqa: E402

from pellucid.llm import LLM  # noqa: E402

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat, and "
PLAIN: dict[str, Any] = {"ignore_eos": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0}


@pytest.fixture(scope="module")
def server(llama_file: Path) -> Iterator[ClusterServer]:
    with ray_nodes(2, 2) as nodes:
        made = ClusterServer(llama_file, nodes.address, "--stages", "2")
        try:
            made.wait(1)
            yield made
        finally:
            made.close()


def stage_processes() -> list[int]:
    """Process ids of the stages, found by Ray's process names."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "ray::StageActor" in line]


def test_texts_are_those_of_one_machine(server: ClusterServer, alone: LLM) -> None:
    for seed in range(3):
        wanted = alone.generate(PROMPT * (1 + 9 * seed), max_new_tokens=100, seed=seed, **PLAIN)
        made = server.client.completions.create(
            model=server.model, prompt=PROMPT * (1 + 9 * seed), max_tokens=100, seed=seed,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        assert made.choices[0].text == wanted.text


def test_metrics_have_what_each_stage_takes(server: ClusterServer) -> None:
    """Uses the requests of the previous test. The replica reports its state periodically."""
    end, found = time.monotonic() + SECONDS, list[str]()
    while len(found) < 2 and time.monotonic() < end:
        time.sleep(0.2)
        lines = httpx.get(f"{server.url}/metrics", timeout=SECONDS).text.splitlines()
        found = [
            line
            for line in lines
            if line.startswith("pellucid:replica_stage_seconds_total") and not line.endswith(" 0.0")
        ]
    assert [re.search(r'stage="(\d)"', line)[1] for line in found] == ["0", "1"]  # type: ignore[index]


@pytest.mark.parametrize("which", ["a stage", "the last stage"])
def test_a_stream_outlives_a_stage(server: ClusterServer, alone: LLM, which: str) -> None:
    wanted = alone.generate(PROMPT, max_new_tokens=1200, seed=4, **PLAIN)

    def kill() -> None:
        (pid,) = stage_processes() if which == "a stage" else server.pids()[-1:]
        os.kill(pid, signal.SIGKILL)

    text = server.streamed(PROMPT, 1200, 4, kill)
    assert text == wanted.text
    server.wait(1)


def test_the_page_opens_and_says_what_cannot_be_watched(server: ClusterServer) -> None:
    shape = httpx.get(f"{server.url}/look/models/{server.model}", timeout=SECONDS)
    assert shape.status_code == 200
    assert "several machines" in shape.json()["notice"]
    look, edits = f"{server.url}/look", [{"edit": "ablate", "point": "embed"}]
    for what, more in (
        ("trace", {"points": ["embed"]}),
        ("lens", {}),
        ("attribution", {"token": 65}),
        ("generate", {"edits": edits}),
        ("trace", {"edits": edits}),
    ):
        made = httpx.post(f"{look}/{what}", json={"prompt": PROMPT, **more}, timeout=SECONDS)
        assert made.status_code == 400
        assert "cannot be watched" in made.json()["error"]["message"]
    made = httpx.post(f"{look}/generate", json={"prompt": PROMPT, "stream": False}, timeout=SECONDS)
    assert made.status_code == 200
    assert made.json()["events"][-1]["type"] == "end"


def test_what_cannot_be_divided(server: ClusterServer, llama_file: Path) -> None:
    command = [sys.executable, "-m", "pellucid", "serve", str(llama_file), "--port", "0"]
    for more, said in (
        (["--cluster", "auto", "--stages", "9"], "1 to 2 stages"),
        (["--stages", "2"], "--stages 2 is for a cluster"),
        (["--cluster", "auto", "--stages", "2", "--draft", str(llama_file)], "--draft"),
    ):
        made = subprocess.run([*command, *more], capture_output=True, text=True, timeout=SECONDS)
        assert made.returncode == 2, made
        assert said in made.stderr
        assert "Traceback" not in made.stderr


def test_a_batch_on_a_cluster(server: ClusterServer, llama_file: Path, alone: LLM, tmp_path: Path) -> None:
    """A batch command with its own replicas resumes after a kill."""
    bodies = [{"model": "m", "prompt": f"{n} {PROMPT}", "max_tokens": 20, "seed": n, **PLAIN} for n in range(12)]
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body} for n, body in enumerate(bodies)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "pellucid", "batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    more = ["--model", str(llama_file), "--cluster", server.address, "--replicas", "2", "--replica-cpus", "1"]
    for _ in range(2):  # the second run has no request left
        made = subprocess.run([*command, *more], capture_output=True, text=True, timeout=SECONDS)
        assert made.returncode == 0, made.stderr
        assert "12 of 12 requests answered" in made.stdout
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = {int(one["custom_id"]): one["response"]["body"]["choices"][0]["text"] for one in answers}
    assert list(texts) == list(range(12))
    assert len(answers) == 12
    for n, body in enumerate(bodies):
        assert texts[n] == alone.generate(body["prompt"], max_new_tokens=20, seed=n, **PLAIN).text
