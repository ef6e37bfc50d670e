"""Rerankers made of language models: the relevance of a document is the probability of a word such as "yes".

The head of the reranker has one row or two rows of the projection to the vocabulary: the logit of the word for
"relevant", and the logit of the word for "not relevant". The words and the prompt are in the module LogitScore of
sentence-transformers, or published with the model (``RERANKERS``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import UnsupportedModel, shown
from pellucid.model.config import Config
from pellucid.model.output_heads import OutputParts
from pellucid.model.outputs import Dense, Labels, PairPrompt, Pooling
from pellucid.model.sentence_modules import read_prompts, transformer_settings, with_settings
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json

PLACES = ("{query}", "{document}")
"""The places of a template in GGUF, as llama.cpp fills them."""
INSTRUCT = re.compile(r"(?<=<Instruct>: )[^\n{}]+(?=\n)")
"""The instruction in the template of Qwen3-Reranker, which llama.cpp writes with the default instruction."""


class Reranker(Struct, frozen=True):
    """A published reranker: its words and its prompt.

    ``words`` are the token for "relevant" and, if the model has one, the token for "not relevant". ``classifies``:
    classifiers of this type with one label read the same prompt.
    """

    words: tuple[str, ...]
    prompt: PairPrompt
    classifies: bool = False


QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\ninstruction: {instruction}\nquery: {query}\ndocument: {document}\n"
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 "
    "for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
)
BGE = "A: {query}\nB: {document}\n{instruction}"
RERANKERS: Mapping[str, Reranker] = {
    "qwen3": Reranker(
        ("yes", "no"),
        PairPrompt(QWEN3, "Given a web search query, retrieve relevant passages that answer the query"),
        classifies=True,
    ),
    "qwen2": Reranker(("1", "0"), PairPrompt(MXBAI)),
    "gemma": Reranker(
        ("Yes",),
        PairPrompt(
            BGE,
            "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
            "providing a prediction of either 'Yes' or 'No'.",
        ),
    ),
    "llama_bidirec": Reranker((), PairPrompt("question:{query} \n \n passage:{document}"), classifies=True),
}
"""Published rerankers by ``model_type``: Qwen3-Reranker (https://huggingface.co/Qwen/Qwen3-Reranker-0.6B), mxbai-rerank
v2 (PyPI mxbai-rerank 0.1.6), bge-reranker-v2-gemma (PyPI FlagEmbedding 1.4.2), llama-nemotron-rerank (a classifier).
"""


def published_reranker(config: Config, model: Model, model_type: str) -> OutputParts:
    """The outputs of a language model that is used as the published reranker of its ``model_type``.

    Raises:
        UnsupportedModel: no reranker of this type is published, or the vocabulary lacks its words.
    """
    known = {name: reranker for name, reranker in RERANKERS.items() if reranker.words}
    if model_type not in known:
        raise UnsupportedModel(
            f"{config.path.name}: task=classify: the file has no head for it, and no reranker of the type "
            f"{shown(model_type)} is known (known: {', '.join(known)})"
        )
    words = known[model_type].words
    ids = [config.token_id(word) for word in words]
    for word, token in zip(words, ids):
        if token is None:
            raise UnsupportedModel(
                f"{config.path.name}: task=classify: the vocabulary has no token {shown(word)}, which a reranker of "
                f"the type {shown(model_type)} needs"
            )
    return word_head(config, model, words, [token for token in ids if token is not None], known[model_type].prompt)


def prompt_of_classifier(model_type: str, labels: Labels | None) -> PairPrompt | None:
    """The prompt of a classifier that is a reranker by its type and its only label; None: it reads plain pairs."""
    reranker = RERANKERS.get(model_type)
    ranks = reranker is not None and reranker.classifies and labels is not None and labels.relevance is not None
    return reranker.prompt if reranker is not None and ranks else None


def logit_score(checkpoint: Checkpoint, config: Config, model: Model, folder: str) -> OutputParts:
    """The outputs that the module LogitScore in ``folder`` describes: the logits of one token or two tokens.

    Raises:
        UnsupportedModel: the head of the model has a scale or a soft-cap.
        FileFormatError: a file is damaged, or a token is outside the vocabulary.
    """
    path = checkpoint.path / folder / "config.json"
    own = Config(read_json(path), path)
    own.refuse("module_input_name", "causal_logits")
    ids = [own.token(key, model.spec.embedding.vocabulary) for key in ("true_token_id", "false_token_id")]
    if ids[0] is None:
        raise own.error("true_token_id", "missing; it must be a token id")
    names = [f"token {token}" for token in ids if token is not None]
    parts = word_head(config, model, names, [token for token in ids if token is not None], pair_settings(checkpoint))
    return with_settings(checkpoint, config, parts)


def pair_settings(checkpoint: Checkpoint) -> PairPrompt:
    """The prompt of a cross-encoder of sentence-transformers: its default instruction, for its chat template."""
    options = transformer_settings(checkpoint).table("processing_kwargs").table("chat_template")
    return PairPrompt(
        instruction=dict(read_prompts(checkpoint)).get("", ""),
        generation_prompt=options.flag("add_generation_prompt", False),
    )


def word_head(
    config: Config, model: Model, names: Sequence[str], ids: Sequence[int], prompt: PairPrompt
) -> OutputParts:
    """The outputs whose logits are rows ``ids`` of the projection to the vocabulary; the first is "relevant".

    The score is the probability of the first word: a softmax over two words, or the sigmoid of a word without a second.

    Raises:
        UnsupportedModel: the logits of the head are scaled, capped or have a bias.
    """
    head = model.spec.head
    if head is None or head.scale != 1 or head.softcap or head.bias:
        raise UnsupportedModel(
            f"{config.path.name}: a reranker whose logits are scaled, capped or biased is not supported"
        )
    (source,) = model.sources("embed.weight" if head.tied else "project.weight")
    rows = tuple(replace(source, rows=(token, token + 1)) for token in ids)
    return OutputParts(
        "classify",
        Pooling("last"),
        (Dense(len(ids), bias=False),),
        {"output.0.weight": rows},
        labels=Labels(tuple(names), "softmax" if len(ids) > 1 else "sigmoid", relevant=0),
        pair_prompt=prompt,
    )


def gguf_prompt(config: Config, architecture: str, labels: Labels) -> PairPrompt | None:
    """The prompt of a reranker in GGUF: its template "rerank", or the published prompt of its architecture.

    Raises:
        FileFormatError: the template lacks the place of the query or of the document.
    """
    key = "tokenizer.chat_template.rerank"
    if not config.has(key):
        return prompt_of_classifier(architecture.removesuffix("vl"), labels)
    template = config.text(key)
    if missing := [place for place in PLACES if place not in template]:
        raise config.error(key, f"has no {missing[0]}")
    found = INSTRUCT.search(template)
    if found is None:
        return PairPrompt(template)
    return PairPrompt(INSTRUCT.sub("{instruction}", template, count=1), found[0])
