"""Models on paper: the plan and the size of a model whose shape is known, without its weights.

The shapes are in ``paper.json``: a family, its dimensions (``pellucid.testing``), and the publication as the source. A
``config.json`` describes a shape too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from pellucid import pipeline
from pellucid.errors import FileFormatError, reason, shown
from pellucid.measure.cost import Cost, Rates, attention_costs, kv_bytes, state_bytes
from pellucid.model.read import planned_from_config
from pellucid.model.shapes import ENCODER, Shape, expected_shapes
from pellucid.model.spec import Mixture, ModelSpec
from pellucid.model.weight_map import Model
from pellucid.plan.plan import Plan
from pellucid.runtime.cache_layout import LayerShape
from pellucid.testing import WithoutData, planned_model
from pellucid.weights.catalogue import find
from pellucid.weights.quant.format import Format, lookup
from pellucid.weights.safetensors import INDEX_NAME, weight_files

FORMATS = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "MXFP4", "Q2_K")  # the formats of the listed sizes
DEFAULT_FORMAT = "Q4_K"


@dataclass(frozen=True)
class PaperModel:
    """A model on paper.

    ``form`` is the format of the plan's matrices, if their columns are whole blocks. ``active`` is the number of
    parameters that a token uses. ``file_bytes`` are the sizes of the file by format.
    """

    name: str
    source: str
    form: str
    spec: ModelSpec
    plan: Plan
    parameters: int
    active: int
    file_bytes: Mapping[str, int]

    @property
    def token_bytes(self) -> int:
        return kv_bytes(self.plan.layers, 1)

    @property
    def context_bytes(self) -> int:
        return kv_bytes(self.plan.layers, self.spec.context)

    @property
    def cache_description(self) -> str:
        """A description of a token's keys and values: for each kind of layer its heads, and the widths of a head."""
        kinds = Counter(layer for layer in self.plan.layers if isinstance(layer, LayerShape))
        parts = [
            f"{count} layers x {layer.kv_heads} heads x ({layer.head_dim} + {layer.value_dim}) {layer.kv_dtype}"
            + (f" of {layer.window:,} tokens" if layer.window else "")
            for layer, count in kinds.items()
        ]
        latent = any(layer.latent for layer in self.spec.attentions)
        more = "; a key is the latent vector and the rotated part, a value is the latent vector" if latent else ""
        return " and ".join(parts) + more

    @property
    def state_bytes(self) -> int:
        return sum(layer.page_bytes for layer in self.plan.layers if layer.recurrent)

    @property
    def read_bytes(self) -> int:
        return self.plan.weight_bytes

    @property
    def multiply_adds(self) -> int:
        return sum(op.multiply_adds for op in self.plan.operations)

    def decode(self, rates: Rates, seen: int = 0) -> float:
        """The maximum tokens per second of one sequence on a machine, after ``seen`` tokens.

        Each token reads the weights, the keys and values of the tokens that it sees, and the states.
        """
        cached = sum(cost.nbytes * min(seen, cost.window or seen) for cost in attention_costs(self.plan))
        nbytes = self.read_bytes + cached + state_bytes(self.plan)
        return 1 / Cost(nbytes, self.multiply_adds).seconds(rates)

    def prefill(self, rates: Rates) -> float:
        """The maximum prefill tokens per second on a machine, from the machine's rate of multiply-adds.

        Attention's products are not counted.
        """
        return rates.multiply / self.multiply_adds


@lru_cache(maxsize=1)
def paper_shapes() -> Mapping[str, Mapping[str, Any]]:
    shapes: dict[str, Mapping[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return shapes


def config_of(model: str) -> Path | None:
    """The ``config.json`` that a path names, alone or in a folder without weights; None for other models."""
    path = Path(os.path.expanduser(model))
    if os.path.isdir(path):  # unlike ``Path.is_dir``, False for a name that is too long
        path = path / "config.json"
        if weight_files(path.parent) or any(path.parent.glob("*.gguf")):
            return None
    return path if path.suffix == ".json" and path.name != INDEX_NAME and os.path.isfile(path) else None


def on_paper(model: str) -> bool:
    """True if a model has no weights: a ``config.json``, or a name of ``paper_shapes`` that nothing else has."""
    if config_of(model) is not None:
        return True
    return model in paper_shapes() and find(model) is None and not os.path.exists(model)


def paper_model(name: str, activation_bits: int = 8, kv_dtype: str | None = None) -> PaperModel:
    """A model of ``paper_shapes``, or of a ``config.json``.

    Raises:
        FileFormatError: the file is not a JSON object, or its values contradict each other.
        UnsupportedModel: the architecture of the file is not implemented.
    """
    entry: Mapping[str, Any] = {}
    if file := config_of(name):
        model, name, source = _configured(file), shown(file.absolute().parent.name), file.name
    else:
        entry = paper_shapes()[name]
        source = entry["source"]
        model = planned_model(
            entry["family"], tied=entry.get("tied", True), metadata=entry.get("metadata"), shape=entry["shape"]
        )
    shapes, form = expected_shapes(model.spec), entry.get("form", DEFAULT_FORMAT)
    layouts = {slot: _format(slot, shape, form).packed for slot, shape in shapes.items() if len(shape) > 1}
    plan = pipeline.build_plan(model.spec, layouts, activation_bits, kv_dtype)
    return PaperModel(
        name,
        source,
        form,
        model.spec,
        plan,
        parameters=sum(map(prod, shapes.values())),
        active=sum(_active(model.spec, slot, shape) for slot, shape in shapes.items()),
        file_bytes={name: sum(_bytes(slot, shape, name) for slot, shape in shapes.items()) for name in FORMATS},
    )


def _configured(file: Path) -> Model:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(file, "file", f"cannot be read: {reason(error)}") from error
    if not isinstance(values, dict):
        raise FileFormatError(file, "file", "must be a JSON object, as transformers writes it")
    return planned_from_config(WithoutData("safetensors", file, values))


def _format(slot: str, shape: Shape, form: str) -> Format:
    """The format of a slot: F32 for vectors and routers, ``form`` for other matrices.

    A matrix whose columns are not a multiple of the block of ``form`` has the format Q8_0 or F16.
    """
    if len(shape) < 2 or slot.endswith((".bias", ".router.weight", "norm.weight")):
        return lookup("F32", slot)
    format_ = lookup(form, slot)
    if shape[-1] % format_.block == 0:
        return format_
    return lookup("Q8_0" if shape[-1] % 32 == 0 else "F16", slot)


def _bytes(slot: str, shape: Shape, form: str) -> int:
    return prod(shape[:-1]) * _format(slot, shape, form).row_bytes(shape[-1])


def _active(spec: ModelSpec, slot: str, shape: Shape) -> int:
    """The number of a slot's parameters that a token uses: only the chosen experts, and only one row of a table."""
    tied = spec.head is not None and spec.head.tied
    if slot == "per_layer.embed.weight" or (slot == "embed.weight" and spec.head and not tied):
        return shape[-1]
    if spec.encoder and slot.startswith(ENCODER):
        spec = spec.encoder
    _, _, after = slot.partition("blocks.")
    kind = spec.blocks[int(after.split(".")[0])].feedforward if after else None
    if isinstance(kind, Mixture) and ".experts." in slot:
        return prod(shape) // kind.router.experts * kind.router.chosen
    return prod(shape)
