"""Tiny encoders whose code is on the model hub, not in transformers, with the outputs of an independent implementation.

    python tests/oracles/hub_encoders_oracle.py --out tests/goldens/model/encoders [NAME...]

This file implements the published definitions in PyTorch, in float64, one function for each part:

    jina_bert   Günther et al. 2023, https://arxiv.org/abs/2310.19923; jinaai/jina-bert-implementation, and for the code
                model jinaai/jina-bert-v2-qk-post-norm
    nomic_bert  Nussbaum and Duderstadt 2025, https://arxiv.org/abs/2502.07972; nomic-ai/nomic-bert-2048
    gte         Zhang et al. 2024, https://arxiv.org/abs/2407.19669; Alibaba-NLP/new-impl, with its NTK scaling

OUT/<name>/ has the files of encoders_oracle.py, with the keys of config.json and the names of tensors of these
repositories. The committed goldens were made with torch 2.13.0 (CPU) on Python 3.11.
"""

import argparse
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import gelu, layer_norm, relu, silu

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import draw

LENGTH, FIRST = 40, 24
V, D, F, L, H, E, N = 128, 64, 96, 2, 4, 3, 3
"""Vocabulary, width, feed-forward width, layers, heads, experts, labels. H is 6 in the ALiBi model of odd shape."""
Weights = dict[str, torch.Tensor]

BERT = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}
JINA = BERT | {
    "model_type": "bert",
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
    "hidden_act": "gelu",
    "emb_pooler": "mean",
    "attn_implementation": None,
}
NOMIC = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "vocab_size": V - 3,
    "pad_vocab_size_multiple": 64,
    "n_embd": D,
    "n_head": H,
    "n_inner": F,
    "n_layer": L,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-12,
    "activation_function": "swiglu",
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "max_trained_positions": 2048,
    "type_vocab_size": 2,
    "prenorm": False,
    "causal": False,
    "use_rms_norm": False,
}
MIXTURE = {
    "activation_function": "gelu",
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "type_vocab_size": 1,
    "moe_every_n_layers": 2,
    "num_experts": E,
    "moe_top_k": 2,
    "moe_normalize_expert_weights": False,
    "expert_choice_router": False,
    "num_shared_experts": 0,
}
NEW = BERT | {
    "model_type": "new",
    "architectures": ["NewModel"],
    "hidden_act": "gelu",
    "position_embedding_type": "rope",
    "rope_theta": 500.0,
    "rope_scaling": {"factor": 2.0, "type": "ntk"},
    "pack_qkv": True,
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "use_memory_efficient_attention": False,
    "unpad_inputs": False,
    "type_vocab_size": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "jina_bert": JINA | {"architectures": ["JinaBertModel"]},
    "jina_bert-odd": JINA
    | {
        "architectures": ["JinaBertModel"],
        "feed_forward_type": "reglu",
        "num_attention_heads": 6,
        "hidden_size": 96,
        "intermediate_size": 160,
    },
    "jina_bert-code": JINA | {"architectures": ["JinaBertModel"]},
    "jina_bert-rank": JINA | {"architectures": ["JinaBertForSequenceClassification"], "num_labels": N},
    "nomic_bert-hub": NOMIC,
    "nomic_bert-geglu": NOMIC
    | {"activation_function": "geglu", "rotary_emb_fraction": 0.5, "rotary_emb_interleaved": True},
    "nomic_bert-mixture": NOMIC | MIXTURE | {"n_layer": 4},
    "gte-ntk": NEW,
    "gte-mixed_ntk": NEW | {"rope_scaling": {"factor": 4.0, "type": "ntk", "mixed_b": 0.75}, "pack_qkv": False},
}


