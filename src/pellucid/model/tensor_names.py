"""Tensor names that most families share: llama.cpp's in GGUF, transformers' decoders' in safetensors."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.model.shapes import expected_shapes
from pellucid.model.spec import ModelSpec, Slot

GGUF_MODEL = {"embed": "token_embd", "norm": "output_norm", "project": "output"}
GGUF_BLOCK = {
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.output": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.norm": "attn_norm",
    "attention.post_norm": "post_attention_norm",
    "feedforward.gate": "ffn_gate",
    "feedforward.up": "ffn_up",
    "feedforward.down": "ffn_down",
    "feedforward.norm": "ffn_norm",
    "feedforward.post_norm": "post_ffw_norm",
}
TRANSFORMERS_MODEL = {"embed": "model.embed_tokens", "norm": "model.norm", "project": "lm_head"}
TRANSFORMERS_BLOCK = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.norm": "input_layernorm",
    "attention.post_norm": "post_attention_layernorm",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.up": "mlp.up_proj",
    "feedforward.down": "mlp.down_proj",
    "feedforward.norm": "post_attention_layernorm",
    "feedforward.post_norm": "post_feedforward_layernorm",
}
SANDWICH_NORM = {"feedforward.norm": "pre_feedforward_layernorm"}


def gguf_slots(spec: ModelSpec) -> dict[str, Slot]:
    """Every slot of the spec, filled by tensors with llama.cpp's names."""
    return _slots(spec, GGUF_MODEL, GGUF_BLOCK, "blk", 0.0)


def transformers_slots(spec: ModelSpec, norm_plus: float = 0.0) -> dict[str, Slot]:
    """Every slot of the spec, filled by tensors with transformers' names; ``norm_plus`` is added to norms' weights."""
    sandwich = any(block.placement == "sandwich" for block in spec.blocks)
    block = {**TRANSFORMERS_BLOCK, **(SANDWICH_NORM if sandwich else {})}
    return _slots(spec, TRANSFORMERS_MODEL, block, "model.layers", norm_plus)


def _slots(
    spec: ModelSpec, model: Mapping[str, str], block: Mapping[str, str], prefix: str, norm_plus: float
) -> dict[str, Slot]:
    slots = {}
    for slot in expected_shapes(spec):
        place, _, part = slot.rpartition(".")
        if place.startswith("blocks."):
            _, index, inner = place.split(".", 2)
            name = f"{prefix}.{index}.{block[inner]}.{part}"
        else:
            name = f"{model[place]}.{part}"
        slots[slot] = Slot(name, norm_plus if place.endswith("norm") else 0.0)
    return slots
