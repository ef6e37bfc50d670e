"""The sweeps of `sweeps.py` with hooks of torch, nnsight and TransformerLens, on batches of copies of the prompt.

    PYTHON bench/sweeps_peers.py FILE '[[clean ids], [corrupted ids], [token, against]]' [--threads 2] [--dtypes ...]
        [--blocks 1 5]

PYTHON is an interpreter with torch, transformers and gguf, and optionally nnsight and transformer-lens; a peer without
its package is skipped. FILE is a GGUF file of the llama family, which transformers unpacks, or a folder with
safetensors. A batch has all copies that edit one of `--blocks` consecutive blocks. Each peer runs each sweep once for
each of these numbers; the fastest run counts. (Attribution patching has no copies: the best of as many runs counts.)
All peers compute only the last token's logits, have no KV cache, and compute no gradients of weights.

torch hooks   forward hooks on the blocks, a forward pre-hook with a mask on the attention, and retained gradients
nnsight       one `trace` of a TransformersModel for each batch: edits of the blocks' outputs in place, masks in the
              inputs of the attention, and `.grad` of the blocks' outputs in a traced backward pass
TransformerLens   `run_with_hooks` of a TransformerBridge for each batch: edits of hook_resid_post and
              hook_attn_scores; `run_with_cache`, and backward hooks on hook_resid_post. Its functions in `patching` run
              one copy at a time, so they are not used.

Lines before the last name the peers that were skipped or failed. The last line is JSON: {"peers": {peer and dtype:
{sweep: [seconds, values, copies in a batch]}}, "notes": [line]}.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from activation_datasets_peers import bridge, first, load, traced
from transformers.utils import logging

LAST = {"use_cache": False, "logits_to_keep": 1}
"""Options of a model's forward: only the logits of the last token."""


