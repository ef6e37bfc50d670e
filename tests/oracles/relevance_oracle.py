"""Golden relevances of tokens, computed by the automatic differentiation of torch through transformers' models.

    python tests/oracles/relevance_oracle.py --out tests/goldens/trace/relevance.json

The committed golden was made with transformers 5.24.0, torch 2.13.0 (CPU) on Python 3.11.

The models are random, with tokens that are bytes. In the backward pass, attention weights, the scales of norms, and
activations (as factors of their neurons, or of what they gate) are constants. The relevance of a token is the product
of its embedding (with its position vector) and of the gradient of the difference of two logits after the last token.

OUT: {family: {"ids": [id], "logit": float, "tokens": [float]}}
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from pellucid.testing import random_model

TEXT = b"the cat sat on the mat"
TOKENS = (65, 66)
FAMILIES = ("qwen2", "gpt2", "gemma2")
softmax = torch.nn.functional.softmax


class Factor(torch.nn.Module):
    """An activation that is a constant factor of its input, or (gated) a constant."""

    def __init__(self, function, gated):
        super().__init__()
        self.function, self.gated = function, gated

    def forward(self, x):
        found = self.function(x)
        return found.detach() if self.gated else x * (found / x).detach()


def layer_norm(self, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt().detach() * self.weight + self.bias


def rms_norm(self, x):
    gemma = type(self).__name__.startswith("Gemma")
    eps = self.eps if gemma else self.variance_epsilon
    scaled = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach()
    return scaled * (1 + self.weight) if gemma else scaled * self.weight


def relevances(family):
    with tempfile.TemporaryDirectory() as folder:
        random_model(family, folder, kind="safetensors", layers=3, context=256)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    for module in list(model.modules()):
        name = type(module).__name__
        if isinstance(module, torch.nn.LayerNorm):
            module.forward = layer_norm.__get__(module)
        elif name.endswith("RMSNorm"):
            module.forward = rms_norm.__get__(module)
        elif name.endswith("MLP"):
            attribute = "act" if hasattr(module, "act") else "act_fn"
            setattr(module, attribute, Factor(getattr(module, attribute), hasattr(module, "gate_proj")))
    streams = []

    def keep(module, arguments, keywords):
        """Make the input of the first block a leaf, whose gradient is wanted."""
        x = arguments[0] if arguments else keywords["hidden_states"]
        streams.append(x.detach().requires_grad_())
        return (
            ((streams[0], *arguments[1:]), keywords) if arguments else ((), {**keywords, "hidden_states": streams[0]})
        )

    first = model.transformer.h[0] if family == "gpt2" else model.model.layers[0]
    first.register_forward_pre_hook(keep, with_kwargs=True)
    torch.nn.functional.softmax = lambda *rest, **named: softmax(*rest, **named).detach()
    logits = model(torch.tensor([list(TEXT)])).logits[0, -1]
    torch.nn.functional.softmax = softmax
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = cap * torch.atanh(logits / cap)
    logit = logits[TOKENS[0]] - logits[TOKENS[1]]
    (gradient,) = torch.autograd.grad(logit, streams[0])
    tokens = (gradient * streams[0])[0].sum(-1)
    return {"ids": list(TEXT), "logit": float(logit.detach()), "tokens": tokens.tolist()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    found = {family: relevances(family) for family in FAMILIES}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
