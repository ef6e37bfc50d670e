"""Tiny models with random weights, one per family and variant, with the outputs of transformers.

    python tests/oracles/tiny_oracle.py --out tests/goldens/model/tiny

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU), safetensors 0.8.0 on Python 3.11, in
float32 with eager attention. The weights come from numpy's PCG64 with the seed below, drawn in the order of the
tensors' names, so the script reproduces the same files.

OUT/<name>/ has config.json and model.safetensors (float32) as transformers saves them, or instead of the weights
tensors.json, from which tests draw them again (tests/support/drawn.py), and expected.npz:

    input_ids  int32   [40]
    logits     float32 [40, 128]   language models
    hidden     float32 [40, 64]    bert: the last hidden states, token types all 0
    made_with  str     []          JSON: versions

    llama           4 heads, 2 key/value heads, head not tied
    llama-tied      2 heads, 1 key/value head, head tied to the embedding, rotary base 1000
    llama-rope3     rotary scaling "llama3", set to keep the first frequency, blend the next two and divide the
                    others by 4
    gemma3          six layers, five local (window 8) and one global; 4 heads, 1 key/value head; no soft-caps
    gemma3-scalar   query_pre_attn_scalar 24 with heads of 32; queries wider than the model; four layers, alternating
                    global and local, as layer_types says contrary to the pattern
    gemma3-softcap  soft-caps: attention scores 2, final logits 3; as many key/value heads as heads; three layers,
                    two local and one global. (transformers 5.24 reads the cap on attention scores of a gemma3
                    configuration but does not pass it to its attention; this script passes it.)
    bert            two layers, learned positions, type embeddings, post-norm, exact GELU
    llama-linear    rotary scaling "linear" by 2.5
    qwen2           biases on queries, keys and values
    gemma3-linear   rotary scaling "linear" of both kinds of layers, by 4 in local and by 8 in global ones
    mistral         a window of 8
    qwen3           norms of each head's queries and keys
    seed_oss        biases on queries, keys and values
    granite         factors of embedding, scores, residuals and logits; granite-odd: with YaRN
    smollm3         no positions in every fourth of five layers; smollm3-odd: in the second of three
    olmo2           norms of outputs, and of all queries and all keys
    gemma, gemma2   Gemma 2 with soft-caps and a window of 8 in every second layer
    starcoder2, nemotron, cohere2, glm4, phi3, olmo3, phi, gpt2, gptj, gpt_neox, opt, bloom, mpt, openai-gpt, falcon
                    each family's peculiarities; of Falcon all arrangements of norms and key/value heads
    *-odd           three heads, as many key/value heads, three layers
"""

import argparse
import copy
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)
from transformers.models.gemma3 import modeling_gemma3

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import draw


def _with_own_tables(kind: Any) -> Any:
    return lambda **options: kind(**copy.deepcopy(options))


# Some configurations change the tables that they are given, so each gets a copy.
for _name in [name for name in globals() if name.endswith("Config")]:
    globals()[_name] = _with_own_tables(globals()[_name])

SEED, LENGTH = 20, 40
COMMITTED = 10  # the first models have their weights in the repository; tests draw those of the others again
ONE_PLUS = ("gemma", "gemma2", "nemotron")  # model types whose norms multiply by 1 + w
LLAMA = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
SMALLER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ODD = {
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
BY_LAYER = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
FACTORS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}
CAPS = {
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}


