"""Reads the sliding windows of families in which only some layers have a window (`SlidingWindows`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.positions import Rotary
from pellucid.model.rotary_metadata import rope_parameters
from pellucid.model.spec import ModelSpec

LAYER_TYPES = {"sliding_attention": True, "full_attention": False}
GGUF_WINDOW, GGUF_PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


class SlidingWindows(Struct, frozen=True):
    """The numbers and keys of a family in which every layer has a sliding window, except every ``period``-th layer.

    ``period`` is a default. A file may state another period (in config.json under ``period_key``), or the type of each
    layer. If ``own_positions`` is true, layers with a window have separate rotary positions. Only config.json can state
    a scaling for these positions. ``base`` is the default of their rotary base (0: the base of the other layers), and
    ``base_key`` is the key of this base in config.json before transformers 5.
    """

    period: int
    period_key: str = ""
    own_positions: bool = False
    base: float = 0.0
    base_key: str = "rope_theta"

    def from_config(self, config: Config, spec: ModelSpec, base: float) -> ModelSpec:
        """Set the windows that config.json states. ``base`` is the default rotary base of the other layers."""
        layers, rotary, fields = len(spec.blocks), spec.attention.rotary, {}
        if self.own_positions and rotary:
            own = rope_parameters(config, "sliding_attention", self.base_key, self.base or base)
            fields = {"rotary": Rotary(own[0], rotary.dims, rotary.pairing, own[1])}
        return slide(spec, self._layers(config, layers), config.count("sliding_window"), **fields)

    def _layers(self, config: Config, layers: int) -> list[bool]:
        period = config.count(self.period_key, self.period) if self.period_key else self.period
        by_period = except_every(period, layers)
        stated = sliding_layers(config, by_period)
        if config.has(self.period_key) and stated != by_period:
            raise config.error(
                self.period_key, f"is {period}, but layer_types has another period: remove one of the two"
            )
        return stated

    def from_gguf(self, config: Config, spec: ModelSpec) -> ModelSpec:
        """Set the windows that GGUF states. ``config`` reads keys with the architecture as prefix."""
        layers, rotary, fields = len(spec.blocks), spec.attention.rotary, {}
        if self.own_positions and rotary:
            base = config.number("rope.freq_base_swa", self.base or rotary.base, low=1.0)
            fields = {"rotary": Rotary(base, rotary.dims, rotary.pairing)}
        if config.is_list(GGUF_PATTERN):
            sliding = config.flags(GGUF_PATTERN, layers) or []
        else:
            sliding = except_every(config.count(GGUF_PATTERN, self.period), layers)
        return slide(spec, sliding, config.count(GGUF_WINDOW), **fields)


def sliding_layers(config: Config, default: list[bool]) -> list[bool]:
    """True for each layer with a sliding window, from ``layer_types`` or else from ``default``."""
    return config.choices("layer_types", LAYER_TYPES, len(default)) or default


def switched_windows(config: Config, spec: ModelSpec, by_default: Callable[[int], bool]) -> ModelSpec:
    """Set the windows that ``use_sliding_window`` switches on. ``layer_types`` names the layers with a window; without
    ``layer_types``, ``by_default`` selects them.
    """
    window = config.optional_count("sliding_window") if config.flag("use_sliding_window", False) else 0
    default = [window > 0 and by_default(layer) for layer in range(len(spec.blocks))]
    sliding = sliding_layers(config, default)
    if any(sliding) and not window:
        raise config.error(
            "layer_types",
            "has sliding_attention, but there is no window: set use_sliding_window to true and sliding_window to a "
            "number",
        )
    return slide(spec, sliding, window) if any(sliding) else spec


def slide(spec: ModelSpec, sliding: Sequence[bool], window: int, **fields: Any) -> ModelSpec:
    """Set the window of the sliding layers to ``window`` tokens, and replace further ``fields`` of their attention."""
    return spec.change_attention(
        lambda layer, attention: replace(attention, window=window, **fields) if sliding[layer] else attention
    )


def except_every(n: int, layers: int) -> list[bool]:
    """For each layer, False if its number (from 1) is a multiple of ``n``, otherwise True."""
    return [(layer + 1) % n != 0 for layer in range(layers)]
