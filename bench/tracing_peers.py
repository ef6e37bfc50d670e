"""Tokens per second of nnsight and TransformerLens while they record the same values as Pellucid in tracing.py.

    PYTHON bench/tracing_peers.py FILE [--rounds 3] [--threads 2] [--dtype float32]

PYTHON is an interpreter with torch, transformers, accelerate, gguf, nnsight and transformer-lens; Pellucid is not
needed. FILE is a GGUF file, which transformers unpacks, or a folder with safetensors. Each tool generates 32 tokens
greedily with its KV cache, after prompts of 16 and of 512 tokens. It records the residual stream after each block, or
the patterns of all heads of all blocks. transformers also runs alone, without recording, to separate the cost of
recording from the cost of the model. A figure covers only the decode steps, from the end of the prefill to the end of
the last step. Each text is compared with the text of transformers. The last line is JSON.

nnsight       `generate` of a TransformersModel with `tracer.cache`. Patterns need transformers' "eager" attention;
              residuals are measured with "sdpa", the fastest.
TransformerLens   `generate` of a TransformerBridge with a hook on each block (there is no HookedTransformer since 4.0).
              Its attention is always "eager". transformers 5.24 passes the cache under a name that version 4.3 does not
              read, so that attention would silently see only the last token. A hook in this script passes the cache
              under the expected name.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from activation_datasets_peers import bridge, traced
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

PACKAGES = ("torch", "transformers", "nnsight", "transformer-lens")
TOKENS = 32
DEPTHS = {"": 16, " 512": 512}  # suffix of a name → tokens of the prompt
RECORDED = ("residuals", "patterns")


class Tool:
    """A model in one of the tools. ``run`` returns the text's ids, and the tensors recorded in the steps."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = model.config.num_hidden_layers
        self._ends: list[float] = []
        model.register_forward_hook(lambda *_: self._ends.append(time.perf_counter()))

    def run(self, what: str, ids: torch.Tensor, tokens: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Generate ``tokens`` tokens and record ``what``; "plain" records nothing."""
        return self.model.generate(ids, **greedy(ids, tokens)), []

    def measure(self, what: str, ids: torch.Tensor, tokens: int) -> tuple[float, list[int]]:
        """Tokens per second of a run, and its text. Ends the program if the run has not recorded all values."""
        self._ends.clear()
        text, kept = self.run(what, ids, tokens)
        if len(self._ends) != tokens or text.shape[1] != ids.shape[1] + tokens:
            raise SystemExit(f"{type(self).__name__}, {what}: {len(self._ends)} steps for {tokens} tokens")
        if what != "plain":
            keys = ids.shape[1] + tokens - 1
            last = self.model.config.hidden_size if what == "residuals" else keys
            if len(kept) != self.blocks * tokens or kept[-1].shape[-1] != last:
                raise SystemExit(f"{type(self).__name__}, {what}: {len(kept)} tensors, {kept[-1].shape}")
        return (tokens - 1) / (self._ends[-1] - self._ends[0]), text[0].tolist()


class Nnsight(Tool):
    """nnsight as a wrapper of a transformers model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model)
        self._wrapped = traced(model, tokenizer)

    def run(self, what: str, ids: torch.Tensor, tokens: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.model.set_attn_implementation("eager" if what == "patterns" else "sdpa")
        layers = self._wrapped.model.layers
        modules = [layer.self_attn if what == "patterns" else layer for layer in layers]
        with self._wrapped.generate(ids, **greedy(ids, tokens)) as tracer:
            recorded = tracer.cache(modules=modules).save()
            text = tracer.result.save()
        steps = zip(*(recorded[module.path].output for module in modules))
        return text, [value[1] if what == "patterns" else value for step in steps for value in step]


class TransformerLens(Tool):
    """TransformerLens as a wrapper of a transformers model, whose blocks it replaces."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model)
        self._bridge = bridge(model, tokenizer)
        for block in self._bridge.blocks:
            block.attn.register_forward_pre_hook(_with_old_name, with_kwargs=True)

    def run(self, what: str, ids: torch.Tensor, tokens: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        kept: list[torch.Tensor] = []
        point = {"residuals": "hook_resid_post", "patterns": "attn.hook_pattern"}[what]

        def keep(value: torch.Tensor, hook: Any) -> None:
            kept.append(value)

        hooks = [(f"blocks.{number}.{point}", keep) for number in range(self.blocks)]
        with self._bridge.hooks(fwd_hooks=hooks):
            text = self._bridge.generate(ids, max_new_tokens=tokens, do_sample=False, stop_at_eos=False, verbose=False)
        return text, kept


def greedy(ids: torch.Tensor, tokens: int) -> dict[str, Any]:
    """The options of transformers' `generate`."""
    mask = torch.ones_like(ids)
    return {"attention_mask": mask, "max_new_tokens": tokens, "do_sample": False, "use_cache": True}


def _with_old_name(_: Any, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if "cache" in named:
        named.setdefault("past_key_values", named["cache"])
    return inputs, named


def load(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model and its tokenizer in transformers."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": file}
    how: dict[str, Any] = {}
    if file.is_file():
        where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        how = {"quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(**where, **how, dtype=dtype, attn_implementation="sdpa")
    if {weights.dtype for weights in model.parameters()} != {dtype}:
        raise SystemExit(f"the weights are not in {dtype}")
    model.generation_config.eos_token_id = None  # a text ends only at its maximum length
    return model, AutoTokenizer.from_pretrained(**where)


def main() -> None:
    """Measure, and print medians and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(asked.threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, asked.dtype)
    model, tokenizer = load(asked.file, dtype)
    tools = {
        "transformers": Tool(copy.deepcopy(model)),
        "nnsight": Nnsight(copy.deepcopy(model), tokenizer),
        "TransformerLens": TransformerLens(model, tokenizer),
    }
    runs: dict[tuple[str, str], Callable[[int], tuple[float, list[int]]]] = {}
    for end, depth in DEPTHS.items():
        ids = 100 + torch.arange(depth)[None]
        for name, tool in tools.items():
            for what in ("plain",) if name == "transformers" else RECORDED:
                runs[name, what + end] = partial(tool.measure, what, ids)
    speeds: dict[str, dict[str, list[float]]] = {name: {} for name in tools}
    notes: list[str] = []
    for run in runs.values():
        run(4)
    for _ in range(asked.rounds):
        texts: dict[str, list[int]] = {}
        for (name, what), run in runs.items():
            speed, text = run(TOKENS)
            speeds[name].setdefault(what, []).append(round(speed, 2))
            note = f"{name}, {what}: the text differs from the text of transformers"
            if text != texts.setdefault(what.partition(" ")[2], text) and note not in notes:
                notes.append(note)
    versions = {package: version(package) for package in PACKAGES}
    print(f"{', '.join(' '.join(pair) for pair in versions.items())}; {asked.dtype}, threads {asked.threads}")
    for name, found in speeds.items():
        for what, rounds in found.items():
            print(f"{name:<16}{what:<14}{statistics.median(rounds):>7.1f} tokens/s")
    print(*notes, sep="\n", end="\n" if notes else "")
    print(
        json.dumps(
            {
                "versions": versions,
                "dtype": asked.dtype,
                "threads": asked.threads,
                "tokens_per_second": speeds,
                "notes": notes,
            }
        )
    )


if __name__ == "__main__":
    main()
