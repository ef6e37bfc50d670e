"""The output of a model: what follows the last block.

    rows (T, D) → final norm → pooling → output layers → head

A language model has only a head. A sentence encoder has pooling, and may have output layers. A classifier has pooling
and output layers. A masked language model has output layers and a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Task = Literal["generate", "embed", "sparse", "tokens", "classify", "tag", "answer", "fill", "decide"]
"""The meaning of a model's outputs:

- "generate": logits of the next token
- "embed": a sentence vector
- "sparse": a weight for each token of the vocabulary (Formal et al. 2021, SPLADE)
- "tokens": a vector for each token of a text, for late interaction (Khattab and Zaharia 2020, ColBERT)
- "classify": a score for each label of a text or a pair of texts; a cross-encoder has one label, the relevance
- "tag": a score for each label of each token
- "answer": for each token, the scores that an answer begins and that it ends there
- "fill": logits of the token at a mask
- "decide": a score for each option of each question
"""
OutputActivation = Literal["", "tanh", "gelu", "gelu_tanh", "relu", "silu"]
HiddenActivation = Literal["gelu", "gelu_tanh", "relu", "silu"]
"""Activation functions of both the feed-forwards of encoders and their output layers."""
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
"""The similarity of two sentence vectors: their cosine, their product, or their distance times -1."""
Scale = Literal["softmax", "sigmoid", "none"]
PoolingKind = Literal["mean", "cls", "last", "max", "weighted", "mean_sqrt"]


TWO_SIDED = ("gemma-embedding", "llama-embed")
"""Architectures in GGUF of decoders whose tokens see later tokens."""


class Head(Struct, frozen=True):
    """The projection to the vocabulary. ``tied``: its matrix is the embedding.

    Logits are multiplied by ``scale`` and then capped by ``softcap`` (0: not capped).
    """

    tied: bool
    softcap: float = 0.0
    bias: bool = False
    scale: float = 1.0
    labels: int = 0
    """Number of columns of a decision model's head, which scores labels instead of tokens; 0: the vocabulary."""


class Pooling(Struct, frozen=True):
    """Pooling of the rows of a sequence into one row.

    - "mean": the mean; "mean_sqrt": the sum, divided by the square root of the number of rows
    - "weighted": the weighted mean, with weight n for the n-th row (Muennighoff 2022, SGPT)
    - "max": the largest value of each column
    - "cls": the first row; "last": the last row

    ``of_logits``: not the rows but the logits are pooled, each replaced by log(1 + max(x, 0)) (SPLADE). ``late``: the
    output layers run on every row, and their results are pooled (EuroBERT). ``padding`` is a token that is not counted
    as a last token (None: all tokens count): classifiers of transformers read the last token that is not padding.
    """

    kind: PoolingKind = "mean"
    of_logits: bool = False
    late: bool = False
    padding: int | None = None

    @property
    def picks(self) -> bool:
        """True if the result is one of the rows."""
        return self.kind in ("cls", "last")


class Dense(Struct, frozen=True):
    """An output layer: f(W x + b), with ``width`` columns. ``activation`` is f ("": none)."""

    width: int
    activation: OutputActivation = ""
    bias: bool = True


class UnitLength(Struct, frozen=True):
    """An output layer that scales a row to length 1."""


class Labels(Struct, frozen=True):
    """The labels of a classifier. ``scale`` says how logits become scores.

    - "softmax": probabilities of labels that exclude each other
    - "sigmoid": an independent probability for each label
    - "none": the logits are the scores (a regression)

    ``relevant`` is the number of the label "relevant" of a reranker with several labels, such as "yes" and "no". With
    the scale "none", the score of a reranker's two words is the difference of their logits.
    """

    names: tuple[str, ...]
    scale: Scale = "softmax"
    relevant: int | None = None

    @property
    def relevance(self) -> int | None:
        """The number of the label whose score is the relevance of a document to a query. None: no label is."""
        return 0 if self.relevant is None and len(self.names) == 1 else self.relevant


class PairPrompt(Struct, frozen=True):
    """The prompt of a reranker: how a decoder reads a query and a document together.

    ``template`` has the places {query} and {document}, and may have the place {instruction}. If it is "", the chat
    template renders messages with the roles "query" and "document", after a message with the role "system" that holds
    the instruction; ``generation_prompt`` is the template's variable ``add_generation_prompt``. ``instruction`` is the
    default of the instruction ("": none).
    """

    template: str = ""
    instruction: str = ""
    generation_prompt: bool = False


# Scores of labels, from the logits of a classifier.


def scores_of(labels: Labels, logits: NDArray[np.float32]) -> list[float]:
    """The scores (N,) of logits (N,)."""
    from pellucid.util.probabilities import sigmoid, softmax  # imports NumPy

    if labels.scale == "none":
        of_words = labels.relevant is not None and len(logits) == 2
        return list(map(float, logits - logits[::-1] if of_words else logits))
    return list(map(float, (softmax if labels.scale == "softmax" else sigmoid)(logits)))
