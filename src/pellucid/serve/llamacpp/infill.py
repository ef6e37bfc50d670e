"""/infill: fills the gap between a prefix and a suffix, with other files of the repository as context.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import Body
from pellucid.serve.llamacpp.completion import LlamaCompletion
from pellucid.serve.model import ServedModel
from pellucid.tokenize.infill import infill_prompt

MOST_FILES = 256


def infill_request(body: Body, llm: ServedModel) -> LlamaCompletion:
    """Read an infill request.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
    """
    before = (body.text("input_prefix") or "") + (body.text("prompt") or "")
    after, files = body.text("input_suffix") or "", list[tuple[str, str]]()
    extra = body.objects("input_extra")
    if len(extra) > MOST_FILES:
        raise InvalidRequest(f"input_extra has {len(extra):,} files; the limit is {MOST_FILES}")
    for at, one in enumerate(extra):
        name, text = one.get("filename", "file"), one.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidRequest(
                f"input_extra[{at}]={brief(one)}: must have a filename and a text, both texts"
            )
        files.append((name, text))
    ids, ends = infill_prompt(llm.tokenizer, before, after, files)
    return LlamaCompletion.made([ids], 1, False, body, llm, ends)
