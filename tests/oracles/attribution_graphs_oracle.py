"""Golden attribution graphs, computed by the automatic differentiation of torch through transformers' models, float64.

    python tests/oracles/attribution_graphs_oracle.py --out tests/goldens/attribution_graphs [CASE...]
    python tests/oracles/attribution_graphs_oracle.py --out tests/goldens/attribution_graphs --circuit-tracer

The first command makes the goldens; the committed ones were made with transformers 5.24.0, torch 2.13.0 (CPU) on Python
3.11. The second compares most of those with dictionaries with the graphs of circuit-tracer 0.5.0 (on transformers
4.57.3 and transformer-lens 3.2.1, which it needs), and writes nothing.

The models are the tiny models of tests/goldens/model/tiny. Constants: the attention patterns, the scales of all
norms (a layer norm's subtraction of the mean is linear), and the coefficients of several residual streams. The output
of each feed-forward, before a norm that follows it, is cut: it is the sum of units and an error. The rest is linear.
OUT/<model>-<kind>/ has for the kinds

    transcoders  a transcoder of F features with ReLU for each layer, from the feed-forward's input to its output,
                 in circuit-tracer's files: config.yaml, layer_<L>.safetensors. Units: the features
    cross-layer  a cross-layer transcoder, in circuit-tracer's files: config.yaml, W_enc_<L>.safetensors,
                 W_dec_<L>.safetensors. Units: the features, each the sum over the layers that it writes to
    neurons      no dictionary. Units: the neurons, with the down projection's columns as vectors; of a mixture of
                 experts with E experts of F' neurons neuron j of expert e has the number e F' + j, and neuron j of
                 the shared expert the number E F' + j

and expected.npz, of L layers, T tokens, F units in a layer, N targets:

    model        str               the folder in tests/goldens/model/tiny
    ids          int32   (T,)
    kinds        str     (N,)      kinds of the targets: three of "logit", then "feature" or "neuron"
    targets      int32   (N, 3)    their layers, tokens, and features or neurons; of logits L, T - 1 and the token id
    values       float32 (N,)      their values
    features     float32 (N, L, T, F)  edges from the units: activation × the unit's vector · the target's gradient
    errors       float32 (N, L, T)     from the errors: the feed-forward's output less its units, so with b_dec
    embeddings   float32 (N, T)        from the tokens' embeddings, as they enter the first block, without positions;
                                       with the embeddings of each layer, if the model has them
    positions    float32 (N, T)        from the positions' embeddings; only for models that learn them
    rest         float32 (N,)      the values less all edges: biases
    activations  float32 (L, T, F)

Logits: the three greatest after the last token, before a soft-cap, less the mean of all logits. Features: all active
ones, by their values before the ReLU. Neurons: 40 random ones; a neuron act(g) * u has the linear form
r/2 * (u * Wg + g * Wu) · x with r = act(g) / g, a neuron act(z) without a gate has r * W · x with r = act(z) / z. A
threshold of gates has the linear form of its derivative. A gated embedding of a layer has the form of a neuron.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock
from zlib import crc32

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn import draw

TINY = Path(__file__).parents[1] / "goldens" / "model" / "tiny"
F, LOGITS, NEURONS = 24, 3, 40
KINDS = {
    "transcoders": ["llama", "qwen2", "gemma3", "gpt2", "qwen3", "olmo2", "gemma4"],
    "cross-layer": ["llama", "qwen3-odd"],
    "neurons": [
        "llama",
        "qwen2",
        "gemma3",
        "gpt2",
        "qwen3",
        "olmo2",
        "gemma4",
        "gemma3n",
        "gemma3n-odd",
        "qwen2_moe",
        "qwen3_moe",
    ],
}
CASES = {f"{model}-{kind}": (model, kind) for kind, models in KINDS.items() for model in models}
WITHOUT = ("olmo2-transcoders", "qwen3-odd-cross-layer", "gemma4-transcoders")
"""Not compared with circuit-tracer: transformer-lens reads neither OLMo 2's key/value heads that several queries share
nor Qwen 3's biases, and no Gemma 4."""
TOKENS = {"gemma3-neurons": 11}
"""Other lengths than 7: more than the window of 8."""
HOOKS = {"olmo2": "hook_resid_mid"}
"""Hooks of the feed-forward's input other than ``mlp.hook_in``: there is no norm before it."""
MEAN = torch.mean
Arrays = dict[str, np.ndarray]


