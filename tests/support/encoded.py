"""Token ids from the compiled tokenizer pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.tokenize.compiled.compiled_pipeline import CompiledPipeline


def ids_of(pipeline: CompiledPipeline, texts: Sequence[bytes], parse_special: bool) -> list[list[int]]:
    """Token ids of each text. Fails if a text needs the Python implementation."""
    found = pipeline.ids(texts, parse_special)
    assert found is not None
    return [ids.tolist() for ids in found]
