"""Decoding, and encoding with offsets, beside tokenizers on the same texts and vocabularies, alternating.

    python bench/offsets.py [--rounds N] [--only NAME ...]    (part of make bench-encode; needs pellucid[oracles])

Decoding: nanoseconds per id of an English text, in one call. Offsets: seconds for a long text in one call that returns
ids and offsets, for English and for texts that are hard for one of the stages. One thread; medians of the rounds. The
ratio is Pellucid's time divided by the time of ``tokenizers``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from encode import alternating, given, hugging_face

from pellucid.tokenize import load_tokenizer

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


def both(ours: Any, theirs: Any, text: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """The two functions that encode a text with offsets: Pellucid's, and the function of ``tokenizers``."""

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
    rounds, paths = given(__doc__ or "")
    for name, path in paths.items():
        if path.suffix != ".json":
            continue
        ours, theirs = load_tokenizer(path), hugging_face(path)
        assert ours._compiled is not None  # switches to the compiled encoder
        ids = ours.encode(PROSE, add_special=False)
        one, other = alternating(rounds, [partial(one.decode, ids) for one in (ours, theirs)])
        here, there = (1e9 * seconds / len(ids) for seconds in (one, other))
        print(f"{name}: decoding {here:.0f} and {there:.0f} ns an id (x{one / other:.2f})")
        for kind, text in TEXTS.items():
            one, other = alternating(rounds, both(ours, theirs, text))
            print(f"  offsets of {kind}: {one:.3f} and {other:.3f} s (x{one / other:.2f})", flush=True)


if __name__ == "__main__":
    main()
