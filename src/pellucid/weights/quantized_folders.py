"""Names the quantization of safetensors that are not read. The errors give advice.

A folder states its quantization in ``config.json``, in a file beside it, or only by the names of its tensors. A file
counts only if tensors are packed: a folder of plain weights may keep the file of an older export.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief, shown
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.json_files import read_json
from pellucid.weights.mxfp4_checkpoint import METHOD

KEYS = ("quantization_config", "compression_config", "quantization")
METHODS: Mapping[str, str] = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound",
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "hqq": "HQQ",
    "mlx": "MLX",
    "modelopt": "ModelOpt",
    "bitnet": "BitNet",
    "torchao": "torchao",
    "quanto": "Quanto",
    "aqlm": "AQLM",
}
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

    Raises:
        UnsupportedModel: the weights are quantized. The message names the method and the place that states it.
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
    for prefix, table in (
        ("", checkpoint.metadata),
        ("text_config.", text if isinstance(text, Mapping) else {}),
    ):
        for key in KEYS:
            stated = table.get(key)
            if isinstance(stated, Mapping) and stated and stated.get("quant_method") != METHOD:
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
