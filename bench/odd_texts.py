"""Cosines of an encoder's vectors to those of ``precise=True``, on single words of many scripts and on odd texts.

    python bench/odd_texts.py [MODEL] [--json]

The texts are drawn with a fixed seed: words of random letters in 14 scripts, common words, digits, emoji, repeated
characters, punctuation, very long words and mixtures. For each kind: the number of texts, the least cosine, the first
percentile and the mean, and the worst text.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pellucid

SCRIPTS = {
    "Latin": (0x61, 0x7A), "Latin with accents": (0xE0, 0xFF), "Vietnamese": (0x1EA0, 0x1EF9),
    "Greek": (0x3B1, 0x3C9), "Cyrillic": (0x430, 0x44F), "Armenian": (0x561, 0x586), "Hebrew": (0x5D0, 0x5EA),
    "Arabic": (0x627, 0x64A), "Devanagari": (0x905, 0x939), "Thai": (0xE01, 0xE2E), "Georgian": (0x10D0, 0x10F0),
    "Hangul": (0xAC00, 0xD7A3), "Kana": (0x3041, 0x3096), "Han": (0x4E00, 0x9FA5),
}  # fmt: skip
COMMON = (
    "a the of cat dog house water war love thanh nguyen berlin paris tokyo monday seven red running "
    "quickly beautiful python kernel protein inflation enzyme guitar pizza soccer lawyer covid "
    "bitcoin ocean volcano whale violin yes no hello thanks sorry ok error null true false test foo "
    "bar http www com id x y z I we they"
)
EMOJI = [chr(code) for code in (*range(0x1F600, 0x1F64F), *range(0x1F300, 0x1F320), 0x2764, 0x1F680)]
MARKS = ".,;:!?-_+*/=#@&%$()[]{}<>|~^\"'`\\"


def texts(each: int = 200) -> dict[str, list[str]]:
    """The texts of each kind."""
    draw = random.Random(0)

    def word(script: str) -> str:
        low, high = SCRIPTS[script]
        return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 9)))

    names = list(SCRIPTS)
    return {
        **{f"a word, {name}": [word(name) for _ in range(each)] for name in names},
        "a common word": COMMON.split(),
        "digits": [str(draw.randrange(10 ** draw.randint(1, 12))) for _ in range(each)],
        "emoji": ["".join(draw.choices(EMOJI, k=draw.randint(1, 4))) for _ in range(each)],
        "marks": ["".join(draw.choices(MARKS, k=draw.randint(1, 6))) for _ in range(each)],
        "a repeated character": [draw.choice("aeox0.é字ж") * draw.randint(2, 120) for _ in range(each)],
        "a long word": ["".join(draw.choices("abcdefghij", k=draw.randint(30, 90))) for _ in range(each)],
        "words of several scripts": [
            " ".join(word(name) for name in draw.sample(names, draw.randint(2, 5))) for _ in range(each)
        ],
    }


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosines of the rows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)))


def summary(name: str, texts: Sequence[str], found: NDArray[np.float64]) -> dict[str, Any]:
    """The row of a kind."""
    return {
        "texts": name,
        "count": len(texts),
        "least": round(float(found.min()), 5),
        "percentile_1": round(float(np.percentile(found, 1)), 5),
        "mean": round(float(found.mean()), 6),
        "worst": texts[int(found.argmin())][:20],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="minilm")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    kinds = texts()
    every = [text for of_kind in kinds.values() for text in of_kind]
    vectors = []
    for precise in (False, True):
        with pellucid.load(arguments.model, precise=precise) as llm:
            vectors.append(llm.embed(every, truncate=True))
    found, rows, start = cosines(*vectors), [], 0
    for name, of_kind in kinds.items():
        rows.append(summary(name, of_kind, found[start : start + len(of_kind)]))
        start += len(of_kind)
    rows.append(summary("all", every, found))
    if arguments.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        print(
            "{texts:26} {count:6,} least {least:.5f}  1% {percentile_1:.5f}  mean {mean:.6f}  {worst!r}".format(**row)
        )


if __name__ == "__main__":
    main()
