"""OLMo 2 (OLMo Team 2025): norms of the outputs instead of the inputs, and of all queries and all keys."""

from __future__ import annotations

from pellucid.model.standard_decoder import StandardDecoder

OLMO2 = StandardDecoder("olmo2", whole_norm=True, placement="output").family()
