"""The effect of costly grammars on other streams of a model.

    python bench/constraints.py [--model NAME] [--seconds N] [--bombs N]

STREAMS unconstrained streams and one stream with a small JSON schema run while costly requests (bombs) arrive: regexes
that force a million characters, highly ambiguous grammars, and large schemas. BOMBS requests of each kind run together.
For each kind the script reports the longest time between two tokens of a stream in milliseconds, with and without
bombs, the finish reasons of the bombs, and the process's memory in MB after the bombs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import threading
import time
from collections import Counter
from typing import Any

import pellucid
from pellucid.errors import PellucidError
from pellucid.llm import LLM

STREAMS = 3
PROMPT = "JSON descriptions of people:\n"
SCHEMA = {
    "type": "array",
    "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    "minItems": 1000,
}
BOMBS: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "forced characters": [
        {"regex": "(a{1000}){1000}"},
        {"regex": "[ab]c{1000000}"},
        {"grammar": 'root ::= "a"{100000000}'},
        {"json_schema": {"type": "string", "pattern": "^[ab](a{1000}){500}$"}},
    ],
    "ambiguous": [
        {"grammar": 'start: e\ne: e e | e e e | "a" | '},
        {"grammar": "start: e\ne: e e | e e e | /[a-z ]/"},
        {"grammar": "start: e*\ne: a | b | c\na: /[a-z]/+\nb: /[a-z]/+ a?\nc: (a|b)*"},
        {"grammar": 'root ::= x*\nx ::= x x | "a" | "aa" | "aaa" | "b"'},
    ],
    "large": [
        {"regex": "(?i)" + r"[a-zà-ÿ\w]{1,9}" * 3000},
        {"grammar": "start: T30\n" + "".join(f"T{n + 1}: T{n} T{n}\n" for n in range(30)) + 'T0: "x"'},
        {"json_schema": {"anyOf": [{"type": "number", "minimum": n / 7, "maximum": 1e9 + n} for n in range(1500)]}},
        {"choices": [f"{n} and some more words" for n in range(10_000)]},
    ],
}  # fmt: skip


def memory() -> float:
    """The resident memory of this process, in MB."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmRSS"))


class Stream(threading.Thread):
    """Reads streams for some seconds, and records the longest time between two tokens."""

    def __init__(self, llm: LLM, seconds: float, **options: Any) -> None:
        super().__init__()
        self.llm, self.seconds, self.options = llm, seconds, options
        self.gap, self.tokens = 0.0, 0

    def run(self) -> None:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            last = time.perf_counter()
            for _ in self.llm.start(PROMPT, ignore_eos=True, max_new_tokens=1000, **self.options):
                now = time.perf_counter()
                if self.tokens:
                    self.gap = max(self.gap, now - last)
                last, self.tokens = now, self.tokens + 1
                if now > end:
                    break


def explode(llm: LLM, options: dict[str, Any], outcomes: Counter[str]) -> None:
    try:
        made = llm.generate(PROMPT, max_new_tokens=150, temperature=1.5, **options)
        outcomes[made.finish_reason or ""] += 1
    except PellucidError as error:
        outcomes[str(error)[:200]] += 1


def measured(llm: LLM, bombs: list[dict[str, Any]], seconds: float, count: int) -> dict[str, Any]:
    """The longest gaps between tokens while ``bombs`` run."""
    streams = [Stream(llm, seconds, seed=number) for number in range(STREAMS)]
    streams.append(Stream(llm, seconds, json_schema=SCHEMA))
    for one in streams:
        one.start()
    time.sleep(1)
    outcomes: Counter[str] = Counter()
    made = [threading.Thread(target=explode, args=(llm, bombs[n % len(bombs)], outcomes)) for n in range(count)]
    for bomb in made:
        bomb.start()
    for thread in [*streams, *made]:
        thread.join()
    gc.collect()
    time.sleep(0.5)
    return {
        "free_ms": 1e3 * max(one.gap for one in streams[:-1]),
        "constrained_ms": 1e3 * streams[-1].gap,
        "tokens": sum(one.tokens for one in streams),
        "memory_mb": memory(),
        "outcomes": dict(outcomes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each kind of bombs")
    parser.add_argument("--bombs", type=int, default=12)
    given = parser.parse_args()
    llm = pellucid.load(given.model)
    llm.generate(PROMPT, json_schema=SCHEMA, max_new_tokens=20)
    document = {}
    for kind, bombs in BOMBS.items():
        document[kind] = found = measured(llm, bombs, given.seconds, given.bombs if bombs else 0)
        print(
            f"beside {kind}: longest gap {found['free_ms']:.0f} ms, {found['constrained_ms']:.0f} ms with a schema; "
            f"{found['tokens']:,} tokens; {found['memory_mb']:.0f} MB afterwards",
            flush=True,
        )
        for outcome, times in found["outcomes"].items():
            print(f"    {times} × {outcome}")
    llm.close()
    print(json.dumps(document))


if __name__ == "__main__":
    main()
