"""The cost of sampling, beside transformers and llama.cpp, and the cost of constraints.

    python bench/sampling.py [--rounds N] [--model NAME]    (make bench-sampling)

First part: microseconds per token on random logits (normal, times 3) of 262,144 and of 49,152 tokens, for three
workloads: greedy; the chain of temperature 0.8, top-k 40, top-p 0.95, min-p 0.05 and the draw; log-probabilities of the
token and of 20 alternatives. Figures are medians of alternating calls. transformers (its processors, softmax and
multinomial) and llama.cpp (llama_sampler_apply, including its array of candidates) are measured if they can be
imported: pip install pellucid[oracles], llama-cpp-python.

Second part: tokens per second of a model for each entry of WAYS, in turn, and the share of the unconstrained speed
(median over rounds). The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import pellucid
from pellucid.llm import LLM
from pellucid.sample.candidates import Candidates
from pellucid.sample.logprobs import of_token
from pellucid.sample.options import Options

VOCABULARIES = 262_144, 49_152
CHAIN = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
ALTERNATIVES = 20
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WAYS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    "greedy": {"ignore_eos": True, "temperature": 0},
    "JSON schema": {"json_schema": {"type": "array", "items": PERSON, "minItems": 20}},
    "regex": {"regex": "[a-z ]{2000,}"},
    "penalties": {"ignore_eos": True, "repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "log-probabilities": {"ignore_eos": True, "logprobs": ALTERNATIVES},
}
PROMPT, TOKENS = "JSON descriptions of people:\n", 128
Call = Callable[[], Any]


class Nothing:
    """A stand-in for the tokenizer, which the default chain never calls."""


def ours(logits: np.ndarray) -> dict[str, Call]:
    def sampling(**options: Any) -> Call:
        sampler = Options.of(seed=1, **options).chain().start(Nothing(), [])  # type: ignore[arg-type]
        return lambda: sampler.sample(logits)

    return {
        "greedy": sampling(temperature=0),
        "chain": sampling(**CHAIN),
        "log-probabilities": lambda: of_token(Candidates.of(logits, "bench"), 7, ALTERNATIVES, len(logits)),
    }


def transformers(logits: np.ndarray) -> dict[str, Call]:
    import torch
    from transformers.generation import logits_process as steps

    torch.set_num_threads(1)
    row, ids = torch.from_numpy(logits)[None], torch.zeros((1, 1), dtype=torch.long)
    chain = [
        steps.TemperatureLogitsWarper(CHAIN["temperature"]),
        steps.TopKLogitsWarper(int(CHAIN["top_k"])),
        steps.TopPLogitsWarper(CHAIN["top_p"]),
        steps.MinPLogitsWarper(CHAIN["min_p"]),
    ]

    def sample() -> Any:
        scores = row.clone()
        for step in chain:
            scores = step(ids, scores)
        return torch.multinomial(scores.softmax(-1), 1)

    def logprobs() -> Any:
        scores = row.log_softmax(-1)
        return scores.topk(ALTERNATIVES), scores[0, 7]

    return {"greedy": lambda: row.argmax(-1), "chain": sample, "log-probabilities": logprobs}


def llama_cpp(logits: np.ndarray) -> dict[str, Call]:
    import llama_cpp as lc

    kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    data = np.zeros(len(logits), kind)
    ids = np.arange(len(logits), dtype=np.int32)

    def sampling(*steps: Any) -> Call:
        chain = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
        for step in steps:
            lc.llama_sampler_chain_add(chain, step)

        def sample() -> int:
            data["id"], data["logit"] = ids, logits
            array = lc.llama_token_data_array(
                data=data.ctypes.data_as(ctypes.POINTER(lc.llama_token_data)), size=len(data), selected=-1, sorted=False
            )
            lc.llama_sampler_apply(chain, ctypes.byref(array))
            return int(array.data[array.selected].id)

        return sample

    return {
        "greedy": sampling(lc.llama_sampler_init_greedy()),
        "chain": sampling(
            lc.llama_sampler_init_top_k(int(CHAIN["top_k"])),
            lc.llama_sampler_init_top_p(CHAIN["top_p"], 1),
            lc.llama_sampler_init_min_p(CHAIN["min_p"], 1),
            lc.llama_sampler_init_temp(CHAIN["temperature"]),
            lc.llama_sampler_init_dist(1),
        ),
    }


ENGINES = {"Pellucid": ours, "transformers": transformers, "llama.cpp": llama_cpp}


def costs(size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds by workload and engine."""
    logits = np.asarray(np.random.default_rng(1).normal(size=size) * 3, np.float32)
    calls: dict[tuple[str, str], Call] = {}
    for engine, make in ENGINES.items():
        try:
            calls |= {(work, engine): call for work, call in make(logits).items()}
        except ImportError:
            continue
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for at in range(rounds + 1):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if at:  # the first round is the warm-up
                taken[key].append(time.perf_counter() - start)
    found: dict[str, dict[str, float]] = {}
    for (work, engine), seconds in taken.items():
        found.setdefault(work, {})[engine] = 1e6 * statistics.median(seconds)
    return found


def speeds(llm: LLM, rounds: int) -> dict[str, list[float]]:
    """Tokens per second after the first token, by entry of WAYS and round. An unrecorded first round warms up."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(rounds + 1):
        for way, options in WAYS.items():
            made = llm.generate(PROMPT, max_new_tokens=TOKENS, seed=seed, **options)
            if seed:
                found[way].append(made.tokens_per_second)
    return found


def shown(numbers: Mapping[str, float], unit: str) -> str:
    first = numbers["Pellucid"]
    return ", ".join(
        f"{name} {value:,.0f} {unit}" + ("" if name == "Pellucid" else f" (x{value / first:.1f})")
        for name, value in numbers.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="of generations; logits have twenty times as many")
    parser.add_argument("--model", default="smollm2")
    given = parser.parse_args()
    document: dict[str, Any] = {}
    for size in VOCABULARIES:
        document[f"{size}"] = found = costs(size, given.rounds * 20)
        for work, numbers in found.items():
            print(f"{size:,} logits, {work}: {shown(numbers, 'µs')}", flush=True)
    llm = pellucid.load(given.model)
    by_round = speeds(llm, given.rounds)
    for way, values in by_round.items():
        share = statistics.median(one / free for one, free in zip(values, by_round["free"]))
        document[way] = {"tokens_per_second": statistics.median(values), "share": share}
        print(f"{given.model}, {way}: {statistics.median(values):.0f} tokens/s, {share:.2f} of free")
    llm.close()
    print(json.dumps(document))


if __name__ == "__main__":
    main()
