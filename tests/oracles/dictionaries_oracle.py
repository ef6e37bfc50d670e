"""Writes tiny dictionaries with SAELens, circuit-tracer and sparsify, and their activations and reconstructions.

    python tests/oracles/dictionaries_oracle.py

Needs torch, sae-lens 6.54, circuit-tracer 0.5 and eai-sparsify 1.3. Each case is a folder of
tests/goldens/trace/dictionaries with the files that the package writes, and ``expected.npz``: the input ``x`` (T, D),
the activations ``features`` (T, F), and the ``output`` (T, D) of SAEs and transcoders. Cases of several layers have
(L, T, D) and (L, T, F). Gemma Scope's files are written in its format, and read by circuit-tracer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt, load_gemma_scope_2_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    load_gemma_scope_2_transcoder,
    load_gemma_scope_transcoder,
    load_relu_transcoder,
)
from sae_lens import SAE, saes
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file
from sparsify.config import SparseCoderConfig
from sparsify.sparse_coder import SparseCoder
from torch.nn import functional

FOLDER = Path(__file__).parents[1] / "goldens" / "trace" / "dictionaries"
D, F, T, L = 12, 40, 9, 3


def random_weights(module: torch.nn.Module, scale: float = 0.4) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
            if "threshold" in name:
                parameter.abs_()


def save(name: str, x: Any, features: Any, output: Any) -> None:
    arrays = {"x": x, "features": features, "output": output}
    kept = {key: one.detach().numpy().astype(np.float32) for key, one in arrays.items() if one is not None}
    np.savez_compressed(FOLDER / name / "expected.npz", **kept)


def saelens(name: str, architecture: str, **config: Any) -> None:
    own, config_class = get_sae_class(architecture)
    hooks = {"hook_name": "blocks.1.hook_resid_post"}
    if "transcoder" in architecture:
        hooks = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
        config |= {"d_out": D, "apply_b_dec_to_input": False}
    sae = own(config_class(d_in=D, d_sae=F, metadata=SAEMetadata(**hooks), **config))
    random_weights(sae)
    sae.save_model(FOLDER / name)
    loaded = SAE.load_from_disk(FOLDER / name)
    x = 2 * torch.randn(T, D) + 0.5
    features = loaded.encode(x)
    # The decoder needs the norms of the encoder's last input.
    save(name, x, features, loaded(x))


def batch_top_k(name: str) -> None:
    config = saes.MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=D,
        d_sae=F,
        k=5,
        matryoshka_widths=[10, F],
        rescale_acts_by_decoder_norm=True,
        metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post"),
    )
    sae = saes.MatryoshkaBatchTopKTrainingSAE(config)
    random_weights(sae)
    sae.topk_threshold.fill_(0.8)
    sae.save_inference_model(FOLDER / name)
    loaded, x = SAE.load_from_disk(FOLDER / name), torch.randn(T, D)
    save(name, x, loaded.encode(x), loaded(x))


def transcoders(name: str, jump: bool, skip: bool) -> None:
    folder = FOLDER / name
    folder.mkdir()
    x = torch.randn(L, T, D)
    features, outputs = [], []
    for layer in range(L):
        activation = JumpReLU(torch.rand(F)) if jump else functional.relu
        made = SingleLayerTranscoder(D, F, activation, layer, skip, device="cpu", dtype=torch.float32)
        random_weights(made)
        made.to_safetensors(str(folder / f"layer_{layer}.safetensors"))
        loaded = load_relu_transcoder(str(folder / f"layer_{layer}.safetensors"), layer, device="cpu")
        features.append(loaded.encode(x[layer]))
        outputs.append(loaded(x[layer]))
    (folder / "config.yaml").write_text(
        'model_name: "tiny/model"\nmodel_kind: transcoder_set  # one for each layer\n'
        "feature_input_hook: \"mlp.hook_in\"\nfeature_output_hook: hook_mlp_out\nscan:\n  - tiny\n  - 'model'\n"
    )
    save(name, x, torch.stack(features), torch.stack(outputs))


def cross_layer(name: str, activation: str) -> None:
    folder = FOLDER / name
    made = CrossLayerTranscoder(L, F, D, activation, lazy_decoder=False, device="cpu", dtype=torch.float32)
    random_weights(made)
    made.to_safetensors(str(folder))
    (folder / "config.yaml").write_text(
        "model_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )
    loaded = load_clt(str(folder), device="cpu", dtype=torch.float32)
    x = torch.randn(L, T, D)
    features = torch.stack([loaded.encode_layer(x[layer], layer) for layer in range(L)])
    save(name, x, features, loaded.decode(features))


def gemma_scope(name: str) -> None:
    (FOLDER / name).mkdir()
    params = {
        "W_enc": torch.randn(D, F), "W_dec": torch.randn(F, D), "b_enc": torch.randn(F), "b_dec": torch.randn(D),
        "threshold": torch.rand(F),
    }  # fmt: skip
    np.savez(FOLDER / name / "params.npz", **{key: one.numpy() for key, one in params.items()})
    loaded = load_gemma_scope_transcoder(str(FOLDER / name / "params.npz"), 1, device="cpu")
    x = torch.randn(T, D)
    save(name, x, loaded.encode(x), loaded(x))


def gemma_scope_2(name: str) -> None:
    (FOLDER / name).mkdir(parents=True)
    params = {
        "w_enc": torch.randn(D, F), "w_dec": torch.randn(F, D), "b_enc": torch.randn(F), "b_dec": torch.randn(D),
        "threshold": torch.rand(F), "affine_skip_connection": torch.randn(D, D),
    }  # fmt: skip
    file = FOLDER / name / "params.safetensors"
    save_file(params, file)
    (FOLDER / name / "config.json").write_text(
        '{"architecture": "jump_relu", "model_name": "tiny", "affine_connection": true, "hf_hook_point_in": '
        '"model.layers.1.pre_feedforward_layernorm.output", "hf_hook_point_out": '
        '"model.layers.1.post_feedforward_layernorm.output"}'
    )
    loaded = load_gemma_scope_2_transcoder(str(file), 1, device=torch.device("cpu"))
    x = torch.randn(T, D)
    save(name, x, loaded.encode(x), loaded(x))


def gemma_scope_2_several(name: str) -> None:
    """circuit-tracer reads all layers but the last, so it gets a copy of the last as one more."""
    folder = FOLDER / name
    folder.mkdir(parents=True)
    paths = {}
    for layer in range(L):
        w_dec = torch.randn(F, L, D)
        params = {
            "w_enc": torch.randn(D, F), "w_dec": w_dec, "b_enc": torch.randn(F), "b_dec": torch.randn(D),
            "threshold": torch.rand(F),
        }  # fmt: skip
        save_file(params, folder / f"params_layer_{layer}.safetensors")
        paths[layer] = str(folder / f"params_layer_{layer}.safetensors")
    loaded = load_gemma_scope_2_clt({**paths, L: paths[L - 1]}, device=torch.device("cpu"), dtype=torch.float32)
    x = torch.randn(L, T, D)
    features = torch.stack([loaded.encode_layer(x[layer], layer) for layer in range(L)])
    save(name, x, features, loaded.decode(features))


def sparsify(name: str, **config: Any) -> None:
    made = SparseCoder(D, SparseCoderConfig(num_latents=F, k=4, **config))
    random_weights(made)
    made.save_to_disk(FOLDER / name)
    loaded, x = SparseCoder.load_from_disk(FOLDER / name), torch.randn(T, D)
    values, indices, _ = loaded.encode(x)
    features = torch.zeros(T, F).scatter_(1, indices, values)
    output = features @ loaded.W_dec + loaded.b_dec
    save(name, x, features, output if loaded.W_skip is None else output + x @ loaded.W_skip.mT)


CASES: dict[str, Callable[[str], None]] = {
    "saelens-standard": lambda name: saelens(name, "standard"),
    "saelens-layer-norm": lambda name: saelens(name, "standard", normalize_activations="layer_norm"),
    "saelens-constant-norm": lambda name: saelens(
        name, "jumprelu", normalize_activations="constant_norm_rescale", apply_b_dec_to_input=False
    ),
    "saelens-jumprelu": lambda name: saelens(name, "jumprelu"),
    "saelens-topk": lambda name: saelens(name, "topk", k=5, rescale_acts_by_decoder_norm=True),
    "saelens-abstopk": lambda name: saelens(name, "abstopk", k=5),
    "saelens-gated": lambda name: saelens(name, "gated"),
    "saelens-transcoder": lambda name: saelens(name, "transcoder"),
    "saelens-skip-transcoder": lambda name: saelens(name, "skip_transcoder"),
    "saelens-jumprelu-skip-transcoder": lambda name: saelens(name, "jumprelu_skip_transcoder"),
    "saelens-matryoshka": batch_top_k,
    "circuit-tracer-skip": lambda name: transcoders(name, jump=False, skip=True),
    "circuit-tracer-jumprelu": lambda name: transcoders(name, jump=True, skip=False),
    "circuit-tracer-clt": lambda name: cross_layer(name, "relu"),
    "circuit-tracer-clt-jumprelu": lambda name: cross_layer(name, "jump_relu"),
    "gemma-scope": gemma_scope,
    "gemma-scope-2/transcoder/layer_1_width_40_l0_small_affine": gemma_scope_2,
    "gemma-scope-2/clt/width_40_l0_small": gemma_scope_2_several,
    "gemma-scope-2/crosscoder/layer_0_1_2_width_40_l0_small": gemma_scope_2_several,
    "sparsify/layers.1": sparsify,
    "sparsify/layers.1.mlp": lambda name: sparsify(name, transcode=True, skip_connection=True),
    "sparsify/layers.2": lambda name: sparsify(name, activation="groupmax"),
}


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for number, (name, make) in enumerate(CASES.items()):
        torch.manual_seed(number)
        with torch.no_grad():
            make(name)
        print(name)
