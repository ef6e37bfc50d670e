"""The tiny models of tests/goldens/model/tiny, as data: a class of transformers and the options of its configuration.

Two names are the classes of the model and of its configuration; one name stands for ``<name>ForCausalLM`` and
``<name>Config``. The models are in ``tiny_*.py`` by kind. ``NAMES`` has the order of the first goldens, because token
ids are drawn in this order: append new names at the end.
"""

import tiny_experts
import tiny_gemma
import tiny_llama
import tiny_older
import tiny_recurrent
from tiny_options import Models

NAMES = [
    "llama", "llama-tied", "llama-rope3", "gemma3", "gemma3-scalar", "gemma3-softcap", "bert", "llama-linear",
    "gemma3-linear", "qwen2", "mistral", "mistral-odd", "qwen3", "qwen3-odd", "seed_oss", "seed_oss-odd", "granite",
    "granite-odd", "smollm3", "smollm3-odd", "olmo2", "olmo2-odd", "gemma", "gemma-odd", "gemma2", "gemma2-odd",
    "starcoder2", "starcoder2-odd", "nemotron", "nemotron-odd", "cohere2", "cohere2-odd", "glm4", "glm4-odd", "phi3",
    "phi3-odd", "olmo3", "olmo3-odd", "phi", "phi-odd", "gpt2", "gpt2-odd", "gptj", "gptj-odd", "gpt_neox",
    "gpt_neox-odd", "opt", "opt-odd", "bloom", "bloom-odd", "mpt", "mpt-odd", "openai-gpt", "openai-gpt-odd",
    "falcon", "falcon-odd", "falcon-one", "falcon-many", "mixtral", "mixtral-odd", "qwen2_moe", "qwen2_moe-odd",
    "qwen3_moe", "qwen3_moe-odd", "olmoe", "olmoe-odd", "gpt_oss", "gpt_oss-odd", "glm4_moe", "glm4_moe-odd",
    "granitemoe", "granitemoe-odd", "granitemoeshared", "gemma3-vision", "mistral-vision", "llama-narrow",
    "gpt2-narrow", "phi3-long", "phi3-short", "llama-dynamic", "qwen3-vision", "xglm", "xglm-odd", "qwen3_next",
    "qwen3_next-odd", "qwen3_5", "qwen3_5-odd", "qwen3_5_moe", "qwen3_5_moe-odd", "granitemoehybrid",
    "granitemoehybrid-odd", "falcon_h1", "falcon_h1-odd", "lfm2", "lfm2-odd", "lfm2_moe", "lfm2_moe-odd",
    "nemotron_h", "nemotron_h-odd", "deepseek_v3", "deepseek_v3-odd", "deepseek_v2", "deepseek_v2-odd", "ministral3",
    "ministral3-odd", "gemma4", "gemma4-odd", "gemma4_moe", "gemma4_moe-odd", "llama4", "llama4-odd", "llama4-dense",
    "gemma3n", "gemma3n-odd", "qwen2-window", "smollm3-window", "mpt-clip", "phi-norms", "opt-post", "opt-narrow",
    "gpt_oss-mxfp4", "falcon-alibi", "falcon-alibi-odd",
]  # fmt: skip
FILES = (tiny_llama, tiny_gemma, tiny_older, tiny_experts, tiny_recurrent)


def _in_order() -> Models:
    found: Models = {}
    for file in FILES:
        if twice := found.keys() & file.MODELS.keys():
            raise ValueError(f"{', '.join(sorted(twice))}: in two files of tiny models; give each another name")
        found |= file.MODELS
    if other := found.keys() ^ set(NAMES):
        raise ValueError(f"{', '.join(sorted(other))}: must be both in a file of tiny models and in NAMES, at the end")
    return {name: found[name] for name in NAMES}


MODELS = _in_order()
