"""Writes random dictionaries in the formats of SAELens and circuit-tracer, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.model_files import safetensors

Arrays = dict[str, np.ndarray]


def save(path: Path, arrays: Arrays) -> None:
    tensors = {name: ("F32", one.shape, np.ascontiguousarray(one, "<f4").tobytes()) for name, one in arrays.items()}
    path.write_bytes(safetensors(tensors))


def drawn(seed: int, **shapes: Sequence[int]) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}


def sae(folder: Path, hook: str, D: int = 64, F: int = 96, seed: int = 0, **config: Any) -> Arrays:
    """An SAE of SAELens in a folder; with ``hook_name_out`` a transcoder. Returns its arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = drawn(seed, W_enc=(D, F), W_dec=(F, D), b_enc=(F,), b_dec=(D,))
    out = config.pop("hook_name_out", None)
    metadata = {"sae_lens_version": "6.54.12", "hook_name": hook, **({"hook_name_out": out} if out else {})}
    own = {"architecture": "transcoder" if out else "standard", "d_in": D, "d_sae": F, "apply_b_dec_to_input": not out}
    own |= {"normalize_activations": "none", "metadata": metadata, **config}
    if "jumprelu" in own["architecture"]:
        arrays["threshold"] = np.full(F, 0.5, np.float32)
    (folder / "cfg.json").write_text(json.dumps(own))
    save(folder / "sae_weights.safetensors", arrays)
    return arrays


def cross_layer(folder: Path, layers: int, D: int = 64, F: int = 48, seed: int = 0) -> list[Arrays]:
    """A cross-layer transcoder of circuit-tracer. Returns the arrays of each layer, without their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for layer in range(layers):
        arrays = drawn(seed + layer, W_enc=(F, D), b_enc=(F,), b_dec=(D,), W_dec=(F, layers - layer, D))
        found.append(arrays)
        save(
            folder / f"W_enc_{layer}.safetensors",
            {f"{name}_{layer}": one for name, one in arrays.items() if name != "W_dec"},
        )
        save(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": arrays["W_dec"]})
    (folder / "config.yaml").write_text(
        "model_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )
    return found
