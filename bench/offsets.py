"""Decoding, and encoding with offsets, beside tokenizers on the same texts and vocabularies, alternating.

    python bench/offsets.py [--rounds N] [--only NAME ...]    (part of make bench-encode; needs pellucid[oracles])

Decoding: nanoseconds for each id of an English text, all at once. Offsets: seconds for a long text, of English and of
kinds that are hard for one stage or another, in one call that returns ids and offsets. One thread; medians of the
rounds; the ratio is Pellucid's time to that of ``tokenizers``.
"""

from __future__ import annotations

import os

os.environ["RAYON_NUM_THREADS"] = "1"  # read when tokenizers is imported

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from encode import VOCABULARIES
from tokenizers import Tokenizer

from pellucid.tokenize import load_tokenizer
from pellucid.weights.store import resolve

PROSE = "".join(path.read_text() for path in sorted((Path(__file__).parents[1] / "docs").glob("*.md")))
LONG = 200_000  # characters
TEXTS = {
    "English": PROSE * 4,
    "letters with marks, ligatures, pictures": "".join(
        chr(0x3040 + n % 90) + "é" * (n % 3) + " ﬁ½" + chr(0x1F600 + n % 60) for n in range(LONG // 6)
    ),
    "Japanese": "漢字仮名交じり文" * (LONG // 8),
    "marks in the wrong order": "e\u0301\u0323" * (LONG // 3),
    "spaces": " " * LONG,
    "one letter": "a" * LONG,
}


def alternating(rounds: int, *works: Callable[[], object]) -> list[float]:
    """The median seconds of each."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for taken, work in zip(seconds, works):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def both(ours: Any, theirs: Any, text: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """What encodes a text with offsets."""

    def here() -> object:
        found = ours.encode_with_offsets(text, add_special=False, parse_special=True)  # as theirs
        return found.ids, found.offsets

    def there() -> object:
        found = theirs.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    if here() != there():
        print("  they differ")
    return here, there


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    paths = {**VOCABULARIES, "minilm": resolve("minilm") / "tokenizer.json"}
    for name, path in paths.items():
        if path.suffix != ".json" or not path.is_file() or (given.only and name not in given.only):
            continue
        ours, theirs = load_tokenizer(path), Tokenizer.from_file(str(path))
        theirs.no_truncation()
        theirs.no_padding()
        assert ours._compiled is not None  # switches to the compiled encoder
        ids = ours.encode(PROSE, add_special=False)
        one, other = alternating(given.rounds, lambda: ours.decode(ids), lambda: theirs.decode(ids))  # noqa: B023
        here, there = (1e9 * seconds / len(ids) for seconds in (one, other))
        print(f"{name}: decoding {here:.0f} and {there:.0f} ns an id (x{one / other:.2f})")
        for kind, text in TEXTS.items():
            one, other = alternating(given.rounds, *both(ours, theirs, text))
            print(f"  offsets of {kind}: {one:.3f} and {other:.3f} s (x{one / other:.2f})", flush=True)


if __name__ == "__main__":
    main()
