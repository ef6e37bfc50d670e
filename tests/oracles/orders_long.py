"""Orders of documents for 200 queries equal the orders of transformers in float32, with --precise and by default.

    python tests/oracles/orders_long.py [--queries 200]

Two models rank 12 documents for each query: a random cross-encoder (BERT, 4 layers, with the vocabulary of
all-MiniLM-L6-v2), and all-MiniLM-L6-v2 by the cosine of its vectors. Queries and documents are parts of ``text.txt``.
With --precise every order must be equal. By default, documents with nearly the same score change places: the script
prints in how many orders, and the largest difference of two such scores in float32, as a part of the range of a query's
scores. The weights of the cross-encoder are random, so that its scores depend much more on small differences than the
scores of a trained model.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification

import pellucid
from pellucid.weights.store import resolve

DOCUMENTS = 12
Scores = NDArray[np.float64]
Score = Callable[[str, Sequence[str]], Scores]


def questions(count: int) -> list[tuple[str, list[str]]]:
    """Queries of 5 to 12 words, each with DOCUMENTS documents of 20 to 120 words."""
    words, draw = (Path(__file__).parent / "text.txt").read_text("utf-8").split(), random.Random(7)

    def part(least: int, most: int) -> str:
        length = draw.randint(least, most)
        first = draw.randrange(len(words) - length)
        return " ".join(words[first : first + length])

    return [(part(5, 12), [part(20, 120) for _ in range(DOCUMENTS)]) for _ in range(count)]


def cross_encoder(minilm: Path, folder: Path) -> Score:
    """Write a random cross-encoder with the tokenizer of MiniLM. Returns its scores in float32."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=512, initializer_range=0.2, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(3)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)

    def scores(query: str, documents: Sequence[str]) -> Scores:
        pairs = [query] * len(documents), list(documents)
        inputs = tokenizer(*pairs, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            return np.asarray(torch.sigmoid(model(**inputs).logits[:, 0].double()))

    return scores


def by_cosine(minilm: Path) -> Score:
    """The cosines of MiniLM's vectors in float32."""
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()

    def vector(text: str) -> Scores:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = model(**inputs).last_hidden_state[0].double().mean(0)
        return np.asarray(mean / mean.norm())

    def scores(query: str, documents: Sequence[str]) -> Scores:
        return np.stack([vector(text) for text in documents]) @ vector(query)

    return scores


def differing(found: Sequence[int], scores: Scores) -> float:
    """The largest difference of two scores that ``found`` has in the wrong order, as a part of the scores' range."""
    ordered = scores[list(found)]
    wrong = ordered[None, :] - ordered[:, None]  # of a later and an earlier document
    return float(np.triu(wrong, 1).max() / np.ptp(scores))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--queries", type=int, default=200)
    asked, minilm = questions(options.parse_args().queries), resolve("minilm")
    failed = False
    with TemporaryDirectory() as folder:
        models = {"cross-encoder": (Path(folder), cross_encoder(minilm, Path(folder)))}
        models["all-MiniLM-L6-v2"] = (minilm, by_cosine(minilm))
        for name, (path, score) in models.items():
            wanted = [score(query, documents) for query, documents in asked]
            for precise in (True, False):
                with pellucid.load(path, precise=precise) as llm:
                    orders = [
                        [result.index for result in llm.rerank(query, documents, truncate=True)]
                        for query, documents in asked
                    ]
                wrong = [differing(order, scores) for order, scores in zip(orders, wanted)]
                count, worst = sum(one > 0 for one in wrong), max(wrong)
                failed |= precise and count > 0
                how = "precise" if precise else "default"
                print(f"{name}, {how}: {count} of {len(asked)} orders differ, by {max(worst, 0):.4f} of the range")
    sys.exit(failed)


if __name__ == "__main__":
    main()