def load(name: str) -> Any:
    """A tiny model in float64; if it has ``tensors.json`` instead of weights, they are drawn."""
    with TemporaryDirectory() as copy:
        folder = shutil.copytree(TINY / name, Path(copy) / name)
        if (recipe := folder / "tensors.json").exists():
            said = json.loads(recipe.read_text())
            weights = draw(said["tensors"], said["seed"], said["offset"])
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
        )
    return model.eval().requires_grad_(False)


def parts(model: Any) -> SimpleNamespace:
    """The modules of a model."""
    base = model.transformer if hasattr(model, "transformer") else model.model
    blocks = base.h if hasattr(base, "h") else base.layers
    mlps = [block.mlp for block in blocks]
    gated = hasattr(mlps[0], "gate_proj")
    dense = [mlp for mlp in mlps if not hasattr(mlp, "experts")]
    return SimpleNamespace(
        embedding=base.get_input_embeddings(),
        tables=getattr(base, "embed_tokens_per_layer", None),
        positions=getattr(base, "wpe", None),
        blocks=blocks,
        mlps=mlps,
        gates=[mlp.gate_proj if gated else mlp.c_fc for mlp in dense],
        ups=[mlp.up_proj if gated else None for mlp in dense],
        activation=mlps[0].act_fn if gated else getattr(mlps[0], "act", None),
        downs=[mlp.down_proj if gated else mlp.c_proj for mlp in dense],
        last_norm=base.ln_f if hasattr(base, "ln_f") else base.norm,
        norms=[one for one in model.modules() if "RMSNorm" in type(one).__name__ or is_layer_norm(one)],
    )


def is_layer_norm(module: Any) -> bool:
    return isinstance(module, torch.nn.LayerNorm)


def rows(projection: Any) -> torch.Tensor:
    """The weights of a projection as (outputs, inputs)."""
    return projection.weight if isinstance(projection, torch.nn.Linear) else projection.weight.T


def ratio(activation: Any, x: torch.Tensor) -> torch.Tensor:
    """act(x) / x."""
    zero = torch.zeros((), dtype=x.dtype, requires_grad=True)
    slope = torch.autograd.grad(activation(zero), zero)[0]
    return torch.where(x == 0, slope, activation(x) / torch.where(x == 0, 1.0, x))