def shapes(name: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a model."""
    found: dict[str, tuple[int, ...]] = {}

    def linear(at: str, rows: int, columns: int, bias: bool = True) -> None:
        found[f"{at}.weight"] = (rows, columns)
        if bias:
            found[f"{at}.bias"] = (rows,)

    def norm(at: str, width: int) -> None:
        found.update({f"{at}.weight": (width,), f"{at}.bias": (width,)})

    family, of_nomic = name.partition("-")[0], "n_embd" in config
    width = config["n_embd" if of_nomic else "hidden_size"]
    inner = config["n_inner" if of_nomic else "intermediate_size"]
    head = "bert." if name == "jina_bert-rank" else ""
    rows = -(-config["vocab_size"] // 64) * 64
    found[f"{head}embeddings.word_embeddings.weight"] = (rows, width)
    if config["type_vocab_size"]:
        found[f"{head}embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], width)
    norm("emb_ln" if of_nomic else f"{head}embeddings.LayerNorm", width)
    for i in range(config["n_layer" if of_nomic else "num_hidden_layers"]):
        at = f"{head}encoder.{'layers' if of_nomic else 'layer'}.{i}"
        if family == "jina_bert":
            for part in ("query", "key", "value"):
                linear(f"{at}.attention.self.{part}", width, width)
            linear(f"{at}.attention.output.dense", width, width)
            norm(f"{at}.attention.output.LayerNorm", width)
            code = name.endswith("code")
            linear(f"{at}.mlp.{'up_gated_layer' if code else 'gated_layers'}", 2 * inner, width, bias=False)
            linear(f"{at}.mlp.{'down_layer' if code else 'wo'}", width, inner)
            more = ("attention.self.layer_norm_q", "attention.self.layer_norm_k", "layer_norm_1", "layer_norm_2")
            for part in more if code else ("mlp.layernorm",):
                norm(f"{at}.{part}", width)
        elif family == "gte":
            for part, count in (("qkv", 3),) if config["pack_qkv"] else (("q", 1), ("k", 1), ("v", 1)):
                linear(f"{at}.attention.{part}_proj", count * width, width)
            linear(f"{at}.attention.o_proj", width, width)
            linear(f"{at}.mlp.up_gate_proj", 2 * inner, width, bias=False)
            linear(f"{at}.mlp.down_proj", width, inner)
            norm(f"{at}.attn_ln", width)
            norm(f"{at}.mlp_ln", width)
        else:
            linear(f"{at}.attn.Wqkv", 3 * width, width, config["qkv_proj_bias"])
            linear(f"{at}.attn.out_proj", width, width, config["qkv_proj_bias"])
            norm(f"{at}.norm1", width)
            norm(f"{at}.norm2", width)
            if is_mixture(config, i):
                linear(f"{at}.mlp.router.layer", E, width, bias=False)
                found |= dict.fromkeys((f"{at}.mlp.experts.mlp.w1", f"{at}.mlp.experts.mlp.w2"), (E * inner, width))
                found[f"{at}.mlp.experts.bias"] = (width,)
            else:
                gated = config["activation_function"] != "gelu"
                for part in ("fc11", "fc12") if gated else ("fc1",):
                    linear(f"{at}.mlp.{part}", inner, width, config["mlp_fc1_bias"])
                linear(f"{at}.mlp.fc2", width, inner, config["mlp_fc2_bias"])
    if head:
        linear("bert.pooler.dense", width, width)
        linear("classifier", N, width)
    return found


def is_mixture(config: dict[str, Any], layer: int) -> bool:
    """True for every second layer of a mixture, beginning with the second layer."""
    period = config.get("moe_every_n_layers", 0)
    return period > 0 and layer % period == 1


class Model:
    """A model in float64."""

    def __init__(self, config: dict[str, Any], weights: Weights) -> None:
        self.config, self.weights = config, weights
        of_nomic = "n_embd" in config
        self.heads = config["n_head" if of_nomic else "num_attention_heads"]
        self.layers = config["n_layer" if of_nomic else "num_hidden_layers"]
        self.eps = config["layer_norm_epsilon" if of_nomic else "layer_norm_eps"]

    def linear(self, x: torch.Tensor, at: str) -> torch.Tensor:
        out = x @ self.weights[f"{at}.weight"].T
        return out + self.weights[f"{at}.bias"] if f"{at}.bias" in self.weights else out

    def norm(self, x: torch.Tensor, at: str) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], self.weights[f"{at}.weight"], self.weights[f"{at}.bias"], self.eps)

    def embed(self, ids: torch.Tensor, types: torch.Tensor, at: str, norm: str) -> torch.Tensor:
        x = self.weights[f"{at}embeddings.word_embeddings.weight"][ids]
        if self.config["type_vocab_size"]:
            x = x + self.weights[f"{at}embeddings.token_type_embeddings.weight"][types]
        return self.norm(x, norm)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | float = 0.0
    ) -> torch.Tensor:
        """Attention of q, k, v (T, D) to both sides."""
        q, k, v = (x.reshape(len(x), self.heads, -1).transpose(0, 1) for x in (q, k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
        return (scores.softmax(-1) @ v).transpose(0, 1).reshape(v.shape[1], -1)

    def rotate(self, x: torch.Tensor, frequencies: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
        """Rotate pairs of values of each head by position times frequency."""
        heads, pairs = x.reshape(len(x), self.heads, -1).clone(), len(frequencies)
        angles = torch.arange(len(x), dtype=torch.float64)[:, None, None] * frequencies
        first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
        second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
        a, b = heads[..., first].clone(), heads[..., second].clone()
        heads[..., first] = a * angles.cos() - b * angles.sin()
        heads[..., second] = b * angles.cos() + a * angles.sin()
        return heads.reshape(x.shape)


def alibi(heads: int, tokens: int) -> torch.Tensor:
    """The bias (H, T, T) of ALiBi to both sides: minus the slope of the head times the distance."""

    def slopes(count: int) -> list[float]:
        power = math.log2(count)
        if power.is_integer():
            return [2 ** (-8 * (i + 1) / count) for i in range(count)]
        nearest = 2 ** math.floor(power)
        return slopes(nearest) + slopes(2 * nearest)[::2][: count - nearest]

    positions = torch.arange(tokens)
    distance = (positions[:, None] - positions).abs()
    return -torch.tensor(slopes(heads), dtype=torch.float64)[:, None, None] * distance


def jina_bert(model: Model, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    head = "bert." if "classifier.weight" in model.weights else ""
    x, bias = model.embed(ids, types, head, f"{head}embeddings.LayerNorm"), alibi(model.heads, len(ids))
    act = relu if model.config["feed_forward_type"] == "reglu" else gelu
    for i in range(model.layers):
        at = f"{head}encoder.layer.{i}"
        q, k, v = (model.linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        code = f"{at}.layer_norm_1.weight" in model.weights
        if code:
            q, k = (model.norm(y, f"{at}.attention.self.layer_norm_{n}") for y, n in ((q, "q"), (k, "k")))
        attended = model.linear(model.attend(q, k, v, bias), f"{at}.attention.output.dense")
        attended = model.norm(attended + x, f"{at}.attention.output.LayerNorm")
        if code:
            x = model.norm(x + attended, f"{at}.layer_norm_1")
            up, gate = model.linear(x, f"{at}.mlp.up_gated_layer").chunk(2, -1)
            x = model.norm(x + model.linear(up * act(gate), f"{at}.mlp.down_layer"), f"{at}.layer_norm_2")
        else:
            gate, up = model.linear(attended, f"{at}.mlp.gated_layers").chunk(2, -1)
            x = model.norm(attended + model.linear(act(gate) * up, f"{at}.mlp.wo"), f"{at}.mlp.layernorm")
    if head:
        return model.linear(model.linear(x[:1], "bert.pooler.dense").tanh(), "classifier")
    return x


def nomic_bert(model: Model, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    config = model.config
    x = model.embed(ids, types, "", "emb_ln")
    dims = int(D // model.heads * config["rotary_emb_fraction"])
    frequencies = config["rotary_emb_base"] ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    for i in range(model.layers):
        at = f"encoder.layers.{i}"
        q, k, v = model.linear(x, f"{at}.attn.Wqkv").chunk(3, -1)
        q, k = (model.rotate(y, frequencies, config["rotary_emb_interleaved"]) for y in (q, k))
        x = model.norm(x + model.linear(model.attend(q, k, v), f"{at}.attn.out_proj"), f"{at}.norm1")
        x = model.norm(x + nomic_mlp(model, x, i), f"{at}.norm2")
    return x


def nomic_mlp(model: Model, x: torch.Tensor, layer: int) -> torch.Tensor:
    at = f"encoder.layers.{layer}.mlp"
    if is_mixture(model.config, layer):
        weights, chosen = model.linear(x, f"{at}.router.layer").softmax(-1).topk(model.config["moe_top_k"])
        first, second = (model.weights[f"{at}.experts.mlp.{name}"].reshape(E, F, D) for name in ("w1", "w2"))
        out = torch.zeros_like(x)
        for token in range(len(x)):
            for weight, expert in zip(weights[token], chosen[token]):
                out[token] += weight * (gelu(x[token] @ first[expert].T) @ second[expert])
        return out + model.weights[f"{at}.experts.bias"]
    if model.config["activation_function"] == "gelu":
        return model.linear(gelu(model.linear(x, f"{at}.fc1")), f"{at}.fc2")
    act = silu if model.config["activation_function"] == "swiglu" else gelu
    return model.linear(model.linear(x, f"{at}.fc11") * act(model.linear(x, f"{at}.fc12")), f"{at}.fc2")


def gte(model: Model, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    x, dims = model.embed(ids, types, "", "embeddings.LayerNorm"), D // model.heads
    scaling, base = model.config["rope_scaling"], model.config["rope_theta"]
    exponents, factor = torch.arange(0, dims, 2, dtype=torch.float64) / dims, scaling["factor"]
    if "mixed_b" in scaling:
        power = scaling["mixed_b"]
        growth = math.log(factor) / (dims / 2) ** power
        divisors = (growth * torch.arange(1, dims // 2 + 1, dtype=torch.float64) ** power).exp()
        frequencies = base**-exponents / divisors
    else:
        frequencies = (base * factor) ** -exponents / factor ** (2 / dims)
    for i in range(model.layers):
        at = f"encoder.layer.{i}"
        if model.config["pack_qkv"]:
            q, k, v = model.linear(x, f"{at}.attention.qkv_proj").chunk(3, -1)
        else:
            q, k, v = (model.linear(x, f"{at}.attention.{part}_proj") for part in "qkv")
        q, k = (model.rotate(y, frequencies) for y in (q, k))
        x = model.norm(x + model.linear(model.attend(q, k, v), f"{at}.attention.o_proj"), f"{at}.attn_ln")
        up, gate = model.linear(x, f"{at}.mlp.up_gate_proj").chunk(2, -1)
        x = model.norm(x + model.linear(gelu(gate) * up, f"{at}.mlp.down_proj"), f"{at}.mlp_ln")
    return x


FUNCTIONS = {"jina_bert": jina_bert, "nomic_bert": nomic_bert, "gte": gte}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="only these models")
    args = parser.parse_args()
    made_with = {name: version(name) for name in ("torch", "numpy")}
    for name, config in MODELS.items():
        if args.names and name not in args.names:
            continue
        folder = args.out / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        recipe = {"seed": name, "offset": 1.0, "tensors": shapes(name, config)}
        (folder / "tensors.json").write_text(json.dumps(recipe, indent=0) + "\n")
        weights = {key: torch.from_numpy(x).double() for key, x in draw(shapes(name, config), name).items()}
        ids = np.random.default_rng([21, len(name)]).integers(5, config["vocab_size"], LENGTH).astype(np.int32)
        saved = {"input_ids": ids, "made_with": np.array(json.dumps(made_with))}
        types = np.zeros(LENGTH, np.int32)
        if config["type_vocab_size"] > 1:
            types = saved["type_ids"] = (np.arange(LENGTH) >= FIRST).astype(np.int32)
        run = FUNCTIONS[name.partition("-")[0]]
        outputs = run(Model(config, weights), torch.from_numpy(ids).long(), torch.from_numpy(types).long())
        saved["outputs"] = outputs.numpy().astype(np.float32)
        np.savez_compressed(folder / "expected.npz", **saved)
        print(f"{name}: {saved['outputs'].shape}, standard deviation {saved['outputs'].std():.3f}")


if __name__ == "__main__":
    main()
