"""Values at the points of interp-engine on the tiny models, against Pellucid's points.

    python tests/oracles/interp_engine_oracle.py [MODEL ...]

interp-engine has standard names of values ("resid_post.10") for all architectures. Its eager backend reads them from
transformers' model. Both run the same tokens in float32, Pellucid with precise activations. Each point that
interp-engine serves for a model, in each layer, is compared with the point of Pellucid in ``SAME``: the sizes and the
masked positions must be equal, and the largest difference at most 1e-4 of the range. interp-engine has heads side by
side in one dimension, and Pellucid in two. The chosen experts of a token are compared in the order of their numbers.

``factors`` has constants that one side multiplies before the point and the other after it, and ``capped`` likewise the
function of the logits. A model is skipped, and named, if interp-engine does not load it, or if it is in ``OTHERWISE``.
The exit status is 1 if a value differs that is not in ``KNOWN``. Made with interp-engine 1.14.2, transformers 5.24 and
torch 2.13.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from interp_engine import Address, EagerModel, capture, load_model
from interp_engine.points import Scope, hyper_connection_names, known_names
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.points import distance, values_of_points
from support.tiny import DECODERS, TINY

from pellucid.plan.points import Point

IDS = [3, 17, 5, 40, 2, 77, 9, 31, 8, 60, 4, 11]
CLOSE = 1e-4
"""Largest difference, relative to the range of interp-engine's values."""


class Same(NamedTuple):
    """The ``points`` that can have a value, the first that the model has; a tuple of points is joined for each head.

    ``reader`` is a point that is computed from the value: a value that is computed later is not the one.
    """

    points: tuple[str | tuple[str, ...], ...]
    reader: str = ""


STREAMS = tuple(("embed", *(f"altup.{i}.match" for i in range(1, count))) for count in (4, 3))
"""In Gemma 3n, interp-engine's residual streams have all streams of AltUp."""
BEFORE = (
    "blocks.N-1.altup.spread", "blocks.N-1.residual", *STREAMS, "embed.norm", "position", "embed.widen", "embed",
)  # fmt: skip
SAME: Mapping[str, Same] = {
    "embeddings": Same(("embed",)),
    "resid_pre": Same(BEFORE),
    # Without a norm, attention reads the residual stream (OLMo 2).
    "attn_in": Same(
        ("blocks.N.attention.norm", "blocks.N.recurrent.norm", *BEFORE), reader="blocks.N.attention.q"
    ),
    "q_norm_in": Same(("blocks.N.attention.q",)),
    "q_norm_out": Same(("blocks.N.attention.q_norm",)),
    "k_norm_in": Same(("blocks.N.attention.k",)),
    "k_norm_out": Same(("blocks.N.attention.k_norm",)),
    "value": Same(("blocks.N.attention.v_norm", "blocks.N.attention.v")),
    "attn_scores": Same(("blocks.N.attention.scores",)),
    "attn_probs": Same(("blocks.N.attention.pattern",)),
    # It is the input of the output matrix: in gated attention, the heads after their gates.
    "z": Same(
        (
            "blocks.N.attention.gated", "blocks.N.attention.heads",
            "blocks.N.recurrent.output_norm", "blocks.N.recurrent.gated",
        )
    ),
    # It is the output of a matrix for the query and the gate of each head.
    "attn_gate": Same((("blocks.N.attention.q", "blocks.N.attention.gate"),)),
    "attn_out": Same(("blocks.N.attention.output", "blocks.N.recurrent.output")),
    "attn_out_post": Same(
        ("blocks.N.attention.post_norm", "blocks.N.attention.output", "blocks.N.recurrent.output")
    ),
    # Laurel (Gemma 3n) and the recurrent half of a block (Falcon-H1) are added after attention.
    "resid_mid": Same(
        ("blocks.N.laurel.scale", "blocks.N.recurrent.residual", "blocks.N.attention.residual")
    ),
    # Without a norm of its own, a feed-forward part reads attention's (parallel blocks, OPT's post-norm blocks) or the
    # residual stream (OLMo 2).
    "mlp_in": Same(
        ("blocks.N.feedforward.norm", "blocks.N.attention.norm", "blocks.N.attention.residual"),
        reader="blocks.N.feedforward.up",
    ),
    # Gemma 4 has a mixture beside a plain feed-forward part, which is Pellucid's shared expert.
    "mlp_pre": Same(
        (
            "blocks.N.feedforward.gate", "blocks.N.feedforward.up",
            "blocks.N.feedforward.shared.gate", "blocks.N.feedforward.shared.up",
        )
    ),
    "mlp_pre_linear": Same(("blocks.N.feedforward.up", "blocks.N.feedforward.shared.up")),
    "mlp_act": Same(("blocks.N.feedforward.hidden", "blocks.N.feedforward.shared.hidden")),
    # Gemma 4 scales the input of the router's matrix, and Pellucid its output.
    "router_logits": Same(("blocks.N.feedforward.router_scale", "blocks.N.feedforward.router")),
    "expert_weights": Same(("blocks.N.feedforward.expert_weights",)),
    "expert_indices": Same(("blocks.N.feedforward.experts",)),
    "mlp_out": Same(("blocks.N.feedforward.output",)),
    "mlp_out_post": Same(("blocks.N.feedforward.post_norm", "blocks.N.feedforward.output")),
    "resid_post": Same(("blocks.N.altup.spread", "blocks.N.residual")),
    "final_norm": Same(("norm",)),
    "lm_head": Same(("project.logits",)),
}  # fmt: skip
OTHERWISE: Mapping[str, str] = {
    "falcon-alibi*": "transformers' eager attention differs from its other attention, which the golden has",
    "gemma3-softcap": "transformers does not hand the cap of the scores on, and tiny_oracle.py does",
    "mpt-clip": "transformers does not clip queries, keys and values",
    "phi3-long": "for short texts transformers takes other factors of positions",
}
"""Models that transformers computes otherwise."""
ALONE = "interp-engine has the result of the experts without the shared expert, which the block adds"
FIRST_NORM = "interp-engine takes final_layer_norm of the first block for the norm after the last block"
SWAPPED = "interp-engine takes the scores of Llama 4's router for its logits, and the logits for its weights"
KNOWN: Mapping[tuple[str, str], str] = {
    **{("granitemoeshared", name): ALONE for name in ("mlp_out", "mlp_out_post")},
    **{("granitemoehybrid", name): ALONE for name in ("mlp_out", "mlp_out_post")},
    **{(family, "final_norm"): FIRST_NORM for family in ("opt-post", "xglm*")},
    **{("llama4*", name): SWAPPED for name in ("router_logits", "expert_weights")},
}
"""Patterns of (model, point) that differ, and the reason."""
MANIFOLD = "they exist in models with hyper-connections (DeepSeek-V4, Motif 3), which Pellucid does not run"

