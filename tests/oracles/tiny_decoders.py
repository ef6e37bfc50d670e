"""The tiny decoders of tests/goldens/model/encoders that are used as encoders, as data.

A name is a family and a use: "body" has the class without a head; "two-sided" too, and its tokens see later tokens. The
options are options of a tiny model (``tiny_models.py``) and the options of the head.
"""

from typing import Any

from tiny_models import MODELS as TINY

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "body": ("Model", {}),
    "two-sided": ("Model", {"is_causal": False}),
    "classify": ("ForSequenceClassification", {"num_labels": 3, "pad_token_id": 0}),
    "rank": ("ForSequenceClassification", {"num_labels": 1, "pad_token_id": 0}),
    "tag": ("ForTokenClassification", {"num_labels": 5}),
    "answer": ("ForQuestionAnswering", {}),
}
USES: dict[str, tuple[str, ...]] = {
    "body": ("llama", "qwen3-odd", "gpt2", "lfm2"),
    "two-sided": (
        "gemma3", "qwen2", "qwen3", "qwen3-odd", "mistral", "mistral-odd", "ministral3", "llama-rope3",
        "deepseek_v3", "lfm2", "lfm2-odd",
    ),
    "classify": (
        "llama", "mistral-odd", "qwen2", "qwen3-odd", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neox", "gptj", "bloom",
        "falcon", "opt", "mpt", "phi", "phi3", "mixtral", "qwen3_moe", "qwen3_next", "glm4", "gpt_oss", "deepseek_v3",
    ),
    "rank": ("qwen3", "llama-tied"),
    "tag": ("llama", "qwen3-odd", "gpt2", "bloom"),
    "answer": ("llama", "qwen3-odd", "gptj", "opt"),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "gemma3-two-sided": {"is_causal": True, "use_bidirectional_attention": True, "sliding_window": 16},
    "lfm2-two-sided-odd": {"conv_L_cache": 5},
    "gemma3-classify": {"use_bidirectional_attention": True, "sliding_window": 10},
}
"""Further options by name. Gemma 3 has its own option of the direction of attention."""
CENTERED = ("lfm2-two-sided", "lfm2-two-sided-odd")
"""Models with centered convolutions: Lfm2BidirectionalModel. They are the last, because the oracle changes LFM2."""


def _models() -> dict[str, tuple[str, str, dict[str, Any]]]:
    found = {}
    for use, bases in USES.items():
        head, own = HEADS[use]
        for base in bases:
            classes, options = TINY[base]
            model, _, config = classes.partition(":")
            config = config or f"{model}Config"
            family, _, variant = base.partition("-")
            name = "-".join(filter(None, (family, use, variant)))
            kind = config.removesuffix("Config") + head
            found[name] = (kind, config, options | own | OPTIONS.get(name, {}))
    last = {name: found.pop(name) for name in CENTERED}
    return found | last


MODELS = _models()
