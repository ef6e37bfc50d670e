"""Golden results of the tasks of encoders: tests/goldens/model/tasks/<name>/.

    python tests/oracles/tasks_oracle.py [NAME...]

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU) and tokenizers 0.23.3 on Python 3.11, in
float32 with eager attention. <name>/ is a tiny encoder with random weights (config.json, tensors.json: see
``encoders_oracle.py``) and a tokenizer of about 128 (WordPiece), 320 (byte-level BPE) or 300 tokens (Unigram), with
results.json:

    classify  [[text or [first, second], {label: score}], …]         pipeline "text-classification"
    rank      [[query, [document, …], [score, …]], …]                the model's sigmoid for each pair
    fill      [[text, [[[token, text, probability, filled], …], …]], …]   pipeline "fill-mask", the 5 best for each mask
    tag       [[text, {grouping: [[label, score, start, end], …]}], …]    pipeline "token-classification"
    answer    [[question, text, unanswerable, [[score, start, end], …]], …]   the 3 best spans of tokens

transformers 5 has no pipeline for answers. ``answers`` follows the pipeline of transformers 4 with
``align_to_words=False``: a softmax over the tokens of the text and the first token, the product of the ends'
probabilities, at most 15 tokens, windows that overlap. A span in two windows counts with its higher score; the
pipeline adds both, and the scores of other spans with the same text. For the other texts of the goldens, the spans and
scores are those of the pipeline of transformers 4.57.6.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import draw

HERE = Path(__file__).parent
OUT = HERE.parent / "goldens" / "model" / "tasks"
LINES = [line for line in (HERE / "text.txt").read_text().split("\n") if line.strip()]
TEXTS = [
    "a", "the module imports a name", "The Debugger stops at Once.", "Émile's naïve café, in 1,000 words!",
    "日本 and 東京", "мир and мiр", "\U0001f600 a smile \U0001f44d\U0001f3fd", "  two  spaces  ", "x=y(z)[0];",
    "internationalization of characterizations", "@-,.?", "ﬁnal ½ … “quotes”", "tab\tand\nline", "e\u0301 combined",
    "שלום and سلام", "नमस्ते", "import re, os", "Hello World Of Names", "zzzzzzzzzzzzzzzzzzzz", "one-two-three",
    "don't stop", "ÀÉÎ", "a\u00a0b\u200dc",
]  # fmt: skip
PAIRS = [["what is it?", "the debugger"], ["a", "b"], ["日本", "東京 and a"], ["one two", "one  two"]]
QUERIES = ["which module imports a name?", "日本", "stop"]
MASKED = [
    "the {m} imports a name", "{m}", "a {m} and a {m}.", "{m} stops", "one-{m}-two", "the  {m}  end", "日本 {m}",
    "({m})", "Émile's {m}, in 1,000",
]  # fmt: skip
QUESTIONS = [("what stops?", text) for text in TEXTS if len(text) > 4] + [
    ("Who is it?", " ".join(LINES[4:8])[:400]),
    ("日本?", " ".join(LINES[20:30])[:600]),
    ("a", "one two three four five six seven eight nine ten"),
]
GROUPINGS = ("none", "simple", "first", "average", "max")
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LABELS: dict[str, dict[str, Any]] = {
    "classify": {"num_labels": 3},
    "many": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "rank": {"num_labels": 1},
    "tag": {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}},
    "fill": {},
    "answer": {},
}
CLASSES = {
    "classify": "ForSequenceClassification",
    "many": "ForSequenceClassification",
    "rank": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "fill": "ForMaskedLM",
    "answer": "ForQuestionAnswering",
}
FAMILIES = {"bert": "Bert", "roberta": "Roberta", "xlm": "XLMRoberta"}
MODELS = [f"bert-{head}" for head in CLASSES] + ["roberta-tag", "roberta-fill", "roberta-answer", "xlm-tag"]


def wordpiece() -> Any:
    """BERT's tokenizer: letters, their continuations, marks, digits, other scripts and a few words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    tokens += [*".,!?'-@()=", *"0123456789", *"日本мש", "##ир", "##лום"]
    tokens += ["the", "and", "import", "name", "debug", "stop", "smile", "word", "one", "two", "three"]
    tokens += ["is", "it", "what", "##s", "##ing", "##er", "##ule"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return transformers.BertTokenizer(vocab=vocabulary)


def byte_bpe() -> Any:
    """RoBERTa's tokenizer, with merges from ``text.txt``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(LINES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges)


def unigram() -> Any:
    """XLM-RoBERTa's tokenizer, with pieces from ``text.txt``."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator([*LINES, *["日本 мир"] * 30], trainer)
    pieces = [(piece, round(score, 3)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return transformers.XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])


TOKENIZERS = {"bert": wordpiece, "roberta": byte_bpe, "xlm": unigram}


def write_model(name: str, folder: Path, seed: int) -> tuple[Any, Any]:
    """Write a model with random weights and its tokenizer. Returns both."""
    family, head = name.split("-")
    tokenizer = TOKENIZERS[family]()
    tokenizer.save_pretrained(folder)
    config = getattr(transformers, f"{FAMILIES[family]}Config")(
        **CONFIG, **LABELS[head], vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    config._attn_implementation = "eager"
    kind = getattr(transformers, FAMILIES[family] + CLASSES[head])
    kind(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {key: list(x.shape) for key, x in load_file(path).items()}
    save_file(draw(tensors, f"{name}-{seed}"), path, metadata={"format": "pt"})
    recipe = {"seed": f"{name}-{seed}", "offset": 1.0, "tensors": tensors}
    (folder / "tensors.json").write_text(json.dumps(recipe) + "\n")
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    path.unlink()  # tests draw the weights again
    (folder / "generation_config.json").unlink(missing_ok=True)
    return model, tokenizer


def classified(model: Any, tokenizer: Any) -> Any:
    run = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    given = [*TEXTS, *PAIRS]
    asked = [one if isinstance(one, str) else {"text": one[0], "text_pair": one[1]} for one in given]
    rows = [run([one])[0] if isinstance(one, str) else run(one) for one in asked]
    return [[one, {row["label"]: row["score"] for row in own}] for one, own in zip(given, rows)]


def ranked(model: Any, tokenizer: Any) -> Any:
    found = []
    for query in QUERIES:
        pairs = ([query] * len(TEXTS), TEXTS)
        rows = [model(**tokenizer(a, b, return_tensors="pt")).logits[0, 0].sigmoid() for a, b in zip(*pairs)]
        found.append([query, TEXTS, [float(row) for row in rows]])
    return found


def filled(model: Any, tokenizer: Any) -> Any:
    run = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)
    found = []
    for text in (text.replace("{m}", tokenizer.mask_token) for text in MASKED):
        masks = run(text)
        masks = [masks] if isinstance(masks[0], dict) else masks
        rows = [[[one["token"], one["token_str"], one["score"], one["sequence"]] for one in own] for own in masks]
        found.append([text, rows])
    return found


def tagged(model: Any, tokenizer: Any) -> Any:
    found = []
    for text in TEXTS:
        groups = {}
        for grouping in GROUPINGS:
            run = transformers.pipeline(
                "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy=grouping
            )
            groups[grouping] = [
                [one.get("entity", one.get("entity_group")), float(one["score"]), one["start"], one["end"]]
                for one in run(text)
            ]
        found.append([text, groups])
    return found


def answers(
    model: Any, tokenizer: Any, question: str, text: str, unanswerable: bool, longest: int = 15
) -> list[list[float]]:
    """The 3 best spans: score, first and last character + 1."""
    length = model.config.max_position_embeddings
    length -= 2 if model.config.model_type != "bert" else 0  # positions begin after the padding token
    given = tokenizer(
        question,
        text,
        truncation="only_second",
        max_length=length,
        stride=min(128, length // 2 - 1),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found, none = dict[tuple[int, int], float](), 1e6
    for window in range(len(given["input_ids"])):
        names = [key for key in ("input_ids", "attention_mask", "token_type_ids") if key in given]
        rows = model(**{key: torch.tensor([given[key][window]]) for key in names})
        inside = np.array([one == 1 for one in given.sequence_ids(window)])
        allowed = inside | (np.arange(len(inside)) == 0)  # the first token means "no answer"
        ends = []
        for row in (rows.start_logits[0].double().numpy(), rows.end_logits[0].double().numpy()):
            row = np.where(allowed, row, -10000.0)
            row = np.exp(row - row.max())
            ends.append(row / row.sum())
        none = min(none, float(ends[0][0] * ends[1][0]))
        products = np.triu(np.outer(*ends))
        products = np.tril(products, longest - 1)
        for first, last in zip(*np.nonzero(products)):
            if inside[first] and inside[last]:
                offsets = given["offset_mapping"][window]
                place = offsets[first][0], offsets[last][1]
                found[place] = max(float(products[first, last]), found.get(place, 0.0))
    spans = [[score, *place] for place, score in found.items()]
    if unanswerable:
        spans.append([none, 0, 0])
    return sorted(spans, key=lambda one: (-one[0], one[1], one[2]))[:3]


def answered(model: Any, tokenizer: Any) -> Any:
    return [
        [question, text, maybe, answers(model, tokenizer, question, text, maybe)]
        for question, text in QUESTIONS
        for maybe in (False, True)
    ]


def is_varied(head: str, model: Any, tokenizer: Any) -> bool:
    """True if the labels of the texts differ: random weights often give all texts the same label."""
    if head not in ("classify", "many", "tag"):
        return True
    rows = [model(**tokenizer(text, return_tensors="pt")).logits[0].argmax(-1) for text in TEXTS]
    if head != "tag":
        return len({int(row) for row in rows}) > 1
    labels = [row[1:-1].tolist() for row in rows]
    flat = [label for own in labels for label in own]
    empty = sum(not any(own) for own in labels)
    return 2 <= empty <= 9 and min(flat.count(label) for label in range(len(NAMES))) > 4


TASKS = {"classify": classified, "many": classified, "rank": ranked, "fill": filled, "tag": tagged}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these models")
    names = parser.parse_args().names
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in MODELS:
        if names and name not in names:
            continue
        folder, head = OUT / name, name.split("-")[1]
        for seed in range(5000):
            model, tokenizer = write_model(name, folder, seed)
            if is_varied(head, model, tokenizer):
                break
        else:
            raise SystemExit(f"{name}: no seed gives texts different labels")
        results = TASKS.get(head, answered)(model, tokenizer)
        rounded = json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 6))
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rounded)
        (folder / "results.json").write_text(f"[\n{lines}\n]\n")
        print(f"{name}-{seed}", len(results), "results,", sum(f.stat().st_size for f in folder.iterdir()), "bytes")


if __name__ == "__main__":
    main()
