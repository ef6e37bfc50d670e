"""/infill: fills the gap between a prefix and a suffix, with other files of the repository as context.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pellucid.errors import InvalidRequest
from pellucid.serve.llamacpp.generation_fields import LLAMACPP_RULES, LlamaFields
from pellucid.serve.llamacpp.llama_completion import LlamaCompletion
from pellucid.serve.request_body import BodyType, RequestBody
from pellucid.serve.served_model import ServedModel
from pellucid.tokenize.infill import infill_prompt

MAX_FILES = 256


class ExtraFile(Struct, frozen=True):
    """Another file of the repository. Clients send further fields, which are ignored."""

    text: str
    filename: str = "file"


class InfillFields(LlamaFields, frozen=True, kw_only=True):
    """Fields of /infill. ``prompt`` continues ``input_prefix``."""

    input_prefix: str = ""
    input_suffix: str = ""
    prompt: str = ""
    input_extra: Sequence[ExtraFile] = ()


INFILL = BodyType(InfillFields, LLAMACPP_RULES)


def infill_request(body: RequestBody[InfillFields], llm: ServedModel) -> LlamaCompletion:
    """Read an infill request. Raises InvalidRequest if a field is wrong."""
    fields = body.fields
    if len(fields.input_extra) > MAX_FILES:
        raise InvalidRequest(f"input_extra has {len(fields.input_extra):,} files; the limit is {MAX_FILES}")
    files = [(one.filename, one.text) for one in fields.input_extra]
    before = fields.input_prefix + fields.prompt
    ids, stop_tokens = infill_prompt(llm.tokenizer, before, fields.input_suffix, files)
    return LlamaCompletion.start([ids], 1, False, body, llm, stop_tokens)
