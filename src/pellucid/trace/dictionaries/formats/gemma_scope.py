"""Gemma Scope 1 and 2: JumpReLU SAEs, transcoders and cross-layer transcoders of Gemma 2 and 3."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.trace.dictionaries.array_files import (
    NpzArrays,
    SafetensorsArrays,
    StatedConfig,
    file_named,
    numbered_files,
    refuse_unused,
    take,
)
from pellucid.trace.dictionaries.coder_weights import (
    ArrayRows,
    CoderWeights,
    DictionaryFormat,
    Given,
    JumpRelu,
    block_of_hook,
    coder_of,
    decoder_of,
)
from pellucid.weights.json_files import read_json

# Gemma Scope: ``params.npz`` with JumpReLU SAEs and transcoders of Gemma 2. The file does not state its hook.
#
# Source: https://huggingface.co/google/gemma-scope, and SAELens' ``gemma_2_sae_huggingface_loader``.

ARRAYS = "params.npz"


def find(path: Path) -> Path | None:
    file = path if path.suffix == ".npz" else path / ARRAYS
    return file if file.is_file() else None


def read(path: Path, given: Given) -> tuple[str, Sequence[CoderWeights]]:
    file = NpzArrays(path)
    reads, writes = given.hooks(path, None, None)
    upper = {name: f"W_{name[2:]}" for name in file.shapes if name.startswith("w_")}
    names = {upper.get(name, name): name for name in file.shapes}
    encoder = np.ascontiguousarray(take(file, names.get("W_enc", "W_enc"), (None, None)).T)
    F = len(encoder)
    vectors = np.ascontiguousarray(take(file, names.get("W_dec", "W_dec"), (F, None)))
    if not np.allclose(take(file, "scaling_factor", (F,), missing=1.0), 1):
        raise FileFormatError(path, "scaling_factor", "finetuned scaling factors are not read")
    activation = JumpRelu(take(file, "threshold", (F,)))
    coder = coder_of(file, (reads, (writes,)), encoder, ArrayRows(vectors.reshape(F, 1, -1)), activation)
    refuse_unused(file, "JumpReLU, the activation of Gemma Scope")
    return "SAE" if reads == writes else "transcoder", [coder]


GEMMA_SCOPE = DictionaryFormat("Gemma Scope", find, read)


# Gemma Scope 2: JumpReLU SAEs and transcoders (``params.safetensors``), and cross-layer transcoders and crosscoders.
#
# The last two are folders with ``params_layer_0.safetensors``, … Their features read one layer, and write to each layer
# that the dictionary has; outputs before the layer that is read are left out, as in circuit-tracer. ``config.json``
# states the hooks; where it is missing, the names of the folders do.
#
# Sources: https://huggingface.co/google/gemma-scope-2, SAELens' ``get_gemma_3_config_from_hf``, circuit-tracer's
# ``load_gemma_scope_2_clt``.

FILE, FIRST, CONFIG = "params.safetensors", "params_layer_0.safetensors", "config.json"
TRANSCODER = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")
SITES = {
    "transcoder": TRANSCODER,
    "clt": TRANSCODER,
    "resid_post": ("output", "output"),
    "crosscoder": ("output", "output"),
    "attn_out": ("self_attn.o_proj.input", "self_attn.o_proj.input"),
    "mlp_out": ("post_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
}
"""The values that are read and written, by the beginning of the name of a folder."""


def read_gemma_scope_2(path: Path, given: Given) -> tuple[str, Sequence[CoderWeights]]:
    folder = path.parent
    where = folder / CONFIG
    config = StatedConfig(where, read_json(where) if where.exists() else {})
    if config.fields.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise config.error("architecture", ": must be jump_relu")
    folders = [folder.name, folder.parent.name]
    site = next((SITES[kind] for name in folders for kind in SITES if name.startswith(kind)), None)
    if path.name == FIRST:
        return _several(folder, given, site, config)
    layer = re.search(r"layer_(\d{1,6})", folder.name)
    inferred = [f"model.layers.{layer[1]}.{name}" for name in site] if layer and site else [None, None]
    stated = config.text("hf_hook_point_in")
    if stated and layer and not given.reads and block_of_hook(stated) not in (None, int(layer[1])):
        raise config.error(
            "hf_hook_point_in", f" contradicts the folder {folder.name}: correct it, rename the folder, or give reads="
        )
    reads, writes = given.hooks(
        path, stated or inferred[0], config.text("hf_hook_point_out") or inferred[1], transcodes=site == TRANSCODER
    )
    coder = _coder(SafetensorsArrays(path), reads, (writes,), None, 0, config)
    config.check_sizes({"width": len(coder.encoder)})
    return "SAE" if reads == writes else "transcoder", [coder]


def _several(
    folder: Path, given: Given, site: tuple[str, str] | None, config: StatedConfig
) -> tuple[str, Sequence[CoderWeights]]:
    files = numbered_files(folder, "params_layer_{}.safetensors")
    config.check_sizes({"n_layers": len(files), "num_layers": len(files)})
    if given.reads or given.writes:
        site = (given.reads or "", given.writes or given.reads or "")
    if site is None or (site[0].startswith("blocks.") and len(files) > 1):
        raise InvalidRequest(
            f"{folder.name}: the folder does not say which values it reads: give reads= and writes= without the "
            "block, such as reads='hook_resid_post'"
        )
    named = re.search(r"layer((?:_\d{1,6})+)", folder.name)
    layers = [int(number) for number in named[1].split("_")[1:]] if named else list(range(len(files)))
    if len(layers) != len(files):
        raise FileFormatError(
            folder, "folder", f"has {len(files)} files params_layer_N, and names {len(layers)} layers"
        )
    reads, writes = ([f"blocks.{layer}.{name}" for layer in layers] for name in site)
    coders = [
        _coder(SafetensorsArrays(file), reads[at], tuple(writes[at:]), len(files), at, config)
        for at, file in enumerate(files)
    ]
    return "crosscoder" if reads == writes else "cross-layer transcoder", coders


def _coder(
    file: SafetensorsArrays, reads: str, writes: tuple[str, ...], outputs: int | None, first: int, config: StatedConfig
) -> CoderWeights:
    encoder = np.ascontiguousarray(take(file, "w_enc", (None, None)).T)
    F, D = encoder.shape
    decoder = decoder_of(file, "w_dec", F, outputs, first)
    skip = "affine_skip_connection"
    affine = config.flag("affine_connection", skip in file.shapes)
    matrix = take(file, skip, (D, decoder.shape[2])).T if affine else None
    coder = coder_of(file, (reads, writes), encoder, decoder, JumpRelu(take(file, "threshold", (F,))), skip=matrix)
    refuse_unused(file, f"architecture=jump_relu and affine_connection={affine} ({CONFIG})")
    return coder


GEMMA_SCOPE_2 = DictionaryFormat("Gemma Scope 2", partial(file_named, (FILE, FIRST)), read_gemma_scope_2)
