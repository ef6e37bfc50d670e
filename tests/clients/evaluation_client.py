"""lm-eval with ``local-completions``: a multiple-choice task and rolling perplexity, equal to the server's own scores.

lm-eval sends batches of prompts as token ids with ``echo``, ``logprobs`` 1 and ``max_tokens`` 1. The first
log-probability is null. A token is the greedy choice if its log-probability is the highest of ``top_logprobs``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

URL, MODEL = sys.argv[1], "smollm2"
TASKS = Path(__file__).parent / "tasks"
QUESTIONS = (
    ("The capital of France is", ["Paris", "London", "Rome"], 0),
    ("Two plus two equals", ["three", "four", "five"], 1),
    ("The opposite of hot is", ["cold", "warm", "blue"], 0),
    ("Cats like to chase", ["clouds", "mice", "stones"], 1),
    ("The sun rises in the", ["east", "west", "north"], 0),
)
TEXT = (Path(__file__).parents[1] / "oracles" / "text.txt").read_text()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [dict(zip(("question", "choices", "answer"), one)) for one in QUESTIONS]
        write(folder / "choice.jsonl", lines)
        write(folder / "rolling.jsonl", [{"text": TEXT[start : start + 1500]} for start in (0, 1500)])
        for task in TASKS.glob("*.yaml"):
            (folder / task.name).write_text(task.read_text().replace("FOLDER", name))
        arguments = f"model={MODEL},base_url={URL}/v1/completions,num_concurrent=2,max_length=2048"
        subprocess.run(
            [
                *(sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments),
                *("--batch_size", "4", "--tasks", "pellucid_choice,pellucid_rolling", "--include_path", name),
                *("--log_samples", "--output_path", str(folder / "out")),
            ],
            check=True,
        )
        choices, rolling = (samples(folder, task) for task in ("pellucid_choice", "pellucid_rolling"))
    for sample in choices:
        for one, (found, greedy) in zip(sample["arguments"].values(), sample["filtered_resps"]):
            values, is_greedy = scores(one["arg_0"], one["arg_1"])
            assert float(found) == sum(values), one
            assert (greedy in (True, "True")) == is_greedy, one
    for sample in rolling:
        info = httpx.get(f"{URL}/tokenizer_info", params={"model": MODEL}).json()
        values, _ = scores(info["bos_token"], sample["doc"]["text"])
        assert abs(float(sample["filtered_resps"][0]) - sum(values)) < 1e-9 * abs(sum(values))
    assert len(choices) == len(QUESTIONS)
    assert len(rolling) == 2


def scores(before: str, text: str) -> tuple[list[float], bool]:
    """Log-probabilities of the tokens of ``text`` after ``before``, and True if all tokens are the greedy choice."""
    count = len(tokens(before))
    body = {"model": MODEL, "prompt": tokens(before + text), "echo": True, "logprobs": 1, "max_tokens": 1}
    found = httpx.post(f"{URL}/v1/completions", json=body, timeout=60).json()["choices"][0]["logprobs"]
    values, tops = found["token_logprobs"][count:-1], found["top_logprobs"][count:-1]
    return values, all(value == max(top.values()) for value, top in zip(values, tops))


def tokens(text: str) -> list[int]:
    body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    return httpx.post(f"{URL}/tokenize", json=body).json()["tokens"]


def samples(folder: Path, task: str) -> list[dict]:
    (path,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
