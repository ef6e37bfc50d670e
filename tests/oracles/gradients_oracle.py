"""Golden gradients, computed by the automatic differentiation of torch through transformers' models.

    python tests/oracles/gradients_oracle.py --out tests/goldens/gradients/gradients.npz

The committed golden was made with transformers 5.24.0, torch 2.13.0 (CPU) on Python 3.11.

The models are the tiny models of tests/goldens/model/tiny, in float64. OUT has for each model NAME
the ids NAME/ids (T,), and the gradient of logit 3 minus logit 7 after the last token by the output of each block L:
NAME/L (T, D) float32; of S residual streams (T, S * D).
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

TOKENS = 9
MODELS = """
bloom cohere2 falcon falcon-many gemma gemma2 gemma3 glm4 gpt2 gpt_neox gptj granite llama llama-rope3 ministral3
mistral mpt nemotron olmo2 olmo3 openai-gpt opt phi phi3 qwen2 qwen3 seed_oss smollm3 starcoder2
gemma4 gemma4_moe gemma3n gemma3n-odd lfm2 lfm2_moe qwen3_5 qwen3_5_moe qwen3_next falcon_h1 granitemoehybrid nemotron_h
deepseek_v2 deepseek_v3
mixtral qwen2_moe qwen3_moe olmoe granitemoe granitemoeshared gpt_oss llama4 glm4_moe
"""


def blocks_of(model):
    """The list of the model's blocks."""
    lists = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList)]
    count = model.config.get_text_config().num_hidden_layers
    return next(one for one in lists if len(one) == count)


def gradients(name):
    model = AutoModelForCausalLM.from_pretrained(
        TINY[name], dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    model.eval()
    streams = []

    def keep(module, arguments, output):
        x = output[0] if isinstance(output, (tuple, list)) else output
        x.retain_grad()
        streams.append(x)

    for block in blocks_of(model):
        block.register_forward_hook(keep)
    vocabulary = model.config.get_text_config().vocab_size
    ids = np.random.default_rng(len(name)).integers(0, vocabulary, TOKENS)
    logits = model(torch.tensor(ids[None])).logits[0, -1]
    (logits[3] - logits[7]).backward()
    found = [x.grad[0] if x.grad.ndim == 3 else x.grad[:, 0].swapaxes(0, 1).flatten(1) for x in streams]
    return ids, [gradient.numpy().astype(np.float32) for gradient in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    warnings.simplefilter("ignore")
    arrays = {}
    for name in MODELS.split():
        ids, found = gradients(name)
        arrays[f"{name}/ids"] = ids
        arrays |= {f"{name}/{layer}": gradient for layer, gradient in enumerate(found)}
        print(name, len(found), found[0].shape)
    np.savez_compressed(parser.parse_args().out, **arrays)


if __name__ == "__main__":
    main()
