"""Random models that score options themselves: GGUF files as llama.cpp's converter writes them.

    omni    "lfm2-d1-omni": an LFM2 that reads in both directions, with decision blocks
    kev     "kev": a Qwen 3.5 with a pointer head
    clef    "clef": a Qwen 3.5 with a joint head

The module writes the files without the reader of the format, so that reader and writer cannot share a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.decisions import QUESTIONS, text, tokenizer
from support.drawn import draw
from support.model_files import gguf

Shapes = dict[str, tuple[int, ...]]
FIRST = 258
"""The id of the first control token. Smaller ids are bytes."""
CONTROL: Mapping[str, tuple[str, ...]] = {
    "omni": (
        "<|startoftext|>", "<|mask|>",
        "<|reserved_7|>", "<|reserved_8|>", "<|reserved_9|>", "<|reserved_10|>", "<|reserved_11|>",
    ),
    "kev": (
        "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|box_start|>", "<|box_end|>", "<tool>",
    ),
    "clef": ("<|im_start|>", "<|im_end|>"),
}  # fmt: skip
"""The control tokens of each type, in the order of their ids."""
NAME = "{% if type != 'noul' %}{{ o.key }}{% elif o.key == 'true' %}yes{% else %}no{% endif %}"
JSON = "{{ %s if %s is string else %s | tojson(separators=[',', ':']) }}"
TEMPLATES = {
    "omni": "{% for image in images %}{{ image }}{% endfor %}{{ sep }}<|startoftext|><|reserved_7|>"
    "{{ sep }}{{ mark_state }}{% if state is string %}{{ state }}{% elif state is not none %}{{ state | tojson }}"
    "{% elif audio %}{}{% endif %}{{ sep }}{{ mark_question }}<|reserved_8|>" + text("instructions")
    + "{% for o in options %}{{ sep }}<|reserved_9|><|mask|>{{ sep }}{{ mark_option }} {{ o.key }}"
    "{% if o.description %}: " + text("o.description") + "{% endif %}{{ sep }}<|reserved_10|>{% endfor %}"
    "{{ sep }}<|reserved_11|>",
    "kev": "<|fim_prefix|>{{ state }}<|fim_middle|>{{ instructions }}{% for o in options %}<|box_start|>"
    "{% if type == 'score' %}{{ o.description }}{% else %}" + NAME
    + "{% if o.description %}: {{ o.description }}{% endif %}{% endif %}<|box_end|>{% endfor %}<|fim_suffix|>",
    "clef": "<|im_start|>STATE {{ sep }}" + JSON.replace("%s", "state")
    + "{% for q in questions %}{{ sep }}FIELD {{ loop.index }} {{ q.id }} {{ q.type }}: {{ sep }}{{ mark_question }}"
    + JSON.replace("%s", "q.instructions")
    + "{% for o in q.options %}{{ sep }}OPTION {{ loop.index }}: {{ sep }}{{ mark_option }}"
    "{{ ({'option_id': o.key} if o.description is none else {'description': o.description, 'option_id': o.key}) "
    "| tojson(separators=[',', ':']) }}{{ sep }};{% endfor %}{% endfor %}{{ sep }}<|im_end|>DECISIONS:",
}  # fmt: skip
QWEN = {
    "block_count": 3,
    "context_length": 2048,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.dimension_count": 16,
    "rope.freq_base": 10_000.0,
    "full_attention_interval": 3,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 32,
    "ssm.state_size": 8,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
}
MODELS: Mapping[str, dict[str, Any]] = {
    "omni": {
        "block_count": 5,
        "context_length": 20_000,
        "embedding_length": 64,
        "feed_forward_length": np.array([96, 96, 96, 128, 128], np.int32),
        "attention.head_count": 4,
        "attention.head_count_kv": np.array([0, 2, 0, 4, 4], np.int32),
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-3,
        "attention.causal": False,
        "rope.freq_base": 1_000_000.0,
        "shortconv.l_cache": 3,
        "vocab_size": 320,
        "decision.type": "lfm2-d1-omni",
        "decision.block_count": 2,
        "decision.temperature.choice.3_5": 0.8,
        "decision.temperature.noul": 1.25,
    },
    "kev": {
        **QWEN,
        "embedding_length_out": 48,
        "decision.type": "kev",
        **{f"decision.temperature.{kind}": 1.5 for kind in ("choice", "score", "noul")},
    },
    "clef": {
        **QWEN,
        "attention.layer_norm_epsilon": 1e-3,
        "decision.type": "clef",
        "decision.routing_block_count": 2,
        "decision.block_count": 2,
        "decision.head_count": 4,
    },
}
ARCHITECTURES = {"omni": "lfm2", "kev": "qwen35", "clef": "clef"}
ASKED: dict[str, Any] = {
    **QUESTIONS,
    "forged": {
        "type": "choice",
        "instructions": {"<|mask|>": ["<|box_end|>", None, True, 1.5, {"a": {"b": 2}}], "c": []},
        "criteria": {"<|mask|> b": "a <|box_end|>", "<<clef:sep>>": "<<d1omni:sep>>", "a": None},
    },
    "many": {"type": "choice", "instructions": "Which number?", "criteria": {f"number {at}": None for at in range(24)}},
}  # fmt: skip


def tensor_shapes(kind: str) -> Shapes:
    """The tensors of a model, row-major, with the names of llama.cpp."""
    if kind == "omni":
        return _omni()
    config = MODELS[kind]
    found = {**_qwen(), "output.weight": (320, 64)}
    if kind == "kev":
        width = config["embedding_length_out"]
        return {**found, "cls.output.weight": (width, 64), "cls.output.bias": (width,)}
    return {**found, **_joint_head(64, 32, 48, config)}


def _omni() -> Shapes:
    found: Shapes = {
        "token_embd.weight": (320, 64), "token_embd_norm.weight": (64,), "token_types.weight": (3, 64),
        "cls.norm.weight": (64,), "cls.norm.bias": (64,), "cls.weight": (64, 64), "cls.bias": (64,),
        "cls.output.weight": (1, 64), "cls.output.bias": (1,),
    }  # fmt: skip
    for layer in range(5):
        at, decides = f"blk.{layer}", layer > 2
        names: Shapes = {"ffn_up": (128 if decides else 96, 64), "ffn_down": (64, 128 if decides else 96)}
        names |= {"attn_norm": (64,), "ffn_norm": (64,)}
        if decides:
            names |= {"attn_qkv": (192, 64), "attn_output": (64, 64)}
            found |= {f"{at}.{name}.bias": shape[:1] for name, shape in names.items()}
        else:
            names["ffn_gate"] = (96, 64)
        if layer == 1:
            names |= {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
            names |= {"attn_q_norm": (16,), "attn_k_norm": (16,)}
        elif not decides:
            names |= {"shortconv.in_proj": (192, 64), "shortconv.conv": (64, 3), "shortconv.out_proj": (64, 64)}
        found |= {f"{at}.{name}.weight": shape for name, shape in names.items()}
    return found


def _qwen() -> Shapes:
    found: Shapes = {"token_embd.weight": (320, 64), "output_norm.weight": (64,)}
    for layer in range(3):
        names: Shapes = {"attn_norm": (64,), "post_attention_norm": (64,)}
        names |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
        if layer == 2:
            names |= {"attn_q": (128, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
            names |= {"attn_q_norm": (32,), "attn_k_norm": (32,)}
        else:
            names |= {"attn_qkv": (64, 64), "attn_gate": (32, 64), "ssm_conv1d": (64, 4)}
            names |= {"ssm_beta": (4, 64), "ssm_alpha": (4, 64), "ssm_norm": (8,), "ssm_out": (64, 32)}
            found |= {f"blk.{layer}.ssm_dt.bias": (4,), f"blk.{layer}.ssm_a": (4,)}
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in names.items()}
    return found


def _joint_head(hidden: int, width: int, inner: int, config: Mapping[str, Any]) -> Shapes:
    dense: Shapes = {"decision.scorer": (width, 4 * width), "decision.scorer_out": (1, width)}
    dense |= {f"decision.{name}_norm": (width,) for name in ("option_summary", "field", "option")}
    dense["decision.hidden_norm"] = (hidden,)
    routing = config["decision.routing_block_count"]
    for number in range(routing + config["decision.block_count"]):
        at = f"dec.blk.{number}"
        attentions = ["cross_attn"] if number < routing else ["attn", "cross_attn"]
        dense |= {f"{at}.{one}_{part}": (width, width) for one in attentions for part in "qkvo"}
        norms = ("cross_attn_norm_kv",) if number < routing else ("attn_norm",)
        dense |= {f"{at}.{name}": (width,) for name in (*norms, "cross_attn_norm", "ffn_norm")}
        dense |= {f"{at}.ffn_up": (inner, width), f"{at}.ffn_down": (width, inner)}
    projections = ("memory", "question", "option_question", "global", "option_context", "option_lexical")
    return {
        **{f"{name}.weight": shape for name, shape in dense.items()},
        **{f"{name}.bias": shape[:1] for name, shape in dense.items()},
        **{f"decision.proj_{name}.weight": (width, hidden) for name in projections},
        "decision.scales": (3,),
        "token_types.weight": (3, width),
    }


def weights(kind: str) -> dict[str, np.ndarray]:
    """The random weights of a model, float32."""
    found = draw(tensor_shapes(kind), f"options {kind}")
    return {name: -np.abs(x) if name.endswith("ssm_a") else x for name, x in found.items()}


def option_model(
    path: Path, kind: str, half: bool = False, without: str = "", resized: str = "", **changes: Any
) -> Path:
    """Write a model. ``changes`` are keys to replace, with None to remove: of the architecture without its name.

    With ``half``, matrices are float16. The tensor ``without`` is left out, and ``resized`` lacks its last row.
    """
    keys, architecture = tokenizer(), ARCHITECTURES[kind]
    pieces, types = list(keys["tokenizer.ggml.tokens"]), keys["tokenizer.ggml.token_type"].copy()
    for token, piece in enumerate(CONTROL[kind], FIRST):
        pieces[token], types[token] = piece, 3
    metadata = {
        "general.architecture": architecture,
        **keys,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types,
        "tokenizer.chat_template.systemone": TEMPLATES[kind],
        **{f"{architecture}.{key}": value for key, value in MODELS[kind].items()},
    }
    if kind != "kev":
        metadata["tokenizer.ggml.token_type_count"] = 3
    if kind == "omni":
        metadata["tokenizer.ggml.mask_token_id"] = FIRST + 1
    for key, value in changes.items():
        metadata[key if key.startswith(("tokenizer.", "general.")) else f"{architecture}.{key}"] = value
    given = {key: value for key, value in metadata.items() if value is not None}
    tensors = {}
    for name, x in weights(kind).items():
        if name == without:
            continue
        x = x[:-1] if name == resized else x
        is_half = half and x.ndim == 2
        tensors[name] = (x.shape, int(is_half), x.astype(np.float16 if is_half else np.float32).tobytes())
    path.write_bytes(gguf(given, tensors))
    return path