def without_rms(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a model with layer norms."""
    return {key: value for key, value in options.items() if key != "rms_norm_eps"}


HALF = LLAMA | {
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
LAYER = {
    key: LLAMA[key]
    for key in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
        "bos_token_id", "eos_token_id", "tie_word_embeddings",
    )
}  # fmt: skip
GPT = {
    "vocab_size": 128,
    "n_positions": 640,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ODD_GPT = {"n_embd": 96, "n_head": 3, "n_layer": 3}
OPT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "num_hidden_layers": 2,
    "ffn_dim": 96,
    "max_position_embeddings": 640,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FALCON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**LLAMA)),
    "llama-tied": (
        LlamaForCausalLM,
        LlamaConfig(
            **LLAMA
            | SMALLER
            | {
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
            }
        ),
    ),
    "llama-rope3": (LlamaForCausalLM, LlamaConfig(**LLAMA | SMALLER | {"rope_parameters": ROPE3})),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA)),
    "gemma3-scalar": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **GEMMA
            | {
                "num_hidden_layers": 4,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
                "num_attention_heads": 2,
                "head_dim": 32,
                "query_pre_attn_scalar": 24,
            }
        ),
    ),
    "gemma3-softcap": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **GEMMA
            | {
                "num_hidden_layers": 3,
                "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 3.0,
            }
        ),
    ),
    "bert": (BertModel, BertConfig(**BERT)),
    "llama-linear": (
        LlamaForCausalLM,
        LlamaConfig(
            **LLAMA
            | SMALLER
            | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}}
        ),
    ),
    "gemma3-linear": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **GEMMA
            | {
                "num_hidden_layers": 3,
                "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                    "sliding_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
                },
            }
        ),
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**LLAMA | SMALLER)),
    "mistral": (MistralForCausalLM, MistralConfig(**LLAMA | {"sliding_window": 8})),
    "mistral-odd": (MistralForCausalLM, MistralConfig(**LLAMA | ODD | {"sliding_window": None})),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**LLAMA)),
    "qwen3-odd": (
        Qwen3ForCausalLM,
        Qwen3Config(**LLAMA | ODD | {"tie_word_embeddings": True, "attention_bias": True}),
    ),
    "seed_oss": (SeedOssForCausalLM, SeedOssConfig(**LLAMA)),
    "seed_oss-odd": (SeedOssForCausalLM, SeedOssConfig(**LLAMA | ODD | {"attention_out_bias": True})),
    "granite": (GraniteForCausalLM, GraniteConfig(**LLAMA | FACTORS)),
    "granite-odd": (GraniteForCausalLM, GraniteConfig(**LLAMA | ODD | FACTORS | {"rope_parameters": YARN})),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config(**LLAMA | {"num_hidden_layers": 5, "pad_token_id": 0})),
    "smollm3-odd": (
        SmolLM3ForCausalLM,
        SmolLM3Config(
            **LLAMA | ODD | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "pad_token_id": 0}
        ),
    ),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**LLAMA)),
    "olmo2-odd": (Olmo2ForCausalLM, Olmo2Config(**LLAMA | ODD)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**LLAMA | {"tie_word_embeddings": True})),
    "gemma-odd": (
        GemmaForCausalLM,
        GemmaConfig(**LLAMA | ODD | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**LLAMA | CAPS | {"num_hidden_layers": 3})),
    "gemma2-odd": (Gemma2ForCausalLM, Gemma2Config(**LLAMA | ODD | CAPS | {"query_pre_attn_scalar": 24})),
    "starcoder2": (
        Starcoder2ForCausalLM,
        Starcoder2Config(
            **without_rms(LLAMA) | {"sliding_window": 8, "residual_dropout": 0.0, "embedding_dropout": 0.0}
        ),
    ),
    "starcoder2-odd": (
        Starcoder2ForCausalLM,
        Starcoder2Config(**without_rms(LLAMA) | ODD | {"use_bias": False, "tie_word_embeddings": True}),
    ),
    "nemotron": (NemotronForCausalLM, NemotronConfig(**without_rms(HALF) | {"head_dim": 16})),
    "nemotron-odd": (
        NemotronForCausalLM,
        NemotronConfig(**without_rms(HALF) | ODD | {"attention_bias": True, "mlp_bias": True}),
    ),
    "cohere2": (
        Cohere2ForCausalLM,
        Cohere2Config(
            **without_rms(LLAMA)
            | {"num_hidden_layers": 5, "sliding_window": 8, "tie_word_embeddings": True, "pad_token_id": 0}
        ),
    ),
    "cohere2-odd": (
        Cohere2ForCausalLM,
        Cohere2Config(
            **without_rms(LLAMA)
            | ODD
            | {
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "sliding_window": 5,
                "logit_scale": 0.5,
                "tie_word_embeddings": True,
                "pad_token_id": 0,
            }
        ),
    ),
    "glm4": (Glm4ForCausalLM, Glm4Config(**HALF | {"pad_token_id": 0})),
    "glm4-odd": (Glm4ForCausalLM, Glm4Config(**HALF | ODD | {"attention_bias": False, "pad_token_id": 0})),
    "phi3": (
        Phi3ForCausalLM,
        Phi3Config(**LLAMA | {"pad_token_id": 0, "original_max_position_embeddings": 256}),
    ),
    "phi3-odd": (
        Phi3ForCausalLM,
        Phi3Config(
            **LLAMA | ODD | {"pad_token_id": 0, "original_max_position_embeddings": 256, "sliding_window": 8}
        ),
    ),
    "olmo3": (
        Olmo3ForCausalLM,
        Olmo3Config(**LLAMA | {"num_hidden_layers": 5, "sliding_window": 8, "rope_parameters": BY_LAYER}),
    ),
    "olmo3-odd": (
        Olmo3ForCausalLM,
        Olmo3Config(
            **LLAMA
            | ODD
            | {
                "sliding_window": 8,
                "rope_parameters": BY_LAYER,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            }
        ),
    ),
    "phi": (
        PhiForCausalLM,
        PhiConfig(**LAYER | {"rope_parameters": HALF["rope_parameters"], "intermediate_size": 256}),
    ),
    "phi-odd": (
        PhiForCausalLM,
        PhiConfig(
            **LAYER
            | {
                "hidden_size": 96,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "num_hidden_layers": 3,
                "intermediate_size": 80,
                "rope_parameters": HALF["rope_parameters"],
            }
        ),
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT)),
    "gpt2-odd": (
        GPT2LMHeadModel,
        GPT2Config(**GPT | ODD_GPT | {"n_inner": 80, "scale_attn_by_inverse_layer_idx": True}),
    ),
    "gptj": (
        GPTJForCausalLM,
        GPTJConfig(**GPT | {"rotary_dim": 16, "tie_word_embeddings": False, "n_head": 2}),
    ),
    "gptj-odd": (
        GPTJForCausalLM,
        GPTJConfig(**GPT | ODD_GPT | {"rotary_dim": 16, "tie_word_embeddings": False, "n_inner": 80}),
    ),
    "gpt_neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            **LAYER
            | {
                "intermediate_size": 96,
                "num_attention_heads": 2,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                },
            }
        ),
    ),
    "gpt_neox-odd": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            **LAYER
            | {
                "hidden_size": 96,
                "num_attention_heads": 3,
                "num_hidden_layers": 3,
                "intermediate_size": 80,
                "use_parallel_residual": False,
                "attention_bias": False,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0,
                },
            }
        ),
    ),
    "opt": (OPTForCausalLM, OPTConfig(**OPT)),
    "opt-odd": (
        OPTForCausalLM,
        OPTConfig(
            **OPT
            | {
                "hidden_size": 96,
                "word_embed_proj_dim": 96,
                "num_attention_heads": 3,
                "num_hidden_layers": 3,
                "ffn_dim": 80,
                "activation_function": "gelu",
                "tie_word_embeddings": False,
            }
        ),
    ),
    "bloom": (
        BloomForCausalLM,
        BloomConfig(vocab_size=128, hidden_size=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    ),
    "bloom-odd": (
        BloomForCausalLM,
        BloomConfig(vocab_size=128, hidden_size=96, n_layer=3, n_head=3, bos_token_id=1, eos_token_id=2),
    ),
    "mpt": (
        MptForCausalLM,
        MptConfig(d_model=64, n_heads=4, n_layers=2, max_seq_len=256, vocab_size=128),
    ),
    "mpt-odd": (
        MptForCausalLM,
        MptConfig(
            d_model=96,
            n_heads=3,
            n_layers=3,
            max_seq_len=256,
            vocab_size=128,
            attn_config={"softmax_scale": 0.3},
        ),
    ),
    "openai-gpt": (
        OpenAIGPTLMHeadModel,
        OpenAIGPTConfig(**{k: v for k, v in GPT.items() if k not in ("n_inner", "activation_function")}),
    ),
    "openai-gpt-odd": (
        OpenAIGPTLMHeadModel,
        OpenAIGPTConfig(
            **{k: v for k, v in (GPT | ODD_GPT).items() if k not in ("n_inner", "activation_function")}
        ),
    ),
    "falcon": (FalconForCausalLM, FalconConfig(**FALCON)),
    "falcon-odd": (
        FalconForCausalLM,
        FalconConfig(
            **FALCON
            | {
                "hidden_size": 96,
                "num_attention_heads": 6,
                "num_kv_heads": 2,
                "new_decoder_architecture": True,
                "num_hidden_layers": 3,
            }
        ),
    ),
    "falcon-one": (
        FalconForCausalLM,
        FalconConfig(
            **FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}
        ),
    ),
    "falcon-many": (
        FalconForCausalLM,
        FalconConfig(**FALCON | {"multi_query": False, "parallel_attn": False, "bias": True}),
    ),
}


def hand_on_the_softcap() -> None:
    """Make Gemma 3's eager attention apply the configured cap on scores, as Gemma 2's does."""
    eager = modeling_gemma3.eager_attention_forward

    def capped(module, *args, **kwargs):
        return eager(module, *args, **kwargs | {"softcap": module.attn_logit_softcapping})

    modeling_gemma3.eager_attention_forward = capped


def fill(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Random weights: matrices that preserve the scale of activations, norms around one, biases around zero."""
    tied = model.config.tie_word_embeddings and hasattr(model, "lm_head")
    offset = 0.0 if model.config.model_type == "gemma3_text" else 1.0  # Gemma's norms multiply by 1 + w
    for name, p in sorted(model.named_parameters()):
        if tied and name == "lm_head.weight":
            continue
        x = rng.standard_normal(tuple(p.shape))
        if name.endswith("bias"):
            x *= 0.2
        elif p.ndim == 1:
            x = offset + 0.3 * x
        elif "embed" in name:
            x *= 0.4
        else:
            x *= 1.5 / np.sqrt(p.shape[1])
        p.data.copy_(torch.from_numpy(x.astype(np.float32)))


def redraw(folder: Path, name: str, config: Any) -> None:
    """Replace the weights of a saved model by those that the tests draw again, and write what they need for that."""
    path = folder / "model.safetensors"
    tensors = {key: list(x.shape) for key, x in load_file(path).items()}
    offset = 0.0 if config.model_type in ONE_PLUS else 1.0
    save_file(draw(tensors, name, offset), path, metadata={"format": "pt"})
    recipe = {"seed": name, "offset": offset, "tensors": tensors}
    (folder / "tensors.json").write_text(json.dumps(recipe, indent=0) + "\n")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    hand_on_the_softcap()
    made_with = {name: version(name) for name in ("transformers", "torch", "safetensors", "numpy")}
    for number, (name, (kind, config)) in enumerate(MODELS.items()):
        rng = np.random.default_rng([SEED, number])
        config._attn_implementation = "eager"
        options = {"add_pooling_layer": False} if kind is BertModel else {}
        model = kind(config, **options).eval()
        folder = args.out / name
        if number < COMMITTED:
            fill(model, rng)
            model.save_pretrained(folder)
        else:
            model.save_pretrained(folder)
            redraw(folder, name, config)
        (folder / "generation_config.json").unlink(missing_ok=True)
        ids = rng.integers(3, config.vocab_size, LENGTH).astype(np.int32)
        # Load the saved files again, so that the outputs belong to them.
        again = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", **options
        ).eval()
        out = again(input_ids=torch.from_numpy(ids[None].astype(np.int64)))
        key, value = ("hidden", out.last_hidden_state) if kind is BertModel else ("logits", out.logits)
        value = value[0].numpy()
        np.savez_compressed(
            folder / "expected.npz",
            **{"input_ids": ids, key: value, "made_with": np.array(json.dumps(made_with))},
        )
        if number >= COMMITTED:
            (folder / "model.safetensors").unlink()  # tensors.json stands for it
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: {key} {value.shape}, standard deviation {value.std():.3f}, {size} bytes")


if __name__ == "__main__":
    main()