class Peer(ABC):
    """A way to run a model with edits. All methods return the logits (B, 1, V) of the last token."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.blocks: int = model.config.num_hidden_layers

    @abstractmethod
    def recorded(self, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The residual stream (B, T, D) after each block, and the logits."""

    @abstractmethod
    def patched(self, ids: torch.Tensor, sources: dict[int, torch.Tensor]) -> torch.Tensor:
        """T copies for each block in ``sources``: copy t has the block's source at token t."""

    @abstractmethod
    def masked(self, ids: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
        """T - 1 copies for each block: in copy k the last token does not see token k in the block."""

    @abstractmethod
    def differentiated(
        self, ids: torch.Tensor, tokens: list[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """The residual stream after each block, its gradients of `difference`, and the logits."""


class Hooks(Peer):
    """Hooks of torch on a transformers model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self._model = model
        self._layers = model.model.layers

    def _run(self, hooks: list[Any], **inputs: torch.Tensor) -> torch.Tensor:
        """The logits of a run with hooks, which end with it."""
        logits: torch.Tensor = self._model(**inputs, **LAST).logits
        for hook in hooks:
            hook.remove()
        return logits

    def recorded(self, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        kept: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _, __, output: kept.append(first(output))) for layer in self._layers
        ]
        return kept, self._run(hooks, input_ids=ids)

    def patched(self, ids: torch.Tensor, sources: dict[int, torch.Tensor]) -> torch.Tensor:
        def replace(index: int, values: torch.Tensor, _: Any, __: Any, output: Any) -> None:
            put(first(output), index, values)

        hooks = [
            self._layers[block].register_forward_hook(partial(replace, index, values))
            for index, (block, values) in enumerate(sources.items())
        ]
        return self._run(hooks, input_ids=ids)

    def masked(self, ids: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
        def mask(own: torch.Tensor, _: Any, inputs: Any, named: dict[str, Any]) -> Any:
            return inputs, {**named, "attention_mask": own}

        hooks = [
            self._layers[block].self_attn.register_forward_pre_hook(partial(mask, own), with_kwargs=True)
            for block, own in zip(blocks, masks(ids, len(blocks), self._model.dtype))
        ]
        return self._run(hooks, input_ids=ids)

    def differentiated(
        self, ids: torch.Tensor, tokens: list[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        kept: list[torch.Tensor] = []

        def keep(_: Any, __: Any, output: Any) -> None:
            first(output).retain_grad()
            kept.append(first(output))

        hooks = [layer.register_forward_hook(keep) for layer in self._layers]
        x = self._model.model.embed_tokens(ids).detach().requires_grad_()
        logits = self._run(hooks, inputs_embeds=x)
        difference(logits, tokens).sum().backward()
        return kept, [values.grad for values in kept if values.grad is not None], logits


class Nnsight(Peer):
    """Traces of nnsight."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self._dtype = model.dtype
        self._traced = traced(model, tokenizer)

    def recorded(self, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        layers = self._traced.model.layers
        with self._traced.trace({"input_ids": ids}, **LAST) as tracer:
            recorded = tracer.cache(modules=list(layers)).save()
            logits = self._traced.output.logits.save()
        return [first(recorded[layer.path].output) for layer in layers], logits

    def patched(self, ids: torch.Tensor, sources: dict[int, torch.Tensor]) -> torch.Tensor:
        layers = self._traced.model.layers
        with self._traced.trace({"input_ids": ids}, **LAST):
            for index, (block, values) in enumerate(sources.items()):
                put(first(layers[block].output), index, values)
            logits: torch.Tensor = self._traced.output.logits.save()
        return logits

    def masked(self, ids: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
        layers = self._traced.model.layers
        own = masks(ids, len(blocks), self._dtype)
        with self._traced.trace({"input_ids": ids}, **LAST):
            for index, block in enumerate(blocks):
                inputs, named = layers[block].self_attn.inputs
                layers[block].self_attn.inputs = (inputs, {**named, "attention_mask": own[index]})
            logits: torch.Tensor = self._traced.output.logits.save()
        return logits

    def differentiated(
        self, ids: torch.Tensor, tokens: list[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        kept: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        with self._traced.trace({"input_ids": ids}, **LAST):
            self._traced.model.embed_tokens.output.requires_grad_()
            for layer in self._traced.model.layers:
                kept.append(first(layer.output).save())
            logits = self._traced.output.logits.save()
            with difference(logits, tokens).sum().backward():
                for values in reversed(kept):  # in the order of the backward pass
                    gradients.append(values.grad.save())
        return kept, gradients[::-1], logits


class TransformerLens(Peer):
    """Hooks of a TransformerBridge."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self._bridge = bridge(model, tokenizer)
        self._names = [f"blocks.{block}.hook_resid_post" for block in range(self.blocks)]

    def recorded(self, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        logits, cache = self._bridge.run_with_cache(ids, names_filter=self._names, **LAST)
        return [cache[name] for name in self._names], logits

    def patched(self, ids: torch.Tensor, sources: dict[int, torch.Tensor]) -> torch.Tensor:
        def replace(x: torch.Tensor, hook: Any, index: int, values: torch.Tensor) -> torch.Tensor:
            put(x, index, values)
            return x

        hooks = [
            (self._names[block], partial(replace, index=index, values=values))
            for index, (block, values) in enumerate(sources.items())
        ]
        logits: torch.Tensor = self._bridge.run_with_hooks(ids, fwd_hooks=hooks, **LAST)
        return logits

    def masked(self, ids: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
        def mask(scores: torch.Tensor, hook: Any, index: int) -> torch.Tensor:
            hide(scores, index)
            return scores

        hooks = [
            (f"blocks.{block}.attn.hook_attn_scores", partial(mask, index=index)) for index, block in enumerate(blocks)
        ]
        logits: torch.Tensor = self._bridge.run_with_hooks(ids, fwd_hooks=hooks, **LAST)
        return logits

    def differentiated(
        self, ids: torch.Tensor, tokens: list[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}
        gradients: dict[str, torch.Tensor] = {}

        def begin(x: torch.Tensor, hook: Any) -> torch.Tensor:
            return x.requires_grad_()

        def keep(into: dict[str, torch.Tensor], name: str, value: torch.Tensor, hook: Any) -> None:
            into[name] = value

        forward = [(name, partial(keep, kept, name)) for name in self._names]
        backward = [(name, partial(keep, gradients, name)) for name in self._names]
        with self._bridge.hooks(fwd_hooks=[("hook_embed", begin), *forward], bwd_hooks=backward):
            logits = self._bridge(ids, **LAST)
            difference(logits, tokens).sum().backward()
        return [kept[name] for name in self._names], [gradients[name] for name in self._names], logits


def difference(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """The difference of two logits of the last token, of each copy."""
    return (logits[:, -1, tokens[0]] - logits[:, -1, tokens[1]]).float()


def put(x: torch.Tensor, index: int, values: torch.Tensor) -> None:
    """Give copy t of a batch's block ``index`` the values (1, T, D) at token t, in place."""
    at = torch.arange(values.shape[1])
    x[index * len(at) + at, at] = values[0]


def hide(scores: torch.Tensor, index: int) -> None:
    """Hide token k from the last token in copy k of a batch's block ``index``: scores (B, H, T, T), in place."""
    at = torch.arange(scores.shape[-1] - 1)
    scores[index * len(at) + at, :, -1, at] = torch.finfo(scores.dtype).min


def masks(ids: torch.Tensor, blocks: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Causal masks (B, 1, T, T) for each block of a batch of knock-outs."""
    copies, count = ids.shape
    causal = torch.full((count, count), torch.finfo(dtype).min, dtype=dtype).triu(1)
    made = [causal.repeat(copies, 1, 1, 1) for _ in range(blocks)]
    for index, mask in enumerate(made):
        hide(mask, index)
    return made


def batches(blocks: int, together: int) -> list[range]:
    """Ranges of ``together`` blocks."""
    return [range(start, min(start + together, blocks)) for start in range(0, blocks, together)]


def patch(
    peer: Peer, clean: torch.Tensor, corrupted: torch.Tensor, tokens: list[int], together: int
) -> tuple[list[list[float]], int]:
    """Values by block and token, and the copies in a batch."""
    source, good = peer.recorded(clean)
    _, bad = peer.recorded(corrupted)
    low, high = difference(bad, tokens)[0], difference(good, tokens)[0]
    count, rows = clean.shape[1], []
    for own in batches(peer.blocks, together):
        copies = corrupted.expand(len(own) * count, -1)
        found = difference(peer.patched(copies, {block: source[block] for block in own}), tokens)
        rows += ((found - low) / (high - low)).view(len(own), count).tolist()
    return rows, together * count


def knock_out(
    peer: Peer, clean: torch.Tensor, _: torch.Tensor, tokens: list[int], together: int
) -> tuple[list[list[float]], int]:
    """Values by block and hidden token, and the copies in a batch."""
    count, rows = clean.shape[1] - 1, []
    for own in batches(peer.blocks, together):
        logits = peer.masked(clean.expand(len(own) * count, -1), own)
        rows += difference(logits, tokens).view(len(own), count).tolist()
    return rows, together * count


def attribution(
    peer: Peer, clean: torch.Tensor, corrupted: torch.Tensor, tokens: list[int], _: int
) -> tuple[list[list[float]], int]:
    """Values by block and token of two runs and a backward pass, and 1 for the copies."""
    source, good = peer.recorded(clean)
    with torch.enable_grad():
        kept, gradients, bad = peer.differentiated(corrupted, tokens)
    gap = difference(good, tokens)[0] - difference(bad.detach(), tokens)[0]
    return [
        (((a - b.detach()).float() * gradient.float()).sum(-1)[0] / gap).tolist()
        for a, b, gradient in zip(source, kept, gradients, strict=True)
    ], 1


PEERS: dict[str, tuple[Callable[[Any, Any], Peer], str]] = {
    "torch hooks": (Hooks, "torch"),
    "nnsight": (Nnsight, "nnsight"),
    "TransformerLens": (TransformerLens, "transformer_lens"),
}
"""How a peer is made, and the package that it needs."""
SWEEPS = {"patch": patch, "knock-out": knock_out, "attribution": attribution}


def measure(
    peer: Peer, sweep: str, inputs: tuple[torch.Tensor, torch.Tensor, list[int]], sizes: Sequence[int]
) -> tuple[float, list[list[float]], int]:
    """Seconds, values and copies in a batch of the fastest run."""
    runs = []
    for together in sizes:
        start = time.perf_counter()
        values, copies = SWEEPS[sweep](peer, *inputs, together)
        runs.append((time.perf_counter() - start, values, copies))
    return min(runs)


def main() -> None:
    """Measure each sweep of each peer in each dtype, and print the notes and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("ids")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--sweeps", nargs="+", choices=[*SWEEPS], default=[*SWEEPS])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(asked.threads)
    torch.set_grad_enabled(False)
    clean, corrupted, tokens = json.loads(asked.ids)
    inputs = torch.tensor([clean]), torch.tensor([corrupted]), tokens
    notes = [
        f"{name}: skipped, because there is no package {package}"
        for name, (_, package) in PEERS.items()
        if importlib.util.find_spec(package) is None
    ]
    found: dict[str, dict[str, Any]] = {}
    for dtype in asked.dtypes:
        model, tokenizer = load(asked.file)
        model.to(getattr(torch, dtype)).eval().requires_grad_(False)
        for name, (make, package) in PEERS.items():
            if importlib.util.find_spec(package) is None:
                continue
            label = f"{name} {dtype}"
            found[label] = {}
            for sweep in asked.sweeps:
                try:
                    peer = make(copy.deepcopy(model), tokenizer)
                    found[label][sweep] = measure(peer, sweep, inputs, asked.blocks)
                except Exception as error:  # a tool that fails is part of the result
                    notes.append(f"{label}: no {sweep}: {type(error).__name__}: {error}".partition("\n")[0])
    print(*notes, sep="\n", end="\n" if notes else "")
    print(json.dumps({"peers": found, "notes": notes}))


if __name__ == "__main__":
    main()
