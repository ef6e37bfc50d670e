"""Descriptions of models in Ollama's form."""

from __future__ import annotations

import hashlib
from typing import Any

from pellucid.serve.chat.chat_style import chat_style
from pellucid.serve.ollama.response_chunks import timestamp
from pellucid.serve.served_model import ServedModel
from pellucid.tokenize.infill import infill_tokens
from pellucid.weights.checkpoint import main_format, parameter_count, stored_bytes

FOREVER = "9999-12-31T00:00:00Z"


def model_entry(name: str, llm: ServedModel | None) -> dict[str, Any]:
    """Entry of a list of models. Facts from the file are included if the model is loaded."""
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(),
        "size": 0 if llm is None else stored_bytes(llm.checkpoint),
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": _details(llm),
        **({} if llm is None else {"capabilities": capabilities(llm)}),
    }


def running_model(name: str, llm: ServedModel, expires_in: float | None) -> dict[str, Any]:
    """A loaded model. ``expires_in`` is the number of seconds until an unused model is unloaded (None: no limit)."""
    expires = FOREVER if expires_in is None else timestamp(expires_in)
    return {**model_entry(name, llm), "expires_at": expires, "size_vram": 0, "context_length": llm.context}


def model_details(llm: ServedModel, verbose: bool = False) -> dict[str, Any]:
    """Description of a model. ``verbose`` adds its tensors."""
    tensors = [
        {"name": name, "type": one.format, "shape": list(one.shape)}
        for name, one in (llm.checkpoint.tensors.items() if verbose else ())
    ]
    return {
        **({"tensors": tensors} if verbose else {}),
        "modelfile": "",
        "parameters": "\n".join(f"{name} {value}" for name, value in llm.recommended.items()),
        "template": llm.tokenizer.chat_template or "",
        "details": _details(llm),
        "model_info": {
            "general.architecture": llm.spec.family,
            "general.parameter_count": parameter_count(llm.checkpoint),
            f"{llm.spec.family}.context_length": llm.context,
            f"{llm.spec.family}.embedding_length": llm.spec.embedding.width,
            f"{llm.spec.family}.block_count": len(llm.spec.blocks),
        },
        "capabilities": capabilities(llm),
        "modified_at": timestamp(),
    }


def capabilities(llm: ServedModel) -> list[str]:
    """Capabilities of a model, in Ollama's words where Ollama has one; else the task, or "rerank"."""
    task, labels = llm.spec.task, llm.spec.labels
    if task in ("embed", "sparse", "tokens"):
        return ["embedding"]
    if task == "classify" and labels is not None and labels.relevance is not None:
        return ["rerank"]
    if task != "generate":
        return [task]
    style, names = chat_style(llm.tokenizer), ["completion"]
    names += ["tools"] if style.calls else []
    names += ["thinking"] if style.reasons else []
    return names + (["insert"] if infill_tokens(llm.tokenizer) else [])


def _details(llm: ServedModel | None) -> dict[str, Any]:
    if llm is None:
        return {"parent_model": "", "format": "", "family": "", "families": []}
    family, count = llm.spec.family, parameter_count(llm.checkpoint)
    return {
        "parent_model": "",
        "format": llm.checkpoint.kind,
        "family": family,
        "families": [family],
        "parameter_size": f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M",
        "quantization_level": main_format(llm.checkpoint),
    }
