"""Files that have the format of a model and are not read: adapters, unknown quantizations. The errors give advice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pellucid.errors import FileFormatError, UnsupportedModel, brief, shown
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MXFP4 = "mxfp4"
"""The quantization of safetensors that is read (``safetensors.py``)."""

MERGE = "merge it into its model (peft: merge_and_unload)"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# A parametrization of torch keeps adapters beside the complete matrix (Jina Embeddings v3).
LORA = re.compile(r"(?<!\.parametrizations\.weight\.0)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")

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

    Raises FileFormatError: the file is not a model. The message has the kind of the file and a remedy.
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
    return FileFormatError(folder, "folder", f"holds a LoRA adapter{of} and no model: {MERGE}, and open the result")


def pickles_in(folder: Path) -> list[str]:
    """The names of a folder's PyTorch files with pickled weights."""
    return sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))


def to_safetensors(folder: str) -> str:
    """Instructions that convert the weights of a folder to safetensors."""
    return (
        "with transformers, AutoModelForCausalLM.from_pretrained"
        f"({folder!r}).save_pretrained('NEW'), and the same for the tokenizer"
    )


# Names the quantization of safetensors that are not read. The errors give advice. A folder states its quantization in
# ``config.json``, in a file beside it, or only by the names of its tensors. A file counts only if tensors are packed: a
# folder of plain weights may keep the file of an older export.

KEYS = ("quantization_config", "compression_config", "quantization")
METHODS: Mapping[str, str] = {
    "gptq": "GPTQ", "awq": "AWQ", "auto-round": "AutoRound", "intel/auto-round": "AutoRound",
    "bitsandbytes": "bitsandbytes", "bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes",
    "compressed-tensors": "compressed-tensors", "fp8": "FP8", "fbgemm_fp8": "FP8", "exl2": "EXL2", "exl3": "EXL3",
    "hqq": "HQQ", "mlx": "MLX", "modelopt": "ModelOpt", "bitnet": "BitNet", "torchao": "torchao", "quanto": "Quanto",
    "aqlm": "AQLM",
}  # fmt: skip
"""Values of ``quant_method`` → the name of the method."""
FILES: Mapping[str, str] = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
    "quantization_config.json": "EXL3",
}
"""Files beside ``config.json`` → the method whose tools write them."""
TENSORS: Mapping[str, str] = {
    r".+\.trellis": "EXL3",
    r".+\.q_weight": "EXL2",
    r".+\.(absmax|quant_map|SCB)|.+\.quant_state\..+": "bitsandbytes",
    r".+\.weight_packed": "compressed-tensors",
    r".+\.weight_scale_inv": "FP8",
    r".+\.W_q": "HQQ",
    r".+\.qweight": "GPTQ or AWQ",
    r".+\.(weight_scale|input_scale)": "FP8 or ModelOpt",
    r".+\.scales": "MLX",
}
"""Patterns of tensor names → the methods that pack weights in this form."""


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Refuse safetensors with quantized weights, except MXFP4, which is read.

    Raises UnsupportedModel: the weights are quantized. The message names the method and the place that states it.
    """
    found = None if checkpoint.kind == "gguf" else _stated(checkpoint) or _packed(checkpoint)
    if found:
        method, where = found
        raise UnsupportedModel(
            f"{checkpoint.path.name}: the weights are quantized with {method} ({where}), which is not read: open the "
            "unquantized safetensors of this model, or a GGUF file of it"
        )


def _stated(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """The quantization that ``config.json`` states, at the top or in the table of the text model."""
    text = checkpoint.metadata.get("text_config")
    for prefix, table in (("", checkpoint.metadata), ("text_config.", text if isinstance(text, Mapping) else {})):
        for key in KEYS:
            stated = table.get(key)
            if isinstance(stated, Mapping) and stated and stated.get("quant_method") != MXFP4:
                return _method(stated, "MLX" if key == "quantization" else ""), f"{prefix}{key}"
    return None


def _method(stated: Mapping[str, object], otherwise: str) -> str:
    """The name of the method in a table; ``otherwise`` if the table does not state one."""
    name = stated.get("quant_method")
    if isinstance(name, str) and name:
        return METHODS.get(name.lower(), shown(name))
    if stated.get("load_in_4bit") or stated.get("load_in_8bit"):
        return "bitsandbytes"
    if otherwise:
        return otherwise
    return "MLX" if set(stated) >= {"group_size", "bits"} else f"an unknown method, {brief(dict(stated))}"


def _packed(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """The quantization of packed tensors, by the file beside them or by their names."""
    for pattern, method in TENSORS.items():
        name = next(filter(re.compile(pattern).fullmatch, checkpoint.tensors), "")
        if not name or (checkpoint.metadata.get("quantization_config") and method == "MLX"):
            continue
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        for file, usual in FILES.items():
            if (folder / file).is_file():
                try:
                    return _method(read_json(folder / file), usual), file
                except FileFormatError:
                    return usual, file
        return method, f"tensor {shown(name)}"
    return None
