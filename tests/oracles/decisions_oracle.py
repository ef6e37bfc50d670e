"""Golden decisions of random models, with logits computed by transformers in float32.

    python tests/oracles/decisions_oracle.py --out tests/goldens/decide/decisions.json

The committed golden was made with transformers 5.24.0, torch 2.13.0 (CPU), Jinja2 3.1.6 on Python 3.11.

``tests/support/decisions.py`` has the templates, temperatures, states and questions. The model of each type is the same
random Qwen 2, whose tokens are bytes. Prompts are rendered by Jinja itself, and the answers are computed here, from the
definitions of llama.cpp's tools/server/server-decision.cpp: softmax of the labels' logits divided by the temperature.

The models of ``FOLDERS`` are asked by transformers' own pipeline for decisions.

OUT: {type: [[{question: {"ids": [[id]], "logits": [[float]], "answer": {...}}}]]} by state, where ``ids`` and
``logits`` have an element for each order of the options. The answers of folders have no ``logits``, and "ids" is one
list, up to the position that is read.
"""

import argparse
import json
import math
import string
import sys
import tempfile
from pathlib import Path

import torch
from jinja2 import Environment
from transformers import AutoModelForCausalLM, AutoModelForDecision, AutoTokenizer, pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.decisions import FOLDERS, QUESTIONS, SHAPE, STATES, TEMPERATURES, TEMPLATES, decision_folder

from pellucid.testing import random_model

LETTERS = string.ascii_uppercase + string.ascii_lowercase


def options_of(question, kind):
    """The options in the order of their labels: (key, description)."""
    criteria = question.get("criteria")
    if question["type"] == "choice":
        return list(criteria.items())
    if question["type"] == "score":
        return [(str(at), one) for at, one in enumerate(criteria)]
    both = [(key, (criteria or {}).get(key)) for key in ("false", "true")]
    return both[::-1] if kind == "openjev" else both


def ordered(value):
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    return [ordered(one) for one in value] if isinstance(value, list) else value


def prompt(kind, state, id, reverse):
    def fields(id, reverse):
        question = QUESTIONS[id]
        options = options_of(question, kind)
        options = options[::-1] if reverse else options
        listed = [
            {"key": key, "description": about, **({} if kind == "openjev" else {"label": LETTERS[at]})}
            for at, (key, about) in enumerate(options)
        ]
        asked = {name: question[name] for name in ("type", "instructions")}
        return {"id": id, **asked, "options": listed}

    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    values = {**fields(id, reverse), "state": state, "questions": [fields(one, False) for one in QUESTIONS]}
    return environment.from_string(TEMPLATES[kind]).render(**(ordered(values) if kind == "lev" else values))


def answer(kind, id, logits):
    question = QUESTIONS[id]
    options = options_of(question, kind)
    stated, count = TEMPERATURES[kind], len(options)
    band = ("small" if count <= 8 else "mid") if kind == "lev" else "2" if count <= 2 else "3_5"
    temperature = stated.get(f"{question['type']}.{band}", stated.get(question["type"], 1.0))
    return answer_of(question, options, logits, temperature, kind == "lev")


def answer_of(question, options, logits, temperature, rated=False):
    """The answer from the logits of the options (key, description) in each order. ``rated``: as the type "lev"."""
    count, p = len(options), [0.0] * len(logits[0])
    for number, row in enumerate(logits):
        weights = [math.exp((z - max(row)) / temperature) for z in row]
        shares = [one / sum(weights) / len(logits) for one in weights]
        p = [a + b for a, b in zip(p, shares[::-1] if number else shares)]
    if question["type"] == "noul" and rated:
        return {"type": "noul", "noul": sum(at * one for at, one in enumerate(p)) / 8}
    each = {key: one for (key, _), one in zip(options, p)}
    if question["type"] == "noul":
        return {"type": "noul", "noul": each["true"]}
    most = max(p)
    if question["type"] == "choice":
        return {
            "type": "choice",
            "choice": max(each, key=each.get),
            "probabilities": each,
            "confidence": max(0.0, (count * most - 1) / (count - 1)),
        }
    mode = p.index(most)
    spread = sum(one * abs(at - mode) for at, one in enumerate(p))
    uniform = sum(abs(at - (count - 1) / 2) for at in range(count)) / count
    return {
        "type": "score",
        "score": sum(at * one for at, one in enumerate(p)),
        "legend": {str(at): one for at, one in enumerate(question["criteria"])},
        "probabilities": each,
        "confidence": max(0.0, 1 - spread / uniform),
    }


def of_folder(name, state):
    with tempfile.TemporaryDirectory() as folder:
        decision_folder(Path(folder), name)
        kind = AutoModelForDecision if name == "headed" else AutoModelForCausalLM
        model = kind.from_pretrained(folder, dtype=torch.float32)
        decide = pipeline("decision", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    request = {"state": state, "questions": QUESTIONS}
    answers, cases = decide(request), {}
    for inputs, questions in decide.decision_config.prepare_inputs(request, decide.tokenizer):
        for mark, question in zip(inputs["marks"].tolist(), questions):
            ids = inputs["input_ids"][0, :mark].tolist()
            cases[question.name] = {"ids": ids, "answer": answers[question.name]}
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        random_model("qwen2", folder, kind="safetensors", **SHAPE)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {}
    for kind in TEMPLATES:
        found[kind] = []
        for state in STATES:
            cases = {}
            for id, question in QUESTIONS.items():
                rated = kind == "lev" and question["type"] == "noul"
                count = 9 if rated else len(options_of(question, kind))
                ids, logits = [], []
                for reverse in (False, True) if kind == "lev" and question["type"] == "choice" else (False,):
                    text = prompt(kind, state, id, reverse)
                    assert text.startswith("<s>")
                    ids.append([256, *text[3:].encode()])
                    with torch.no_grad():
                        row = model(torch.tensor(ids[-1:])).logits[0, -1]
                    logits.append([float(row[ord(one)]) for one in LETTERS[:count]])
                cases[id] = {"ids": ids, "logits": logits, "answer": answer(kind, id, logits)}
            found[kind].append(cases)
    for name in FOLDERS:
        found[name] = [of_folder(name, state) for state in STATES]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
