"""Folders that sentence-transformers saves, with their vectors and scores: tests/goldens/model/saved/<name>/.

    python -m venv .venv-saved && .venv-saved/bin/pip install torch==2.13.0 sentence-transformers==6.3.0
    .venv-saved/bin/python tests/oracles/saved_oracle.py [NAME...]

The committed goldens were made with sentence-transformers 6.3.0, transformers 5.24.0, torch 2.13.0 (CPU) and tokenizers
0.23.3 on Python 3.11, in float32 with eager attention. <name>/ is what ``save_pretrained`` writes, but each
model.safetensors is replaced by random weights. tensors.json is their recipe (``support/drawn.py``).
sentence-transformers loads the folder again, and computes results.json:

    context   the maximum number of tokens of a text (``max_seq_length``)
    vectors   [[prompt or null, [text, …], [vector, …]], …]     SentenceTransformer.encode
    tokens    [[text, [vector, …]], …]                          MultiVectorEncoder.encode
    sparse    [[text, {token: weight}], …]                      SparseEncoder.encode
    pairs     [[first, second, score or [score, …]], …]         CrossEncoder.predict

Some texts are longer than the context, and are truncated. A folder without results.json has modules that Pellucid
refuses. Names: the family, and what the folder has.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
)
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SpladePooling
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from support.drawn import draw
from tasks_oracle import LINES, TOKENIZERS

OUT = Path(__file__).parents[1] / "goldens" / "model" / "saved"
LIMIT = 24
WIDTH = 32
TEXTS = ["a", "the module imports a name", "Émile's naïve café, in 1,000 words!", "日本 and 東京", LINES[4]]
PAIRS = [
    ("what is it?", "the debugger"),
    ("one two", "the module imports a name"),
    ("日本?", "東京 and a"),
    ("a", LINES[4]),
    (LINES[5], LINES[6]),
]
CONFIG: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert", "qwen3": "Qwen3"}
MORE: dict[str, dict[str, Any]] = {
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16},
}
PROMPTS = {"query": "find the name: ", "document": "one: ", "plain": ""}
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'query' %}<s>{{ m['content'] }}</s>"
    "{% elif m['role'] == 'document' %}{{ m['content'] }}</s>{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
BASE = Path(__file__).parents[2] / "build" / "saved-bases"


def base(family: str, head: str = "Model", backend: bool = False, template: str = "", **config: Any) -> str:
    """Write a random model of transformers with its tokenizer. Returns its folder.

    ``backend``: the tokenizer is saved without the class of the family.
    """
    folder = BASE / "-".join((family, head, *map(str, config.values()), str(backend), template[:9]))
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = TOKENIZERS["bert" if family == "bert" else "roberta"]()
    if backend or family in ("modernbert", "qwen3"):
        names = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **names)
    if template:
        tokenizer.chat_template = template
    own = {**CONFIG, **MORE.get(family, {}), **config}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    made = getattr(transformers, f"{FAMILIES[family]}Config")(vocab_size=len(tokenizer), **ids, **own)
    getattr(transformers, FAMILIES[family] + head)(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def transformer(family: str, **options: Any) -> Transformer:
    return Transformer(base(family, **options), max_seq_length=LIMIT)


def sentence(*layers: nn.Module, family: str = "bert", mode: Any = "mean", **options: Any) -> SentenceTransformer:
    backend = options.pop("backend", False)
    body = transformer(family, backend=backend)
    return SentenceTransformer(modules=[body, Pooling(WIDTH, mode), *layers], **options)


def cross(family: str = "bert", backend: bool = False, labels: int = 1, **options: Any) -> CrossEncoder:
    path = base(family, "ForSequenceClassification", backend, num_labels=labels)
    return CrossEncoder(path, max_length=LIMIT, **options)


def with_scores(labels: int, **options: Any) -> CrossEncoder:
    """A cross-encoder whose head is made of modules."""
    head = Dense(WIDTH, labels, activation_function=nn.Identity(), module_output_name="scores")
    middle = Dense(WIDTH, WIDTH, activation_function=nn.GELU())
    return CrossEncoder(modules=[transformer("bert"), Pooling(WIDTH, "cls"), middle, head], **options)


def logits_of(words: tuple[int, int | None], template: str = TEMPLATE, **options: Any) -> CrossEncoder:
    """A reranker made of a language model."""
    path = base("qwen3", "ForCausalLM", template=template)
    body = Transformer(path, transformer_task="text-generation", max_seq_length=64)
    return CrossEncoder(modules=[body, LogitScore(*words)], **options)


def sparse(**options: Any) -> SparseEncoder:
    keep = options.pop("max_active_dims", None)
    body = Transformer(base("bert", "ForMaskedLM"), transformer_task="fill-mask", max_seq_length=LIMIT)
    return SparseEncoder(modules=[body, SpladePooling(**options)], max_active_dims=keep)


def tokens(*words: str) -> MultiVectorEncoder:
    """A model with a vector for each token. Documents have no vectors of ``words``."""
    dense = Dense(WIDTH, 16, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings")
    modules = [transformer("bert"), dense, MultiVectorMask([*words])]
    return MultiVectorEncoder(modules=modules, prompts=PROMPTS)


def routed() -> SentenceTransformer:
    routes = {"query_modules": [transformer("bert"), Pooling(WIDTH)]}
    routes["document_modules"] = [transformer("bert"), Pooling(WIDTH, "cls")]
    return SentenceTransformer(modules=[Router.for_query_document(**routes)])


def static() -> SentenceTransformer:
    tokenizer = TOKENIZERS["bert"]()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])


def auto_encoder() -> SparseEncoder:
    modules = [transformer("bert"), Pooling(WIDTH), SparseAutoEncoder(WIDTH, 64, k=8)]
    return SparseEncoder(modules=modules)


FOLDERS: dict[str, Callable[[], Any]] = {
    "bert-mean": lambda: sentence(Normalize()),
    "bert-cls": lambda: sentence(mode="cls"),
    "bert-max": lambda: sentence(mode="max"),
    "bert-mean-sqrt": lambda: sentence(mode="mean_sqrt_len_tokens"),
    "bert-weighted": lambda: sentence(mode="weightedmean"),
    "bert-last": lambda: sentence(mode="lasttoken"),
    "bert-listed": lambda: sentence(mode=["cls"]),
    "bert-backend": lambda: sentence(Normalize(), backend=True),
    "roberta-mean": lambda: sentence(Normalize(), family="roberta"),
    "modernbert-mean": lambda: sentence(Normalize(), family="modernbert"),
    "qwen3-last": lambda: sentence(Normalize(), family="qwen3", mode="lasttoken"),
    "bert-dense": lambda: sentence(
        Dense(WIDTH, 24), Dense(24, 40, bias=False, activation_function=nn.GELU()), Normalize()
    ),
    "bert-norm": lambda: sentence(LayerNorm(WIDTH), Dense(WIDTH, 16, activation_function=nn.Identity())),
    "bert-prompts": lambda: sentence(Normalize(), prompts=PROMPTS, default_prompt_name="query"),
    "bert-truncated": lambda: sentence(Normalize(), truncate_dim=12),
    "bert-truncated-plain": lambda: sentence(truncate_dim=12, similarity_fn_name="dot"),
    "bert-rank": cross,
    "bert-rank-backend": lambda: cross(backend=True),
    "bert-rank-identity": lambda: cross(activation_fn=nn.Identity()),
    "bert-rank-prompts": lambda: cross(prompts=PROMPTS, default_prompt_name="query"),
    "roberta-rank": lambda: cross("roberta"),
    "modernbert-rank": lambda: cross("modernbert"),
    "qwen3-rank": lambda: cross("qwen3"),
    "bert-labels": lambda: cross(labels=3),
    "bert-labels-sigmoid": lambda: cross(labels=3, activation_fn=nn.Sigmoid()),
    "bert-labels-softmax": lambda: cross(labels=3, activation_fn=nn.Softmax(dim=1)),
    "bert-rank-modules": lambda: with_scores(1),
    "bert-labels-modules": lambda: with_scores(3),
    "qwen3-words": lambda: logits_of((40, 50)),
    "qwen3-words-identity": lambda: logits_of((40, 50), activation_fn=nn.Identity()),
    "qwen3-word": lambda: logits_of((40, None)),
    "qwen3-words-plain": lambda: logits_of((40, 50), template=""),
    "bert-sparse": sparse,
    "bert-sparse-active": lambda: sparse(max_active_dims=10),
    "bert-tokens": tokens,
    "bert-residual": lambda: sentence(Dense(WIDTH, WIDTH, use_residual=True)),
    "bert-joined": lambda: sentence(mode=["cls", "mean"]),
    "bert-sparse-sum": lambda: sparse(pooling_strategy="sum"),
    "bert-sparse-log": lambda: sparse(activation_function="log1p_relu"),
    "bert-tokens-words": lambda: tokens("the", "and"),
    "bert-router": routed,
    "bert-auto-encoder": auto_encoder,
    "static": static,
}
REFUSED = [*FOLDERS][[*FOLDERS].index("bert-residual") :]


def save(name: str) -> Path:
    """Save the folder ``name``, and put random weights into it."""
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    FOLDERS[name]().save_pretrained(str(folder), create_model_card=False)
    for path in folder.rglob("*.safetensors"):
        tensors = {key: list(x.shape) for key, x in load_file(path).items()}
        seed = f"{name}-{path.parent.name}"
        save_file(draw(tensors, seed), path, metadata={"format": "pt"})
        recipe = {"seed": seed, "offset": 1.0, "tensors": tensors}
        (path.parent / "tensors.json").write_text(json.dumps(recipe) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def results(folder: Path) -> dict[str, Any]:
    kind = json.loads((folder / "config_sentence_transformers.json").read_text())["model_type"]
    options: dict[str, Any] = {"model_kwargs": {"attn_implementation": "eager", "dtype": torch.float32}}
    if kind == "CrossEncoder":
        model = CrossEncoder(str(folder), **options)
        scores = model.predict(PAIRS, batch_size=1).tolist()
        found: dict[str, Any] = {"pairs": [[*pair, score] for pair, score in zip(PAIRS, scores)]}
    elif kind == "SparseEncoder":
        model = SparseEncoder(str(folder), **options)
        found = {"sparse": []}
        for text in TEXTS:
            row = model.encode([text]).to_dense()[0]
            weights = {int(at): float(row[at]) for at in row.nonzero()[:, 0]}
            found["sparse"].append([text, weights])
    elif kind == "MultiVectorEncoder":
        model = MultiVectorEncoder(str(folder), **options)
        rows = [model.encode([text])[0].tolist() for text in TEXTS[1:3]]
        found = {"tokens": [[text, own] for text, own in zip(TEXTS[1:3], rows)]}
    else:
        model = SentenceTransformer(str(folder), **options)
        prompts = [None, *(name for name, text in model.prompts.items() if text)]
        found = {"vectors": []}
        for prompt in prompts:
            vectors = model.encode(TEXTS, prompt_name=prompt, batch_size=1).tolist()
            found["vectors"].append([prompt, TEXTS, vectors])
    return {"context": model.max_seq_length, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these folders")
    names = parser.parse_args().names or [*FOLDERS]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in names:
        folder = save(name)
        if name not in REFUSED:
            found = json.loads(json.dumps(results(folder)), parse_float=lambda one: round(float(one), 6))
            (folder / "results.json").write_text(json.dumps(found, ensure_ascii=False) + "\n")
        for path in folder.rglob("*.safetensors"):  # tests draw the weights again
            path.unlink()
        print(name, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), "bytes")
    shutil.rmtree(BASE)


if __name__ == "__main__":
    main()
