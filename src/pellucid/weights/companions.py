"""Detects files that have the format of a model but are not models, such as adapters. The errors give advice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pellucid.errors import FileFormatError
from pellucid.errors.messages import brief, shown
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json
from pellucid.weights.safetensors import ADAPTER_CONFIG, ADAPTER_FILES

MERGE = "merge it into its model (peft: merge_and_unload)"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# A parametrization of torch keeps adapters beside the complete matrix (Jina Embeddings v3).
LORA = re.compile(
    r"(?<!\.parametrizations\.weight\.0)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b"
)

GGUF_KINDS: Mapping[str, str] = {
    "adapter": "is a LoRA adapter, not a model: merge it into its model (llama-export-lora), and open the result",
    "imatrix": "is an importance matrix, an input of llama-quantize, and has no weights: open the file of the model",
    "mmproj": "is the image part of a model (mmproj), which is not supported: open the file of the text model",
    "controlvector": "is a control vector, not a model: open the file of the model",
}
"""Advice for GGUF files that are not models, by kind: their ``general.type`` or ``general.architecture``."""


def kind_of_gguf(metadata: Mapping[str, Any]) -> str:
    """The kind of a GGUF file, a key of ``GGUF_KINDS``; "" for a model."""
    stated, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    if architecture == "clip":
        return "mmproj"
    if any(key.startswith("imatrix.") for key in metadata):
        return "imatrix"
    if "adapter.type" in metadata:
        return "adapter"
    return next((kind for kind in (stated, architecture) if isinstance(kind, str) and kind in GGUF_KINDS), "")


def refuse_companion(checkpoint: Checkpoint) -> None:
    """Refuse a file that is not a model.

    Raises:
        FileFormatError: the file is not a model. The message has the kind of the file and a remedy.
    """
    if checkpoint.kind == "gguf":
        if kind := kind_of_gguf(checkpoint.metadata):
            raise FileFormatError(checkpoint.path, "file", GGUF_KINDS[kind])
    elif name := next(filter(LORA.search, checkpoint.tensors), ""):
        problem = f"belongs to a LoRA adapter: {MERGE}, and open the result"
        raise FileFormatError(checkpoint.path, f"tensor {shown(name)}", problem)


def adapter_in(folder: Path) -> str:
    """The name of a PEFT adapter's file in a folder, searched as in transformers; "" if there is no adapter."""
    return next((name for name in (*ADAPTER_FILES, ADAPTER_CONFIG) if (folder / name).is_file()), "")


def adapter_alone(folder: Path) -> FileFormatError:
    """The error for a folder with an adapter and no model."""
    try:
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    except FileFormatError:
        base = None
    of = f" of {brief(base)}" if isinstance(base, str) and base else ""
    return FileFormatError(
        folder, "folder", f"holds a LoRA adapter{of} and no model: {MERGE}, and open the result"
    )


def pickles_in(folder: Path) -> list[str]:
    """The names of a folder's PyTorch files with pickled weights."""
    return sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))


def to_safetensors(folder: str) -> str:
    """Instructions that convert the weights of a folder to safetensors."""
    return (
        "with transformers, AutoModelForCausalLM.from_pretrained"
        f"({folder!r}).save_pretrained('NEW'), and the same for the tokenizer"
    )
