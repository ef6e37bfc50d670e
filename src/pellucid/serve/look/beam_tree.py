"""POST /look/beams: beam search, with the tree of all candidates."""

from __future__ import annotations

from copy import copy
from dataclasses import asdict
from typing import Annotated, Any

from msgspec import Meta

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.sample.beams import BeamOptions
from pellucid.serve.look.edit_fields import edits_of
from pellucid.serve.look.prompt_fields import PromptFields, prompt_of
from pellucid.serve.look.token_fields import token_fields
from pellucid.serve.request_body import RequestBody


class BeamsFields(PromptFields, frozen=True, kw_only=True):
    """Fields of /look/beams."""

    num_beams: Annotated[int, Meta(ge=1, le=16)] = 4
    max_tokens: Annotated[int, Meta(ge=1, le=200)] = 12


def beams(body: RequestBody[BeamsFields], llm: LLM) -> dict[str, Any]:
    """Texts, best first, the search tree, and the ``length_penalty`` of the scores. Each node has its token's text.

    The ``score`` of a node is the sum of the log-probabilities of its tokens, the score of a text this sum divided by
    the number of tokens to the power of ``length_penalty``.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
    """
    prompt, count = prompt_of(body, llm), body.fields.num_beams
    if prompt.answer:
        raise InvalidRequest(
            f"answer={brief(prompt.answer)}: a beam search begins before the answer: leave it out"
        )
    beams_found = llm.beam_search(
        prompt.ids,
        num_beams=count,
        num_return_sequences=count,
        max_new_tokens=body.fields.max_tokens,
        edits=edits_of(body.fields.edits, llm),
    )
    groupers = {0: llm.tokenizer.grouper()}
    for token in prompt.read:
        groupers[0].push(token)
    tree = [asdict(beams_found.tree[0])]
    for node in beams_found.tree[1:]:
        groupers[node.id] = grouper = copy(groupers[node.parent])
        fields = token_fields(llm.tokenizer, node.token, grouper.push(node.token))
        tree.append({**asdict(node), **fields})
    return {
        "prompt": prompt.read,
        "texts": [
            {"text": one.text, "score": one.score, "node": one.node, "finish_reason": one.finish_reason}
            for one in beams_found.texts
        ],
        "tree": tree,
        "length_penalty": llm.recommended_beams.get("length_penalty", BeamOptions.length_penalty),
    }
