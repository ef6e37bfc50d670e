"""The attribution graph of `explanations.py` with circuit-tracer.

    PYTHON bench/attribution_graphs_peer.py FILE FOLDER '[[ids], [tokens]]' [--nodes 1000] [--threads 2] [--dtypes ...]
        [--batches 64 128]

PYTHON is an interpreter with circuit-tracer 0.5.0, transformers 4.57, transformer-lens 3.2.1 and gguf. FILE is a GGUF
file of the llama family, which transformers unpacks to float32. FOLDER has a transcoder for each layer in
circuit-tracer's files, which are in memory before the measurement. The replacement model is a HookedTransformer with
the model's weights as they are. It does not prepend a token to the ids. The logits are those of `tokens`. The graph is
made with each size of batches, after a small one; the fastest counts. (512, the tool's default, was slower.) The edges
are those of the first size: features are ranked again after every fourth batch, so the size affects their choice. 64 is
Pellucid's size, too.

The last line is JSON: {"versions": {package: version}, "graphs": {dtype: {"seconds": number, "batch": number,
"all": {batch: seconds}, "edges": [[layer, token, feature, edge to the first logit]]}}}.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.attribution.attribute import attribute  # type: ignore[import-not-found]
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel  # type: ignore[import-not-found]
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set  # type: ignore[import-not-found]
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM
from transformers.utils import logging

PACKAGES = ("torch", "transformers", "transformer-lens", "circuit-tracer")
BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
WARM_NODES = 32


class AsTheyAre:
    """A tokenizer for circuit-tracer, which prepends no token to ids that begin with a special one."""

    padding_side = "right"

    def __init__(self, ids: list[int], vocabulary: int) -> None:
        self.all_special_ids, self.vocab_size = ids[:1], vocabulary

    def decode(self, ids: Any) -> str:
        """Some text for a graph."""
        return str(ids)


def replaced(model: Any, folder: Path, ids: list[int], dtype: torch.dtype) -> Any:
    """The replacement model of circuit-tracer. Ends the program if its logits are not those of ``model``."""
    own = model.config
    head = own.hidden_size // own.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=own.num_hidden_layers,
        d_model=own.hidden_size,
        n_heads=own.num_attention_heads,
        n_key_value_heads=own.num_key_value_heads,
        d_head=head,
        d_mlp=own.intermediate_size,
        d_vocab=own.vocab_size,
        n_ctx=len(ids),
        act_fn=own.hidden_act,
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=own.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=head,
        rotary_base=own.rope_theta,
        rotary_adjacent_pairs=False,
        init_weights=False,
        dtype=torch.float32,
        device="cpu",
    )
    transcoders = load_transcoder_set(
        {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(config.n_layers)},
        scan="random",
        feature_input_hook="mlp.hook_in",
        feature_output_hook="mlp.hook_out",
        device=torch.device("cpu"),
        dtype=dtype,
        lazy_encoder=False,
        lazy_decoder=False,
    )
    made = TransformerLensReplacementModel(config)
    missing, unexpected = made.load_state_dict(convert_llama_weights(model, config), strict=False)
    if wrong := [one for one in missing if not one.endswith(BUFFERS)] + unexpected:
        raise SystemExit(f"transformer-lens takes other weights: {wrong}")
    with torch.no_grad():
        tokens = torch.tensor([ids])
        apart = (made(tokens, prepend_bos=False) - model(tokens).logits).abs().max().item()
    if apart > 1e-2:
        raise SystemExit(f"the logits of HookedTransformer and of transformers are {apart:.3g} apart")
    made.cfg.dtype = dtype
    made.to(dtype)
    made._configure_replacement_model(transcoders)
    made.tokenizer = AsTheyAre(ids, own.vocab_size)
    return made


def edges(graph: Any) -> list[list[float]]:
    """The edges from the chosen features to the first logit: layer, token, feature, edge."""
    chosen = graph.active_features[graph.selected_features].tolist()
    row = graph.adjacency_matrix[-len(graph.logit_targets), : len(chosen)].tolist()
    return [[*feature, edge] for feature, edge in zip(chosen, row, strict=True)]


def measure(made: Any, ids: list[int], tokens: list[int], nodes: int, sizes: list[int]) -> dict[str, Any]:
    """The fastest run of all sizes of batches, and the edges of the first."""
    seconds: dict[int, float] = {}
    found: dict[int, list[list[float]]] = {}
    prompt, targets = torch.tensor(ids), torch.tensor(tokens)
    attribute(prompt, made, attribution_targets=targets, batch_size=WARM_NODES, max_feature_nodes=WARM_NODES)
    for size in sizes:
        start = time.perf_counter()
        graph = attribute(prompt, made, attribution_targets=targets, batch_size=size, max_feature_nodes=nodes)
        seconds[size] = time.perf_counter() - start
        found[size] = edges(graph)
        del graph
    best = min(seconds, key=lambda size: seconds[size])
    return {"seconds": seconds[best], "batch": best, "all": seconds, "edges": found[sizes[0]]}


def main() -> None:
    """Measure in each dtype, and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("ids")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(asked.threads)
    ids, tokens = json.loads(asked.ids)
    model = AutoModelForCausalLM.from_pretrained(
        asked.file.parent, gguf_file=asked.file.name, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval().requires_grad_(False)
    graphs = {
        dtype: measure(
            replaced(model, asked.folder, ids, getattr(torch, dtype)), ids, tokens, asked.nodes, asked.batches
        )
        for dtype in asked.dtypes
    }
    print(json.dumps({"versions": {package: version(package) for package in PACKAGES}, "graphs": graphs}))


if __name__ == "__main__":
    main()
