"""Tracing and intervention: record values at named points, edit them, and analyse them with lenses.

from pellucid.trace import ablate, logit_lens

with llm.trace("blocks.*.residual") as t:
    llm.generate("The capital of France is", edits=[ablate("blocks.23.attention.heads[heads=4]")])
logit_lens(llm, t.sequences[0])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid.trace.backward.gradients import attribution_patch, gradients, integrated_gradients
    from pellucid.trace.backward.jacobian_lens import JacobianLens
    from pellucid.trace.control_vector import ControlVector, RegisteredVectors
    from pellucid.trace.dataset.activation_dataset import ActivationDataset
    from pellucid.trace.dictionaries.dictionary import Dictionary
    from pellucid.trace.edits import (
        ablate,
        add,
        call,
        forbid_expert,
        forbid_token,
        force_expert,
        force_token,
        mask,
        replace,
        scale,
    )
    from pellucid.trace.graphs.build import attribution_graph, check_graph
    from pellucid.trace.graphs.targets import promoted_tokens
    from pellucid.trace.lenses.attribution import attribute
    from pellucid.trace.lenses.comparison import difference, neighbours, similarity, vector_of, word_map
    from pellucid.trace.lenses.features import features, top_examples
    from pellucid.trace.lenses.heads import head_scores, heads_between, position_of, rollout, token_contributions
    from pellucid.trace.lenses.logit_lens import label_lens, logit_lens
    from pellucid.trace.lenses.patching import ablation_sweep, causal_trace, knockout_sweep, patch_sweep, path_patch
    from pellucid.trace.lenses.relevance import relevance
    from pellucid.trace.lenses.targets import divergence, log_probability, logit_difference, probability, sweep
    from pellucid.trace.linear_probe import LinearProbe
    from pellucid.trace.recorded_run import RecordedRun
    from pellucid.trace.why import causes, find_heads, raised_tokens

__all__ = ["ActivationDataset", "Dictionary", "RecordedRun"]
__all__ += ["ControlVector", "JacobianLens", "LinearProbe", "RegisteredVectors"]
__all__ += ["ablate", "add", "call", "mask", "replace", "scale"]
__all__ += ["forbid_expert", "forbid_token", "force_expert", "force_token"]
__all__ += ["attribute", "label_lens", "logit_lens", "relevance", "token_contributions"]
__all__ += ["causes", "find_heads", "raised_tokens"]
__all__ += ["features", "head_scores", "heads_between", "position_of", "rollout", "top_examples"]
__all__ += ["difference", "neighbours", "similarity", "vector_of", "word_map"]
__all__ += ["ablation_sweep", "causal_trace", "knockout_sweep", "patch_sweep", "path_patch", "sweep"]
__all__ += ["divergence", "log_probability", "logit_difference", "probability"]
__all__ += ["attribution_patch", "gradients", "integrated_gradients"]
__all__ += ["attribution_graph", "check_graph", "promoted_tokens"]

_LAZY = {
    "edits": (
        *("ablate", "add", "call", "forbid_expert", "forbid_token", "force_expert", "force_token"),
        *("mask", "replace", "scale"),
    ),
    "dataset.activation_dataset": ("ActivationDataset",),
    "dictionaries.dictionary": ("Dictionary",),
    "control_vector": ("ControlVector", "RegisteredVectors"),
    "linear_probe": ("LinearProbe",),
    "recorded_run": ("RecordedRun",),
    "lenses.attribution": ("attribute",),
    "why": ("causes", "find_heads", "raised_tokens"),
    "lenses.features": ("features", "top_examples"),
    "backward.jacobian_lens": ("JacobianLens",),
    "lenses.heads": ("head_scores", "heads_between", "position_of", "rollout", "token_contributions"),
    "lenses.logit_lens": ("label_lens", "logit_lens"),
    "lenses.comparison": ("difference", "neighbours", "similarity", "vector_of", "word_map"),
    "backward.gradients": ("attribution_patch", "gradients", "integrated_gradients"),
    "graphs.build": ("attribution_graph", "check_graph"),
    "graphs.targets": ("promoted_tokens",),
    "lenses.patching": ("ablation_sweep", "causal_trace", "knockout_sweep", "patch_sweep", "path_patch"),
    "lenses.relevance": ("relevance",),
    "lenses.targets": ("divergence", "log_probability", "logit_difference", "probability", "sweep"),
}
"""The names of each module. A module is imported when a name is first used, so that models load without them."""


def __getattr__(name: str) -> Any:
    import importlib

    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
