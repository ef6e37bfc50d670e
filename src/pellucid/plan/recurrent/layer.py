"""The recurrent layer of a block, by its kind."""

from __future__ import annotations

from pellucid.model.spec import DeltaNet, Mamba, Recurrent
from pellucid.plan.builder import Builder
from pellucid.plan.recurrent.delta_net import delta_net
from pellucid.plan.recurrent.mamba import mamba
from pellucid.plan.recurrent.short_convolution import short_convolution


def recurrent(builder: Builder, layer: int, kind: Recurrent, x: str, out: str) -> str:
    """out = recurrent(x), without the residual addition."""
    stage = f"blocks.{layer}.recurrent"
    if isinstance(kind, DeltaNet):
        return delta_net(builder, stage, kind, x, out)
    if isinstance(kind, Mamba):
        return mamba(builder, stage, kind, x, out)
    return short_convolution(builder, stage, kind, x, out)
