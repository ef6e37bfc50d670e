"""A long check of constrained generation: other programs validate thousands of texts of a real model.

    nice python tests/oracles/constraints_long.py [--count 10000] [--seed 0] [--model smollm2]

Cycles through the 60 constraints of ``tests/support/constraints.py`` (40 JSON schemas, 15 grammars in Lark syntax and
GBNF, 5 regexes) with varying prompts, temperatures and seeds. A text that finishes must satisfy its constraint, as
checked by jsonschema, Python's ``re`` or lark's Earley parser, and its streamed parts must join to it. Other texts are
cut off after ``--tokens`` tokens. Failures are printed in full, with everything needed to reproduce them. A line
reports progress every 100 texts. The exit code is 1 if a text is invalid or refused. The script writes no files.

Needs ``pip install pellucid[dev]``; SmolLM2 is downloaded if it is not in the store. 10,000 texts take about twenty
minutes on two cores. Written for jsonschema 4.26, lark 1.3 and llguidance 1.9.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.constraints import ALL, valid

import pellucid
from pellucid.errors import PellucidError

PROMPTS = (
    "Write an example of {name}.",
    "The answer, as {name}: ",
    "Here are three of {name}, all different:\n\n1. ",
    "{name}",
    "Ein Beispiel (日本語も) 😀 — {name}:\n",
)
TEMPERATURES = (0.0, 0.5, 0.8, 1.0, 1.5, 3.0, 10.0)
REPORT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="texts (10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first text; each has the next one")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=80, help="at most in a text (80)")
    given = parser.parse_args()
    llm = pellucid.load(given.model)
    counts: Counter[str] = Counter()
    by_name: dict[str, Counter[str]] = {name: Counter() for name in ALL}
    tokens, started = 0, time.monotonic()
    for number in range(given.count):
        turn, which = divmod(number, len(ALL))
        name = list(ALL)[which]
        kind, value = ALL[name]
        prompt = PROMPTS[(turn + which) % len(PROMPTS)].format(name=name.partition(": ")[2])
        options = {
            "temperature": TEMPERATURES[turn % len(TEMPERATURES)],
            "top_k": (0, 40)[number % 2],
            "seed": given.seed + number,
            "max_new_tokens": given.tokens,
        }
        try:
            run = llm.start(prompt, **{kind: value}, **options)
            streamed = "".join(piece.text for piece in run)
            made = run.result()
        except PellucidError as error:
            outcome, text = "refused", str(error)
        else:
            text, tokens = made.text, tokens + len(made.ids)
            outcome = "finished" if made.finish_reason == "stop" else "cut off"
            if streamed != text or (outcome == "finished" and not valid(kind, value, text)):
                outcome = "invalid"
        counts[outcome] += 1
        by_name[name][outcome] += 1
        if outcome in ("invalid", "refused"):
            print(f"{outcome.upper()} {name}: {text!r}\n  prompt {prompt!r}, {options}", flush=True)
        if (number + 1) % REPORT == 0 or number + 1 == given.count:
            seconds = time.monotonic() - started
            told = ", ".join(f"{counts[what]:,} {what}" for what in ("finished", "cut off", "invalid", "refused"))
            print(
                f"{number + 1:,} of {given.count:,}: {told}; {tokens / seconds:.0f} tokens/s, {seconds:.0f} s",
                flush=True,
            )
    print("cut off most often: " + ", ".join(most(by_name, "cut off")))
    llm.close()
    sys.exit(counts["invalid"] + counts["refused"] > 0)


def most(by_name: dict[str, Counter[str]], what: str) -> list[str]:
    """Constraints with the highest share of an outcome."""
    share = {name: counts[what] / max(counts.total(), 1) for name, counts in by_name.items()}
    return [f"{name} {share[name]:.0%}" for name in sorted(share, key=lambda name: -share[name])[:8]]


if __name__ == "__main__":
    main()