Arrays = Mapping[str, NDArray[Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=DECODERS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    counts = {name: Counter[str]() for name in SAME}
    refusals = defaultdict[str, tuple[set[str], set[str]]](lambda: (set(), set()))
    wrong, compared, numbers, largest = list[str](), set[str](), 0, 0.0
    for model in given.models:
        try:
            if reason := next((why for one, why in OTHERWISE.items() if fnmatchcase(model, one)), None):
                raise ValueError(reason)
            engine = load_model(str(TINY[model]), backend="eager", device="cpu", dtype="float32", tokenizer=tokenizer())
        except Exception as error:
            print(f"skipped {model}: {error}".splitlines()[0][:120], flush=True)
            continue
        theirs, refused = engine_values(engine)
        own, points = values_of_points(TINY[model], IDS)
        for address, why in refused.items():
            counts[address.name]["refused"] += 1
            refusals[why][0].add(address.name)
            refusals[why][1].add(model)
        for address, value in theirs.items():
            apart, found = difference(address, own, points, theirs, engine.config)
            known = any(
                fnmatchcase(model, one) and name == address.name and (not apart <= CLOSE) for one, name in KNOWN
            )
            counts[address.name]["known" if known else "equal" if apart <= CLOSE else "wrong"] += 1
            if apart <= CLOSE:
                compared.add(model)
                numbers, largest = numbers + value.size, max(largest, apart)
            elif not known:
                wrong.append(f"{model}: {address}: {found} is {apart:.2g} of the range apart")
    columns = ("equal", "known", "refused")
    print(f"{'':16}" + "".join(f"{column:>9}" for column in columns))
    for name, of_name in counts.items():
        print(f"{name:16}" + "".join(f"{of_name[column]:9}" for column in columns))
    print("refused by interp-engine only when it is run:")
    for why, (names, models) in refusals.items():
        print(f"  {', '.join(sorted(names))}: {why} ({', '.join(sorted(models))})")
    print("differ, for a reason in KNOWN:")
    for (models, name), why in KNOWN.items():
        print(f"  {models}: {name}: {why}")
    print(f"of no tiny model: {', '.join(sorted(hyper_connection_names()))}: {MANIFOLD}")
    print("\n".join(wrong))
    total = sum(of_name["equal"] for of_name in counts.values())
    print(f"{len(compared)} models, {total:,} values with {numbers:,} numbers equal, {len(wrong):,} differ")
    print(f"largest difference: {largest:.2g} of the range")
    return int(bool(wrong) or (given.models == DECODERS and set(SAME) != known_names()))


def tokenizer() -> Any:
    """Any tokenizer: the tiny models have none, and interp-engine needs one."""
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))


