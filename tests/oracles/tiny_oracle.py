"""Tiny models with random weights, one per family and variant, with the outputs of transformers.

    python tests/oracles/tiny_oracle.py --out tests/goldens/model/tiny [NAME...]

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU), safetensors 0.8.0 on Python 3.11, in
float32 with eager attention. The weights come from numpy's PCG64 with the seed below, drawn in the order of the
tensors' names, so the script reproduces the same files.

OUT/<name>/ has config.json and model.safetensors (float32) as transformers saves them. Instead of the weights it may
have tensors.json, and tests draw the weights again (tests/support/drawn.py). expected.npz has:

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
    mixtral, qwen2_moe, qwen3_moe, olmoe, gpt_oss, glm4_moe, granitemoe, granitemoeshared
                    mixtures of experts; shared experts, groups of experts, layers without experts in some
    qwen3_next, qwen3_5, qwen3_5_moe
                    Gated DeltaNets with two value heads for a key head, gated attention in the last of four layers;
                    -odd: heads of 24 and 40, two layers with attention
    granitemoehybrid, falcon_h1, nemotron_h
                    Mamba-2 instead of attention, beside it, and in layers of its own
    lfm2, lfm2_moe  gated short convolutions
    gpt_oss-mxfp4   experts as in the published files, decoded by transformers
    qwen2-window, smollm3-window
                    windows that use_sliding_window switches on
    mpt-clip        queries, keys and values kept within 1, slopes to 2^-16 (transformers 5.24 does not hand them on to
                    its attention; this script does)
    gemma3n         four residual streams, the first active; -odd: three, the second
    opt-post, opt-narrow
                    norms after the sums, a narrower embedding, norms without weights
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
import transformers
from safetensors.numpy import load_file, save_file
from tiny_models import MODELS
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.mpt import modeling_mpt

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import draw

SEED, LENGTH = 20, 40
COMMITTED = 10  # the first models have committed weights; tests draw the weights of the others
ONE_PLUS = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "nemotron",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
)  # model types whose norms multiply by 1 + w


def hand_on_the_softcap() -> None:
    """Make Gemma 3's eager attention apply the configured cap on scores, as Gemma 2's does."""
    eager = modeling_gemma3.eager_attention_forward

    def capped(module, *args, **kwargs):
        return eager(module, *args, **kwargs | {"softcap": module.attn_logit_softcapping})

    modeling_gemma3.eager_attention_forward = capped


def hand_on_the_slopes() -> None:
    """Make MPT use the configured largest exponent of ALiBi's slopes; transformers 5.24 always takes 8."""
    model = modeling_mpt.MptModel
    build = modeling_mpt.build_mpt_alibi_tensor

    def stated(self, num_heads, sequence_length, alibi_bias_max=8, device=None):
        return build(num_heads, sequence_length, self.config.attn_config.alibi_bias_max, device)

    model.build_mpt_alibi_tensor = stated


def made(classes: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Class and configuration of a model."""
    model, _, config = classes.partition(":")
    kind = getattr(transformers, model if config else f"{model}ForCausalLM")
    # Some configurations modify their arguments, so each gets a copy.
    return kind, getattr(transformers, config or f"{model}Config")(**copy.deepcopy(options))


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


def packed(name: str, shape: list[int]) -> list[tuple[str, list[int]]]:
    """Names and shapes of a tensor. Tensors of experts become MXFP4 blocks and scales, stored as (outputs, inputs)."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return [(name, shape)]
    experts, inputs, outputs = shape
    scales = [experts, outputs, inputs // 32]
    return [(f"{name}_blocks", [*scales, 16]), (f"{name}_scales", scales)]


def decode(model: torch.nn.Module, path: Path) -> None:
    """Load weights, some of them in MXFP4."""
    stored = {name: torch.from_numpy(x) for name, x in load_file(path).items()}
    for blocks in [name for name in stored if name.endswith("_blocks")]:
        name = blocks.removesuffix("_blocks")
        scales = stored.pop(f"{name}_scales")
        stored[name] = convert_moe_packed_tensors(stored.pop(blocks), scales, dtype=torch.float32)
    model.load_state_dict(stored)


def redraw(folder: Path, name: str, config: Any) -> None:
    """Replace the weights of a saved model by drawn weights, and write tensors.json so that tests can draw them."""
    path = folder / "model.safetensors"
    tensors = {key: list(x.shape) for key, x in load_file(path).items()}
    if hasattr(config, "quantization_config"):
        tensors = dict(entry for key, shape in tensors.items() for entry in packed(key, shape))
    offset = 0.0 if config.get_text_config().model_type in ONE_PLUS else 1.0
    save_file(draw(tensors, name, offset), path, metadata={"format": "pt"})
    recipe = {"seed": name, "offset": offset, "tensors": tensors}
    (folder / "tensors.json").write_text(json.dumps(recipe, indent=0) + "\n")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="only these models")
    args = parser.parse_args()
    hand_on_the_softcap()
    hand_on_the_slopes()
    made_with = {name: version(name) for name in ("transformers", "torch", "safetensors", "numpy")}
    for number, (name, (classes, options_)) in enumerate(MODELS.items()):
        if args.names and name not in args.names:
            continue
        kind, config = made(classes, options_)
        rng = np.random.default_rng([SEED, number])
        # Falcon's eager attention adds ALiBi twice, to the mask and to the scores.
        attention = "sdpa" if getattr(config, "alibi", False) else "eager"
        config._attn_implementation = attention
        options = {"add_pooling_layer": False} if kind is transformers.BertModel else {}
        model = kind(config, **options).eval()
        folder = args.out / name
        if number < COMMITTED:
            fill(model, rng)
            model.save_pretrained(folder)
        else:
            model.save_pretrained(folder)
            redraw(folder, name, config)
        (folder / "generation_config.json").unlink(missing_ok=True)
        ids = rng.integers(3, config.get_text_config().vocab_size, LENGTH).astype(np.int32)
        # Load the saved files, so that the outputs belong to the files.
        if hasattr(config, "quantization_config"):
            decode(again := model, folder / "model.safetensors")
        else:
            again = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention, **options).eval()
        out = again(input_ids=torch.from_numpy(ids[None].astype(np.int64)))
        key, value = ("hidden", out.last_hidden_state) if kind is transformers.BertModel else ("logits", out.logits)
        value = value[0].numpy()
        np.savez_compressed(
            folder / "expected.npz", **{"input_ids": ids, key: value, "made_with": np.array(json.dumps(made_with))}
        )
        if number >= COMMITTED:
            (folder / "model.safetensors").unlink()  # replaced by tensors.json
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: {key} {value.shape}, standard deviation {value.std():.3f}, {size} bytes")


if __name__ == "__main__":
    main()
