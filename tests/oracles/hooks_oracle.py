"""Names, shapes and values of TransformerLens' hooks on the tiny models, against Pellucid's points.

    python tests/oracles/hooks_oracle.py [MODEL ...] --out tests/goldens/trace/hooks.json

TransformerLens wraps transformers' model (``TransformerBridge``: no folded layer norms). Both run the same tokens in
float32, Pellucid with precise activations. For each name in ``trace/transformer_lens_names.py`` that both have, the
shapes must be equal, and the largest difference at most 1e-4 of the range. Masked scores are not compared.

A model is skipped, and named, if TransformerLens cannot load it, if its logits differ from transformers, or if it
is in ``OTHERWISE``. The exit status is 1 if a value differs that is not in ``KNOWN``. Names that TransformerLens has
and Pellucid refuses are counted. ``--out`` writes {name: {point, or "": refused: [models]}}, with N for the numbers of
blocks, for tests/unit/trace/test_hook_names.py. Made with TransformerLens 4.3.0, transformers 5.24 and torch 2.13.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.points import values_of_points
from support.tiny import DECODERS, TINY

from pellucid.trace.transformer_lens_names import HOOKS, hooks_of

IDS = [3, 17, 5, 40, 2, 77, 9, 31, 8, 60, 4, 11]
CLOSE = 1e-4
"""Largest difference, relative to the range of TransformerLens' values."""
OTHERWISE: Mapping[str, str] = {
    "falcon-alibi": "transformers' eager attention differs from its other attention, which the golden has",
    "falcon_h1-odd": "the multipliers of Falcon-H1 are not in TransformerLens' values",
    "mpt-clip": "transformers does not clip queries, keys and values",
    "phi3-long": "for short texts transformers takes other factors of positions",
}
"""Models that transformers or TransformerLens compute otherwise."""
PATTERNS = "TransformerLens passes the weights after the softmax to this hook"
ALIBI = "the bias counts from the first token, not from the query, which adds a number to each row"
SUMMED = "transformers' module adds the residual stream"
SCORES, OUTPUTS = "blocks.N.attn.hook_attn_scores", ("blocks.N.attn.hook_out", "blocks.N.mlp.hook_out")
KNOWN: Mapping[tuple[str, str], str] = {
    **{(family, SCORES): PATTERNS for family in ("gemma4*", "gptj*", "llama4*", "opt*", "xglm*")},
    **{(family, SCORES): ALIBI for family in ("bloom*", "mpt*")},
    **{("bloom*", name): SUMMED for name in OUTPUTS},
    ("mpt*", OUTPUTS[1]): SUMMED,
    **{(f"deepseek_v{n}-odd", name): "TransformerLens divides the heads by the width of keys"
       for n in (2, 3) for name in ("blocks.N.attn.hook_z", "blocks.N.attn.o.hook_in")},
}  # fmt: skip
"""Patterns of (model, name) that differ, and the reason."""

Arrays = Mapping[str, NDArray[np.float32]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=DECODERS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    counts = {name: Counter[str]() for name in HOOKS}
    wrong, found = list[str](), {name: defaultdict[str, set[str]](set) for name in HOOKS}
    for model in given.models:
        try:
            if model in OTHERWISE:
                raise ValueError(OTHERWISE[model])
            theirs = bridge_values(TINY[model])
        except Exception as error:
            print(f"skipped {model}: {type(error).__name__}: {error}".splitlines()[0][:120], flush=True)
            continue
        own, points = values_of_points(TINY[model], IDS)
        hooks = hooks_of(points)
        for hook in sorted(hook for hook in theirs if kind(hook) in HOOKS):
            problem = difference(hook, theirs[hook], own, hooks) if hook in hooks else "refused"
            found[kind(hook)][point_kind(hook, hooks.get(hook, ""))].add(model)
            known = any(fnmatchcase(model, one) and kind(hook) == name for one, name in KNOWN)
            outcome = "equal" if problem is None else "known" if known else problem
            counts[kind(hook)][outcome] += 1
            if outcome not in ("equal", "known", "refused"):
                wrong.append(f"{model}: {hook}: {problem}")
    print(f"{'':34}{'equal':>8}{'known':>8}{'refused':>8}")
    for name, of_name in counts.items():
        print(f"{name:34}" + "".join(f"{of_name[outcome]:8}" for outcome in ("equal", "known", "refused")))
    print("\n".join(wrong))
    if given.out:
        listed = {
            name: {point: sorted(models) for point, models in sorted(of_name.items())}
            for name, of_name in found.items()
        }
        given.out.write_text(json.dumps(listed, indent=0) + "\n")
    print(f"{sum(one['equal'] for one in counts.values()):,} values equal, {len(wrong):,} differ")
    return int(bool(wrong) or not all(of_name["equal"] for of_name in counts.values()))


def kind(hook: str) -> str:
    """A hook's name with N for the number of its block."""
    return re.sub(r"^blocks\.\d+\.", "blocks.N.", hook)


def point_kind(hook: str, point: str) -> str:
    """A point's name with N for the number of the hook's block, and N-1 for the block before it."""
    if not hook.startswith("blocks."):
        return point
    block = int(hook.split(".")[1])
    return point.replace(f"blocks.{block}.", "blocks.N.").replace(f"blocks.{block - 1}.", "blocks.N-1.")


def difference(hook: str, theirs: Any, own: Arrays, hooks: Mapping[str, str]) -> str | None:
    """The difference between the values of TransformerLens and Pellucid; None if they are equal."""
    mine = own[hooks[hook]]
    if mine.shape != theirs.shape:
        return f"{hooks[hook]} has the shape {mine.shape}, not {theirs.shape}"
    seen = np.isfinite(theirs) & (theirs > -1e30)
    apart = np.abs(mine[seen] - theirs[seen]).max() / np.ptp(theirs[seen])
    return f"{hooks[hook]} is {apart:.2g} of the range apart" if not apart <= CLOSE else None


def bridge_values(path: Path) -> Arrays:
    """The values of all hooks under all of their names."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        expected = model(ids).logits
    architecture = determine_architecture_from_hf_config(model.config)
    config = build_bridge_config_from_hf(model.config, architecture, str(path), torch.float32)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    adapter.cfg.device = "cpu"
    adapter.prepare_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = TransformerBridge(model, adapter, None)
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(ids)
        names = defaultdict[str, set[str]](set)
        for name, hook in bridge.hook_dict.items():
            names[hook.name or name].add(name)
    apart = float((logits - expected).abs().max() / (expected.max() - expected.min()))
    if not apart <= CLOSE:
        raise ValueError(f"its logits are {apart:.2g} of their range from transformers' logits")
    values = {}
    for canonical, value in cache.items():
        if isinstance(value, torch.Tensor):
            for name in {canonical, *names[canonical]}:
                values[name] = value.float().numpy()
    return values


if __name__ == "__main__":
    sys.exit(main())