def engine_values(engine: EagerModel) -> tuple[dict[Address, NDArray[Any]], dict[Address, str]]:
    """The values of interp-engine, (1, T, ...); and the points that only the run refuses, with the reason's start."""
    values, refused = dict[Address, NDArray[Any]](), dict[Address, str]()
    for point in engine.points():
        for layer in [None] if point.scope is Scope.GLOBAL else range(engine.n_layers):
            address = Address(point.name, layer)
            try:
                if engine.refuses(address) is None:
                    values[address] = capture(engine, IDS, [address])[address].numpy()
            except Exception as error:
                why = re.sub(r"(layer|Layer) \d+('s \S+)?| \(\w+\)|^\w+'s ", r"\1", str(error))
                refused[address] = re.split("[;:,.] |, and ", why.removeprefix("Cannot capture 'attn_scores': "))[0]
    return values, refused


def difference(
    address: Address, own: Arrays, points: Mapping[str, Point], theirs: Mapping[Address, NDArray[Any]], config: Any
) -> tuple[float, str]:
    """The largest difference relative to the range, infinite without a counterpart; and the names of the points."""
    names = counterpart(address, points)
    if not names:
        return np.inf, "no point"
    parts = [own[name] for name in names]
    mine = np.concatenate([part.reshape(parts[0].shape) for part in parts], -1) if parts[1:] else parts[0]
    value = theirs[address]
    if value.ndim == 4 and value.shape[0] != 1:
        value = np.moveaxis(value, 0, 2)  # several residual streams: (1, T, S, D)
    if address.name in ("expert_weights", "expert_indices"):
        chosen = Address("expert_indices", address.layer)
        experts = own[counterpart(chosen, points)[0]]
        if mine.shape == value.shape and chosen in theirs:
            mine = np.take_along_axis(mine, experts.argsort(-1), -1)
            value = np.take_along_axis(value, theirs[chosen].argsort(-1), -1)
    if address.name == "attn_scores":
        value = np.where(value > -1e30, value, -np.inf)
    if mine.size != value.size:
        return np.inf, "+".join(names)
    config = getattr(config, "text_config", config)
    value = capped(value, config) if address.name == "lm_head" else value
    value = value * factors(config).get(address.name, 1)
    return distance(mine.reshape(value.shape), value), "+".join(names)


def counterpart(address: Address, points: Mapping[str, Point]) -> tuple[str, ...]:
    """The points of Pellucid with the value, joined if there are several; () if there is none."""
    same, block = SAME[address.name], address.layer or 0
    reader = points.get(of_block(same.reader, block))
    for names in same.points:
        found = [of_block(name, block) for name in ((names,) if isinstance(names, str) else names)]
        if all(name in points and (reader is None or points[name].operation < reader.operation) for name in found):
            return tuple(found)
    return ()


def of_block(name: str, block: int) -> str:
    return name.replace(".N-1.", f".{block - 1}.").replace(".N.", f".{block}.")


def factors(config: Any) -> Mapping[str, float]:
    """The factor that turns interp-engine's values into Pellucid's, by point.

    ``embed`` has the factor of the embeddings, which transformers multiplies after the module. The outputs of Granite's
    sublayers come before the factor in Pellucid, and attn_out_post and mlp_out_post after it. transformers multiplies
    the inputs of Falcon-H1's sublayers and the output of its feed-forward part; Pellucid multiplies what is added to
    the residual stream.
    """
    residual = getattr(config, "residual_multiplier", 1)
    outside = getattr(config, "attention_out_multiplier", 1)
    inside = getattr(config, "attention_in_multiplier", 1)
    down = getattr(config, "mlp_multipliers", (1, 1))[1]
    return {
        "embeddings": getattr(config, "embedding_multiplier", 1),
        **dict.fromkeys(("attn_in", "value", "z", "attn_out"), 1 / inside),
        "attn_out_post": 1 / residual / inside / outside,
        "mlp_out": 1 / down,
        "mlp_out_post": 1 / residual / down,
    }


def capped(logits: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    """Logits after the factor and the cap that follow the projection."""
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1
    logits = logits * factor / (getattr(config, "logits_scaling", None) or 1)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * np.tanh(logits / cap) if cap else logits


if __name__ == "__main__":
    sys.exit(main())
