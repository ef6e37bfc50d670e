"""/info: facts about a model, in text-embeddings-inference's form."""

from __future__ import annotations

from typing import Any

import pellucid
from pellucid.serve.request_body import MAX_TEXTS
from pellucid.serve.served_model import ServedModel
from pellucid.weights.checkpoint import main_format


def information(llm: ServedModel, name: str) -> dict[str, Any]:
    """Response body of /info for the model ``name``. ``model_type`` names the model's task."""
    return {
        "model_id": name,
        "model_sha": None,
        "model_dtype": main_format(llm.checkpoint),
        "model_type": _model_type(llm),
        "max_input_length": llm.context,
        "max_client_batch_size": MAX_TEXTS,
        "auto_truncate": False,
        "version": pellucid.__version__,
    }


def _model_type(llm: ServedModel) -> dict[str, Any]:
    """The task of a model: its pooling or its labels."""
    spec, labels = llm.spec, llm.spec.labels
    if spec.task == "classify" and labels is not None:
        names = labels.names
        by_id = {str(at): label for at, label in enumerate(names)}
        about = {"id2label": by_id, "label2id": {label: at for at, label in enumerate(names)}}
        return {"classifier" if labels.relevance is None else "reranker": about}
    if spec.task == "sparse":
        return {"embedding": {"pooling": "splade"}}
    if spec.task in ("embed", "tokens"):
        return {"embedding": {"pooling": spec.pooling.kind if spec.pooling else "none"}}
    return {spec.task: {}}
