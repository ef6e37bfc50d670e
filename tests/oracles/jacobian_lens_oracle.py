"""Golden Jacobian lenses, computed by the automatic differentiation of torch through transformers' models.

    python tests/oracles/jacobian_lens_oracle.py --out tests/goldens/jacobian_lens

The committed goldens were made with transformers 5.24.0, torch 2.13.0 (CPU) on Python 3.11.

The models are the tiny models of tests/goldens/model/tiny, in float64. OUT/lenses.npz has for each model NAME the ids
NAME/ids (2, T), and the mean Jacobian from the residual stream after block L to the last: NAME/L (D, D) float32. For
each text, row d is the mean over the positions p of Σ ∂h_last[q, d] / ∂h_L[p], where q and p are all positions from
SKIP on except the last one. OUT/lens.pt is the lens of the model "llama" as the reference code saves it, in float16.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.tiny import TINY

from gradients_oracle import blocks_of  # isort: skip

TOKENS, SKIP = 9, 2
MODELS = "gemma3 gpt2 llama mixtral olmo2 qwen2 qwen3-odd"


def jacobians(model, ids):
    """The Jacobian (D, D) of each block before the last for one text."""
    streams = []

    def keep(module, arguments, output):
        streams.append(output[0] if isinstance(output, (tuple, list)) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks_of(model)]
    model(torch.tensor(ids[None]))
    for hook in hooks:
        hook.remove()
    used = slice(SKIP, len(ids) - 1)
    *earlier, last = streams
    rows = [[] for _ in earlier]
    for number in range(last.shape[-1]):
        found = torch.autograd.grad(last[0, used, number].sum(), earlier, retain_graph=True)
        for own, gradient in zip(rows, found):
            own.append(gradient[0, used].mean(0).numpy())
    return [np.stack(own) for own in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    arrays = {}
    for name in MODELS.split():
        model = AutoModelForCausalLM.from_pretrained(
            TINY[name], dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
        ).eval()
        vocabulary = model.config.get_text_config().vocab_size
        ids = np.random.default_rng(len(name)).integers(0, vocabulary, (2, TOKENS))
        found = [np.mean(parts, axis=0) for parts in zip(*(jacobians(model, own) for own in ids))]
        arrays[f"{name}/ids"] = ids
        arrays |= {f"{name}/{layer}": own.astype(np.float32) for layer, own in enumerate(found)}
        print(name, len(found), found[0].shape)
        if name == "llama":
            stored = {layer: torch.tensor(own).to(torch.float16) for layer, own in enumerate(found)}
            lens = {"J": stored, "n_prompts": 2, "source_layers": sorted(stored), "d_model": len(found[0])}
            torch.save(lens, out / "lens.pt")
    np.savez_compressed(out / "lenses.npz", **arrays)


if __name__ == "__main__":
    main()