class Frozen:
    """One pass of a model as a linear function of its leaves, with the constants of ``of``, if any, and leaves of 0.

    ``x`` are the inputs of the feed-forwards, ``outputs`` the cut outputs, ``last`` the output of the last norm.
    """

    def __init__(self, model: Any, ids: np.ndarray, of: Frozen | None = None) -> None:
        self.model, self.parts = model, parts(model)
        self.constants: list[torch.Tensor] = []
        self.past = iter(of.constants) if of else None
        self.embeddings: list[torch.Tensor] = []
        self.tables: list[torch.Tensor] = []
        self.positions: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.x: list[torch.Tensor] = []
        self.hidden: list[torch.Tensor] = []
        self.lasts: list[torch.Tensor] = []
        with self.instrumented():
            self.logits = model(torch.tensor(ids[None])).logits[0]
        (self.last,) = self.lasts

    def constant(self, value: torch.Tensor) -> torch.Tensor:
        self.constants.append(value.detach() if self.past is None else next(self.past))
        return self.constants[-1]

    def norm(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        if is_layer_norm(module):
            x = x - x.mean(-1, keepdim=True)
        eps = next(getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name))
        scale = self.constant((x * x).mean(-1, keepdim=True).add(eps).rsqrt())
        if is_layer_norm(module):
            return x * scale * module.weight + module.bias
        weight = module.weight if getattr(module, "with_scale", True) else 1.0
        added = type(module).__name__ in ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")
        return x * scale * (weight + added)

    def softmax(self, scores: torch.Tensor, dim: int = -1, dtype: Any = None) -> torch.Tensor:
        return self.constant(torch.softmax(scores.double(), dim))

    def mean(self, *given: Any, keepdim: bool = False, **how: Any) -> torch.Tensor:
        """The lengths of streams are constants, the mean of streams is not."""
        found = MEAN(*given, keepdim=keepdim, **how)
        return self.constant(found) if keepdim else found

    def gated_embedding(self, block: Any) -> Iterator[Any]:
        """Make the product of a block's gate and its embedding linear. Yields the handles of the hooks."""
        width, factors = block.hidden_size_per_layer_input, []

        def vector(module: Any, given: Any, named: Any) -> None:
            one = [x for x in (*given, *named.values()) if torch.is_tensor(x) and x.shape[-1:] == (width,)]
            factors[:] = one

        def gate(module: Any, given: Any, output: torch.Tensor) -> None:
            factors.append(output)

        def product(module: Any, given: Any) -> tuple[torch.Tensor]:
            p, g = factors
            r, p0, g0 = (self.constant(x) for x in (ratio(block.act_fn, g), p, g))
            return (r / 2 * (g * p0 + g0 * p),)

        yield block.register_forward_pre_hook(vector, with_kwargs=True)
        yield block.per_layer_input_gate.register_forward_hook(gate)
        yield block.per_layer_projection.register_forward_pre_hook(product)

    def leaf(self, kept: list[torch.Tensor], module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        value = output.detach() if self.past is None else torch.zeros_like(output)
        kept.append(value.clone().requires_grad_())
        return kept[-1]

    @contextmanager
    def instrumented(self) -> Iterator[None]:
        def keep(kept: list[torch.Tensor], module: Any, values: Any) -> None:
            kept.append(values[0][0])

        m = self.parts
        handles = [m.embedding.register_forward_hook(partial(self.leaf, self.embeddings))]
        if m.tables:
            handles.append(m.tables.register_forward_hook(partial(self.leaf, self.tables)))
            for block in m.blocks:
                handles += self.gated_embedding(block)
        mixers = [block.altup for block in m.blocks if hasattr(block, "altup")]
        for mixer in mixers:
            route = mixer.compute_router_modalities
            mixer.compute_router_modalities = lambda x, route=route: self.constant(route(x))
        if m.positions:
            handles.append(m.positions.register_forward_hook(partial(self.leaf, self.positions)))
        for mlp in m.mlps:
            handles.append(mlp.register_forward_pre_hook(partial(keep, self.x)))
            handles.append(mlp.register_forward_hook(partial(self.leaf, self.outputs)))
        handles += [down.register_forward_pre_hook(partial(keep, self.hidden)) for down in m.downs]
        for norm in m.norms:
            norm.forward = partial(self.norm, norm)
        handles.append(m.last_norm.register_forward_hook(lambda _, inputs, output: self.lasts.append(output[0])))
        try:
            with (
                mock.patch.object(torch.nn.functional, "softmax", self.softmax),
                mock.patch.object(torch, "mean", self.mean),
            ):
                yield
        finally:
            for norm in m.norms:
                del norm.forward
            for mixer in mixers:
                del mixer.compute_router_modalities
            for handle in handles:
                handle.remove()

    def gradients(self, value: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of a scalar by the feed-forwards' outputs (L, T, D), and edges (T,) from embeddings and positions."""
        groups = {"embeddings": [*self.embeddings, *self.tables], "positions": self.positions}
        leaves = [*self.outputs, *(one for group in groups.values() for one in group)]
        found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(leaf[0]) if g is None else g[0] for leaf, g in zip(leaves, found)]
        rest = iter(filled[len(self.outputs) :])
        edges = {name: sum((leaf[0] * next(rest)).sum(-1) for leaf in group) for name, group in groups.items() if group}
        return torch.stack(filled[: len(self.outputs)]), edges


def dictionary(folder: Path, layers: int, D: int, cross: bool, reads: str, rng: np.random.Generator) -> None:
    """Random transcoders in circuit-tracer's files."""
    folder.mkdir(parents=True, exist_ok=True)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    for layer in range(layers):
        writes = (layers - layer,) if cross else ()
        tensors = {
            "W_enc": normal(F, D) / D**0.5, "b_enc": 0.3 * normal(F) - 0.4,
            "W_dec": 0.3 * normal(F, *writes, D), "b_dec": 0.2 * normal(D),
        }  # fmt: skip
        arrays = {name: np.float32(one) for name, one in tensors.items()}
        if not cross:
            save_file(arrays, folder / f"layer_{layer}.safetensors")
            continue
        save_file({f"W_dec_{layer}": arrays.pop("W_dec")}, folder / f"W_dec_{layer}.safetensors")
        save_file({f"{name}_{layer}": one for name, one in arrays.items()}, folder / f"W_enc_{layer}.safetensors")
    kind = "cross_layer_transcoder" if cross else "transcoder_set"
    (folder / "config.yaml").write_text(
        f'model_name: "tiny/model"\nmodel_kind: {kind}\n'
        f"feature_input_hook: {reads}\nfeature_output_hook: mlp.hook_out\nscan: tiny\n"
    )


def read(folder: Path, layers: int) -> list[dict[str, torch.Tensor]]:
    """The arrays of a dictionary, each layer's; ``W_dec`` as (F, layers that it writes to, D)."""
    found = []
    for layer in range(layers):
        arrays: Arrays = {}
        for name in ("layer", "W_enc", "W_dec"):
            if (path := folder / f"{name}_{layer}.safetensors").exists():
                arrays |= load_file(path)
        one = {name.removesuffix(f"_{layer}"): torch.from_numpy(array).double() for name, array in arrays.items()}
        one["W_dec"] = one["W_dec"].reshape(F, -1, one["W_dec"].shape[-1])
        found.append(one)
    return found


class Features:
    """Units and targets of a dictionary: the active features."""

    kind = "feature"

    def __init__(self, coders: list[dict[str, torch.Tensor]], run: Frozen) -> None:
        self.coders = coders
        self.decoders = [one["W_dec"] for one in coders]
        before = torch.stack([x @ one["W_enc"].T + one["b_enc"] for one, x in zip(coders, run.x)]).detach()
        if before.abs().min() < 3e-5:
            raise ValueError(f"a feature at {before.abs().min()} is neither active nor silent: draw others")
        self.activations = before.relu()
        self.scales = torch.ones_like(self.activations)

    def chosen(self, rng: np.random.Generator) -> list[list[int]]:
        return self.activations.nonzero().tolist()

    def target(self, run: Frozen, layer: int, token: int, feature: int) -> torch.Tensor:
        one = self.coders[layer]
        return one["W_enc"][feature] @ run.x[layer][token] + one["b_enc"][feature]


class Neurons:
    """Units and targets without a dictionary: the neurons."""

    kind = "neuron"

    def __init__(self, run: Frozen) -> None:
        widest, pad = max(one.shape[1] for one in run.hidden), torch.nn.functional.pad
        vectors = [rows(down).T[:, None] for down in run.parts.downs]
        self.decoders = [pad(one, (0, 0, 0, 0, 0, widest - len(one))) for one in vectors]
        padded = [pad(one, (0, widest - one.shape[1])) for one in run.hidden]
        self.activations = torch.stack(padded).detach()
        self.scales = torch.ones_like(self.activations)
        self.linear = [self.forms(run, layer) for layer in range(len(run.x))]

    @staticmethod
    def forms(run: Frozen, layer: int) -> Callable[[torch.Tensor, int, int], torch.Tensor]:
        """The function of x, a token and a neuron, that is linear in x."""
        gate, up, mlp = run.parts.gates[layer], run.parts.ups[layer], run.parts.mlps[layer]
        g = before = gate(run.x[layer]).detach()
        sparse = getattr(mlp, "activation_sparsity", 0) > 0
        if sparse:
            g = mlp._gaussian_topk(before)
        r = ratio(run.parts.activation, g)
        if up is None:
            return lambda x, token, neuron: r[token, neuron] * gate(x)[neuron]

        def gates(x: torch.Tensor, token: int) -> torch.Tensor:
            own = gate(x)
            return torch.func.jvp(mlp._gaussian_topk, (before[token],), (own,))[1] if sparse else own

        u = up(run.x[layer]).detach()

        def form(x: torch.Tensor, token: int, neuron: int) -> torch.Tensor:
            at = (token, neuron)
            return r[at] / 2 * (u[at] * gates(x, token)[neuron] + g[at] * up(x)[neuron])

        return form

    def chosen(self, rng: np.random.Generator) -> list[list[int]]:
        active = self.activations.nonzero()
        picked = rng.choice(len(active), NEURONS, replace=False)
        return active[np.sort(picked)].tolist()

    def target(self, run: Frozen, layer: int, token: int, neuron: int) -> torch.Tensor:
        return self.linear[layer](run.x[layer][token], token, neuron)


class Experts(Neurons):
    """Units and targets of mixtures: the neurons of the chosen experts and of the shared expert."""

    def __init__(self, run: Frozen) -> None:
        parts = [self.opened(mlp, x.detach()) for mlp, x in zip(run.parts.mlps, run.x)]
        self.activations, self.scales = (torch.stack([one[at] for one in parts]) for at in (0, 1))
        self.decoders, self.linear = [one[2] for one in parts], [one[3] for one in parts]

    @staticmethod
    def opened(mlp: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
        """The activations and their factors in the output (T, U), the vectors (U, 1, D), and the linear forms."""
        experts, width = mlp.experts, mlp.experts.gate_up_proj.shape[1]
        F = width // 2
        gate_rows, up_rows = (experts.gate_up_proj[:, :F].flatten(0, 1), experts.gate_up_proj[:, F:].flatten(0, 1))
        vectors = experts.down_proj.swapaxes(1, 2).flatten(0, 1)
        p = torch.softmax(x @ mlp.gate.weight.T, -1)
        best = p.topk(mlp.gate.top_k, -1)
        kept = best.values / best.values.sum(-1, keepdim=True) if mlp.gate.norm_topk_prob else best.values
        scales = torch.zeros_like(p).scatter(1, best.indices, kept).repeat_interleave(F, 1)
        if hasattr(mlp, "shared_expert"):
            shared = mlp.shared_expert
            gate_rows = torch.cat([gate_rows, shared.gate_proj.weight])
            up_rows = torch.cat([up_rows, shared.up_proj.weight])
            vectors = torch.cat([vectors, shared.down_proj.weight.T])
            opened = torch.sigmoid(mlp.shared_expert_gate(x)).expand(-1, len(shared.gate_proj.weight))
            scales = torch.cat([scales, opened], 1)
        g, u = x @ gate_rows.T, x @ up_rows.T
        r = ratio(experts.act_fn, g)

        def form(x: torch.Tensor, token: int, neuron: int) -> torch.Tensor:
            at = (token, neuron)
            return r[at] / 2 * (u[at] * (gate_rows[neuron] @ x) + g[at] * (up_rows[neuron] @ x))

        return torch.where(scales > 0, experts.act_fn(g) * u, 0), scales, vectors[:, None], form


def written(units: Features | Neurons) -> torch.Tensor:
    """The sums of the units in the feed-forwards' outputs (L, T, D)."""
    L = len(units.decoders)
    sums = [
        sum(
            (units.activations * units.scales)[layer] @ units.decoders[layer][:, at - layer]
            for layer in range(at + 1)
            if at - layer < units.decoders[layer].shape[1]
        )
        for at in range(L)
    ]
    return torch.stack(sums)


def graph(folder: Path, name: str) -> dict[str, Any]:
    """The arrays of a case, in float64, and its ``gradients`` (N, L, T, D)."""
    model_name, kind = CASES[name]
    model, rng = load(model_name), np.random.default_rng(crc32(name.encode()))
    ids = rng.integers(3, model.config.vocab_size, TOKENS.get(name, 7)).astype(np.int32)
    ids[0] = 1
    run = Frozen(model, ids)
    blank = Frozen(model, ids, run)
    plain = model(torch.tensor(ids[None])).logits[0]
    torch.testing.assert_close(run.logits, plain, rtol=1e-5, atol=1e-5)  # RMS norms and scores are float32
    L, T, D = len(run.outputs), len(ids), run.last.shape[1]
    experts = hasattr(run.parts.mlps[0], "experts")
    units: Features | Neurons = Features(read(folder / name, L), run) if kind != "neurons" else (
        Experts(run) if experts else Neurons(run)
    )  # fmt: skip
    outputs = torch.cat([one.detach() for one in run.outputs])
    left = outputs - written(units)
    if kind == "neurons":
        biases = [getattr(down, "bias", None) for down in run.parts.downs or run.parts.mlps]
        constant = torch.stack([torch.zeros(D) if bias is None else bias for bias in biases]).double()
        torch.testing.assert_close(left, constant[:, None].expand(L, T, D))

    unembedding = model.get_output_embeddings().weight
    best = plain[-1].topk(LOGITS + 1)
    if best.values.diff().abs().min() < 1e-4:
        raise ValueError("two logits are about the same: draw other ids")
    targets = [[L, T - 1, int(token)] for token in best.indices[:LOGITS]] + units.chosen(rng)

    def scalar(of: Frozen, layer: int, token: int, unit: int) -> torch.Tensor:
        if layer < L:
            return units.target(of, layer, token, unit)
        return (unembedding[unit] - unembedding.mean(0)) @ of.last[token]

    kept: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("values", "features", "errors", "embeddings", "positions", "rest", "gradients")
    }
    for layer, token, unit in targets:
        value = scalar(run, layer, token, unit)
        by_outputs, of_tokens = run.gradients(value)
        edges = {
            "features": torch.stack(
                [
                    units.activations[at]
                    * units.scales[at]
                    * torch.einsum("mtd,fmd->tf", by_outputs[at : at + W.shape[1]], W)
                    for at, W in enumerate(units.decoders)
                ]
            ),
            "errors": (left * by_outputs).sum(-1),
            **of_tokens,
        }
        for key, one in edges.items():
            by_token = one if key != "features" else one.abs().sum(-1)
            assert not by_token[..., token + 1 :].any(), f"{key}: an edge from a later token"
        for key in ("features", "errors"):
            assert not edges[key][layer:].any(), f"{key}: an edge from a later layer"
        rest = value - sum(one.sum() for one in edges.values())
        # With all leaves 0 and the same constants, the target is the rest.
        torch.testing.assert_close(rest, scalar(blank, layer, token, unit), rtol=1e-9, atol=1e-9)
        found = {"values": value, **edges, "rest": rest, "gradients": by_outputs}
        for key, one in found.items():
            kept[key].append(one.detach())
    arrays = {key: torch.stack(ones).numpy() for key, ones in kept.items() if ones}
    of_units = [tuple(one) for one in targets[LOGITS:]]
    at = tuple(np.array(of_units).T)
    np.testing.assert_allclose(arrays["values"][LOGITS:], units.activations.numpy()[at], atol=1e-9)
    return {
        "model": np.array(model_name),
        "ids": ids,
        "kinds": np.array(["logit"] * LOGITS + [units.kind] * len(of_units)),
        "targets": np.array(targets, np.int32),
        **arrays,
        "activations": units.activations.numpy(),
    }


def make(folder: Path, name: str) -> None:
    model, kind = CASES[name]
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir(parents=True)
    if kind != "neurons":
        config = json.loads((TINY / model / "config.json").read_text())
        layers, D = (
            next(config[one] for one in names if one in config)
            for names in (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"))
        )
        rng = np.random.default_rng([7, crc32(name.encode())])
        dictionary(folder / name, layers, D, kind == "cross-layer", HOOKS.get(model, "mlp.hook_in"), rng)
    arrays = graph(folder, name)
    del arrays["gradients"]
    small = {key: np.float32(one) if one.dtype == np.float64 else one for key, one in arrays.items()}
    np.savez_compressed(folder / name / "expected.npz", **small)
    size = (folder / name / "expected.npz").stat().st_size
    print(f"{name}: {len(arrays['ids'])} tokens, {len(arrays['kinds'])} targets, {size} bytes")
    for key in ("values", "features", "errors", "embeddings", "positions", "rest"):
        if key in arrays:
            print(f"    {key:10} largest {np.abs(arrays[key]).max():.3g}")


class FirstIsSpecial:
    """A tokenizer for circuit-tracer: it prepends no token to ids that begin with a special one."""

    padding_side = "right"

    def __init__(self, ids: np.ndarray, vocab_size: int) -> None:
        self.all_special_ids, self.vocab_size = [int(ids[0])], vocab_size

    def decode(self, ids: Any) -> str:
        return str(ids)


def replaced(folder: Path, name: str, ids: np.ndarray) -> Any:
    """The replacement model of circuit-tracer, in float64, of a case."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    model_name, kind = CASES[name]
    model = load(model_name)
    own = model.config
    if model_name == "gpt2":
        options = {
            "act_fn": own.activation_function, "eps": own.layer_norm_epsilon, "normalization_type": "LN",
            "d_head": own.hidden_size // own.num_attention_heads, "d_mlp": 4 * own.hidden_size,
        }  # fmt: skip
    else:
        options = {
            "act_fn": getattr(own, "hidden_act", "gelu_pytorch_tanh"), "eps": own.rms_norm_eps,
            "normalization_type": "RMS", "final_rms": True, "d_head": own.head_dim, "d_mlp": own.intermediate_size,
            "gated_mlp": True, "n_key_value_heads": own.num_key_value_heads, "rotary_dim": own.head_dim,
            "positional_embedding_type": "rotary", "rotary_adjacent_pairs": False,
            "use_qk_norm": model_name in ("qwen3", "gemma3"),
        }  # fmt: skip
    if model_name == "gemma3":
        options |= {
            "use_normalization_before_and_after": True, "rotary_base": 1000000, "rotary_base_local": 10000,
            "use_local_attn": True, "window_size": own.sliding_window,
            "attn_types": ["local" if one == "sliding_attention" else "global" for one in own.layer_types],
        }  # fmt: skip
    config = HookedTransformerConfig(
        n_layers=own.num_hidden_layers,
        d_model=own.hidden_size,
        n_heads=own.num_attention_heads,
        d_vocab=own.vocab_size,
        n_ctx=own.max_position_embeddings,
        dtype=torch.float64,
        device="cpu",
        **options,
    )
    cpu = {"device": torch.device("cpu"), "dtype": torch.float64, "lazy_encoder": False, "lazy_decoder": False}
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out", "scan": "tiny"}
    if kind == "cross-layer":
        transcoders = load_clt(str(folder / name), **hooks, **cpu)
    else:
        paths = {layer: str(folder / name / f"layer_{layer}.safetensors") for layer in range(config.n_layers)}
        transcoders = load_transcoder_set(paths, **hooks, **cpu)
    made = TransformerLensReplacementModel(config)
    convert = getattr(weight_conversions, f"convert_{model_name.replace('gemma3', 'gemma')}_weights")
    missing, unexpected = made.load_state_dict(convert(model, config), strict=False)
    buffers = ("mask", "IGNORE", "rotary_sin", "rotary_cos", "b_U")
    if wrong := [one for one in missing if not one.endswith(buffers)] + unexpected:
        raise ValueError(f"transformer-lens takes other weights: {wrong}")
    # It gives the rotary angles of the last block to all blocks; Gemma 3 has others in local than in global ones.
    made._deduplicate_attention_buffers = lambda: None
    made._configure_replacement_model(transcoders)
    made.tokenizer = FirstIsSpecial(ids, own.vocab_size)
    return made


def compare(folder: Path, name: str, skip_first: bool) -> None:
    """Print the greatest differences between circuit-tracer's edges and the case's, relative to the greatest edge.

    circuit-tracer's errors are without b_dec, which has no node there, so b_dec's part is taken from the case's errors.
    By default circuit-tracer has no features and no errors at the first token; ``skip_first`` keeps it so.
    """
    from circuit_tracer.attribution.attribute import attribute

    own = graph(folder, name)
    with np.load(folder / name / "expected.npz") as saved:
        for key in ("values", "features", "errors", "embeddings", "rest", "activations"):
            np.testing.assert_allclose(own[key], saved[key], rtol=1e-5, atol=1e-6)
    L, T, _ = own["activations"].shape
    model = replaced(folder, name, own["ids"])
    first = 1 if skip_first else 0
    model.zero_positions = slice(0, first)
    tokens = torch.tensor(own["targets"][:LOGITS, 2])
    found = attribute(torch.tensor(own["ids"]), model, attribution_targets=tokens, batch_size=16)
    edges, active = found.adjacency_matrix.double().numpy(), found.active_features.numpy()
    assert found.input_tokens.tolist() == own["ids"].tolist()
    N = len(active)
    got = np.concatenate([edges[-LOGITS:], edges[:N]])
    kept = np.concatenate([np.ones(LOGITS, bool), own["targets"][LOGITS:, 1] >= first])
    assert own["targets"][kept][LOGITS:].tolist() == active.tolist()
    b_dec = np.stack([one["b_dec"].numpy() for one in read(folder / name, L)])
    parts = {
        "features": (got[:, :N], own["features"][(slice(None), *active.T)]),
        "errors": (
            got[:, N : N + L * T].reshape(-1, L, T),
            own["errors"] - np.einsum("nltd,ld->nlt", own["gradients"], b_dec),
        ),
        "embeddings": (got[:, N + L * T : N + L * T + T], own["embeddings"]),
    }
    print(f"{name}, {'without' if skip_first else 'with'} the first token: {N} features, {len(got)} targets")
    for key, (theirs, ours) in parts.items():
        ours = ours[kept]
        if key == "errors":
            theirs, ours = theirs[..., first:], ours[..., first:]
        apart = np.abs(theirs - ours).max() / np.abs(ours).max()
        print(f"    {key:10} {ours.size:6} edges, {np.count_nonzero(ours):6} not 0, apart {apart:.2g}")
        assert apart < 1e-5
    values = found.activation_values.numpy()
    apart = np.abs(values - own["activations"][tuple(active.T)]).max() / values.max()
    print(f"    values of the features apart {apart:.2g}")
    assert apart < 1e-5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--circuit-tracer", action="store_true", help="compare with circuit-tracer")
    parser.add_argument("names", nargs="*", help="only these cases")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if args.circuit_tracer:
        for one in (one for one in CASES if not one.endswith("neurons") and one not in WITHOUT):
            for skip_first in (False, True):
                compare(args.out, one, skip_first)
    else:
        for one in args.names or CASES:
            make(args.out, one)
