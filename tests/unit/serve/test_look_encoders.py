"""What the page knows of encoders: the point of their outputs, and the names of its columns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pellucid
from pellucid.serve.look.queries import FactsFields, model_facts
from pellucid.testing import random_model


@pytest.mark.parametrize(
    ("head", "task", "output"),
    [
        ("", "embed", {"point": "normalize", "each": False, "labels": None, "scale": "none"}),
        (
            "SequenceClassification",
            "classify",
            {"point": "output.1", "each": False, "labels": ["LABEL_0", "LABEL_1"], "scale": "softmax"},
        ),
        (
            "TokenClassification",
            "tag",
            {"point": "output.0", "each": True, "labels": ["LABEL_0", "LABEL_1"], "scale": "softmax"},
        ),
        (
            "QuestionAnswering",
            "answer",
            {"point": "output.0", "each": True, "labels": ["an answer begins", "an answer ends"], "scale": "none"},
        ),
        ("MaskedLM", "fill", {"point": "project.logits", "each": True, "labels": None, "scale": "none"}),
    ],
)
def test_facts_say_what_an_encoder_makes(head: str, task: str, output: dict[str, Any], tmp_path: Path) -> None:
    names = {"architectures": [f"BertFor{head}"], "num_labels": 2} if head else {}
    path = random_model("bert", tmp_path / "bert", kind="safetensors", metadata=names)
    with pellucid.load(path, threads=1) as llm:
        facts = model_facts(SimpleNamespace(fields=FactsFields(name="bert")), llm)  # type: ignore[arg-type]
        assert (facts["task"], facts["output"], facts["generates"]) == (task, output, False)
        with llm.trace(output["point"]) as trace:
            llm.encode(llm.inputs.texts(["a text"]))
        assert np.isfinite(trace[output["point"]]).all()
