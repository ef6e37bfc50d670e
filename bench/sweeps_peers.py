"""The sweeps of `sweeps.py` with hooks of torch, on batches of copies of the prompt.

    PYTHON bench/sweeps_peers.py FILE '[[clean ids], [corrupted ids], [token, against]]' [--threads 2] [--dtypes ...]

PYTHON is an interpreter with torch, transformers and gguf. FILE is a GGUF file of the llama family, which transformers
unpacks, or a folder with safetensors. Copies that patch the same block run in one batch, and only the last token's
logits are computed. The last line is JSON: {dtype: {sweep: [seconds, values]}}.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from activation_datasets_peers import first, load
from transformers.utils import logging


def difference(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """The difference of two logits of the last token, of each copy."""
    return (logits[:, -1, tokens[0]] - logits[:, -1, tokens[1]]).float()


def recorded(model: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The residual stream (B, T, D) after each block, and the logits of the last token."""
    kept: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: kept.append(first(output)))
        for layer in model.model.layers
    ]
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    for hook in hooks:
        hook.remove()
    return kept, logits


def patch(model: Any, clean: torch.Tensor, corrupted: torch.Tensor, tokens: list[int]) -> list[list[float]]:
    """A batch for each block: copy t has the clean value at token t."""
    source, good = recorded(model, clean)
    _, bad = recorded(model, corrupted)
    low, high = difference(bad, tokens)[0], difference(good, tokens)[0]
    count, rows = clean.shape[1], []
    at = torch.arange(count)
    for layer, values in zip(model.model.layers, source):

        def replaced(_: Any, __: Any, output: Any, values: torch.Tensor = values) -> Any:
            x = first(output)
            x[at, at] = values[0]
            return output

        hook = layer.register_forward_hook(replaced)
        logits = model(input_ids=corrupted.expand(count, -1), use_cache=False, logits_to_keep=1).logits
        hook.remove()
        rows.append(((difference(logits, tokens) - low) / (high - low)).tolist())
    return rows


def knock_out(model: Any, clean: torch.Tensor, _: torch.Tensor, tokens: list[int]) -> list[list[float]]:
    """A batch for each block: in copy k the last token does not see token k."""
    count, rows = clean.shape[1], []
    least = torch.finfo(model.dtype).min
    mask = torch.full((count, count), least, dtype=model.dtype).triu(1)[None, None].repeat(count - 1, 1, 1, 1)
    at = torch.arange(count - 1)
    mask[at, 0, -1, at] = least
    for layer in model.model.layers:

        def masked(_: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
            return arguments, {**keywords, "attention_mask": mask}

        hook = layer.self_attn.register_forward_pre_hook(masked, with_kwargs=True)
        logits = model(input_ids=clean.expand(count - 1, -1), use_cache=False, logits_to_keep=1).logits
        hook.remove()
        rows.append(difference(logits, tokens).tolist())
    return rows


def attribution(
    model: Any, clean: torch.Tensor, corrupted: torch.Tensor, tokens: list[int]
) -> list[list[float]]:
    """Two runs, and a backward pass to the residual stream after each block."""
    with torch.no_grad():
        source, good = recorded(model, clean)
    with torch.enable_grad():
        kept: list[torch.Tensor] = []

        def keep(_: Any, __: Any, output: Any) -> None:
            x = first(output)
            x.retain_grad()
            kept.append(x)

        hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
        x = model.model.embed_tokens(corrupted).detach().requires_grad_()
        logits = model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits
        for hook in hooks:
            hook.remove()
        low = difference(logits, tokens)[0]
        low.backward()
    high = difference(good, tokens)[0]
    return [
        (((a - b.detach()).float() * b.grad.float()).sum(-1)[0] / (high - low.detach())).tolist()
        for a, b in zip(source, kept)
        if b.grad is not None
    ]


def main() -> None:
    """Measure each sweep once in each dtype, after a run that is not measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("ids")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(asked.threads)
    torch.set_grad_enabled(False)
    clean, corrupted, tokens = json.loads(asked.ids)
    sweeps = {"patch": patch, "knock-out": knock_out, "attribution": attribution}
    found: dict[str, dict[str, Any]] = {}
    for name in asked.dtypes:
        model = load(asked.file)[0].to(getattr(torch, name)).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        found[name] = {}
        for sweep, run in sweeps.items():
            arguments = (model, torch.tensor([clean]), torch.tensor([corrupted]), tokens)
            run(*arguments)
            start = time.perf_counter()
            values = run(*arguments)
            found[name][sweep] = [time.perf_counter() - start, values]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
