"""Tokens per second of other tools that record all residual streams of texts in batches.

    PYTHON bench/activation_datasets_peers.py FILE IDS [--threads 2] [--batches 8 32]

PYTHON is an interpreter with torch, transformers and gguf, and optionally nnsight and transformer-lens. FILE is a GGUF
file, which transformers unpacks to float32, or a folder with safetensors. IDS is a JSON file with the token ids of each
text. Texts are sorted by length and padded on the right; only real tokens count. The model runs without its output
head. A tool keeps the values of a batch, and drops them before the next batch. Each tool runs with each batch size; the
fastest counts. The last line is JSON.

hooks            forward hooks of torch on the blocks
nnsight          `trace` with a saved output of each block
TransformerLens  `run_with_cache` of a TransformerBridge (HookedTransformer reads no GGUF file)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

Batch = tuple[torch.Tensor, torch.Tensor]
Tool = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]
"""Returns the residual streams (B, T, D) of all blocks for ids and their mask, (B, T)."""


def load(file: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": file}
    how: dict[str, Any] = {}
    if file.is_file():
        where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        how = {"quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(**where, **how, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(**where)


def first(output: Any) -> torch.Tensor:
    """The hidden states of a block's output."""
    return output[0] if isinstance(output, tuple) else output


def hooks(model: Any) -> Tool:
    """Forward hooks of torch."""

    def run(ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        made = [
            layer.register_forward_hook(lambda _, __, output: kept.append(first(output)))
            for layer in model.model.layers
        ]
        try:
            model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        finally:
            for hook in made:
                hook.remove()
        return kept

    return run


def traced(model: Any, tokenizer: Any) -> Any:
    """nnsight's TransformersModel around a model."""
    from nnsight import TransformersModel  # type: ignore[import-not-found]

    return TransformersModel(model, tokenizer=tokenizer, task="text-generation")


def bridge(model: Any, tokenizer: Any) -> Any:
    """TransformerLens' TransformerBridge around a model, whose blocks it replaces."""
    from transformer_lens.model_bridge import TransformerBridge

    name = str(model.config.name_or_path)
    return TransformerBridge.boot_transformers(
        name, hf_model=model, tokenizer=tokenizer, device="cpu", dtype=model.dtype
    )


def nnsight(model: Any, tokenizer: Any) -> Tool:
    """A trace of nnsight."""
    wrapped = traced(model, tokenizer)

    def run(ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        with wrapped.trace({"input_ids": ids, "attention_mask": mask}) as tracer:
            recorded = tracer.cache(modules=list(wrapped.model.layers)).save()
        return [first(recorded[layer.path].output) for layer in wrapped.model.layers]

    return run


def transformer_lens(model: Any, tokenizer: Any) -> Tool:
    """The cache of TransformerLens."""
    wrapped = bridge(model, tokenizer)
    blocks = model.config.num_hidden_layers
    names = [f"blocks.{number}.hook_resid_post" for number in range(blocks)]

    def run(ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        _, cache = wrapped.run_with_cache(ids, attention_mask=mask, names_filter=names)
        return [cache[name] for name in names]

    return run


def batches_of(texts: list[list[int]], size: int) -> list[Batch]:
    """Padded batches of ids, and their masks."""
    ordered = sorted(texts, key=len)
    made = []
    for start in range(0, len(ordered), size):
        own = ordered[start : start + size]
        longest = max(map(len, own))
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in own])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in own])
        made.append((ids, mask))
    return made


def measure(tool: Tool, batches: list[Batch], blocks: int) -> float:
    """Real tokens per second. Ends the program if values are missing."""
    tokens, start = 0, time.perf_counter()
    for ids, mask in batches:
        kept = tool(ids, mask)
        if len(kept) != blocks or any(values.shape[:2] != ids.shape for values in kept):
            raise SystemExit(f"{len(kept)} tensors for {blocks} blocks")
        tokens += int(mask.sum())
    return tokens / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(asked.threads)
    torch.set_grad_enabled(False)
    texts = json.loads(asked.ids.read_text())
    makers = {"hooks": lambda model, _: hooks(model), "nnsight": nnsight, "TransformerLens": transformer_lens}
    packages = {"hooks": "torch", "nnsight": "nnsight", "TransformerLens": "transformer_lens"}
    speeds: dict[str, float] = {}
    versions = {"torch": version("torch"), "transformers": version("transformers")}
    for name, make in makers.items():
        if importlib.util.find_spec(packages[name]) is None:
            continue
        versions[name] = version(packages[name])
        model, tokenizer = load(asked.file)
        tool = make(model, tokenizer)
        tool(*batches_of(texts[:2], 2)[0])
        speeds[name] = max(
            measure(tool, batches_of(texts, size), model.config.num_hidden_layers) for size in asked.batches
        )
    print(json.dumps({"versions": versions, "tokens_per_second": speeds}))


if __name__ == "__main__":
    main()
