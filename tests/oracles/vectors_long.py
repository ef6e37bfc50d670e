"""Vectors of 1,000 texts in ten scripts equal the vectors of sentence-transformers, with all prompts of a model.

    python tests/oracles/vectors_long.py [MODEL...]     # default: minilm mpnet; also folders of sentence-transformers

The texts are translations of Django (``tokenizers_long.py`` downloads them with pip), 100 for each script: single
messages, some of four, a few of forty. Texts take the prompts of the model in turn, if it has prompts.

For each model: the largest difference of a number with --precise, which must be below 1e-5; by default the mean and the
least cosine, and the number of texts with a cosine below 0.999, which must be at most 2 (decision 52).

Needs ``pip install pellucid[oracles] sentence-transformers``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tokenizers_long import translations

import pellucid
from pellucid.weights.store import resolve

LANGUAGES = ("de", "ru", "el", "ar", "he", "hi", "th", "zh_Hans", "ja", "ko")  # a script each
TEXTS, LENGTHS = 100, (80, 97)  # texts of a language; numbers of the first text of 4 and of 40 messages
CLOSE, LIKE, UNLIKE = 1e-5, 0.999, 2
Vectors = NDArray[np.float64]


def texts() -> list[str]:
    """The texts of all languages, in one order for all runs."""
    draw, found = random.Random(1), translations()
    made = []
    for language in LANGUAGES:
        lines = (line.strip() for text in found[f"mo_{language}"] for line in text.splitlines())
        messages = sorted({line for line in lines if len(line) > 12})
        for number in range(TEXTS):
            count = 1 + 3 * (number >= LENGTHS[0]) + 36 * (number >= LENGTHS[1])
            made.append(" ".join(draw.sample(messages, count)))
    return made


def wanted(model: SentenceTransformer, given: Sequence[str], prompts: Sequence[str]) -> Vectors:
    """The vectors of sentence-transformers in float32. Texts of about the same length share a batch."""
    out = np.zeros((len(given), model.get_sentence_embedding_dimension()))
    for prompt in sorted(set(prompts)):
        own = [number for number, name in enumerate(prompts) if name == prompt]
        made = model.encode([given[number] for number in own], prompt_name=prompt or None, batch_size=16)
        out[own] = made
    return out


def found(path: Path, given: Sequence[str], prompts: Sequence[str], precise: bool) -> Vectors:
    """The vectors of Pellucid."""
    out: list[NDArray[np.float32] | None] = [None] * len(given)
    with pellucid.load(path, precise=precise) as llm:
        for prompt in sorted(set(prompts)):
            own = [number for number, name in enumerate(prompts) if name == prompt]
            made = llm.embed([given[number] for number in own], prompt=prompt, truncate=True)
            for number, vector in zip(own, made):
                out[number] = vector
    return np.array(out, np.float64)


def main() -> None:
    given, failed = texts(), False
    for name in sys.argv[1:] or ("minilm", "mpnet"):
        path = Path(name) if Path(name).is_dir() else resolve(name)
        model = SentenceTransformer(str(path), device="cpu")
        names = [prompt for prompt, text in model.prompts.items() if text] or [""]
        prompts = [names[number % len(names)] for number in range(len(given))]
        want = wanted(model, given, prompts)
        difference = np.abs(found(path, given, prompts, precise=True) - want).max()
        coarse = found(path, given, prompts, precise=False)
        cosines = (coarse * want).sum(1) / np.linalg.norm(coarse, axis=1) / np.linalg.norm(want, axis=1)
        unlike = int((cosines < LIKE).sum())
        failed |= bool(difference > CLOSE or unlike > UNLIKE)
        print(
            f"{name}: {len(given):,} texts, {len(names)} prompts; precise: largest difference {difference:.1e}; "
            f"default: cosine {cosines.mean():.6f}, least {cosines.min():.6f}, {unlike} below {LIKE}"
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
