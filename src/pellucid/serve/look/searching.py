"""POST /look/beams: beam search, with the tree of all candidates."""

from __future__ import annotations

from copy import copy
from dataclasses import asdict
from typing import Any

from pellucid.llm import LLM
from pellucid.serve.body import Body
from pellucid.serve.look.fields import edits_of, no_more, prompt_of
from pellucid.serve.look.tokens import token_fields

USUAL_BEAMS, MOST_BEAMS = 4, 16
USUAL_TOKENS, MOST_TOKENS = 12, 200


def beams(body: Body, llm: LLM) -> dict[str, Any]:
    """Texts, best first, and the search tree. Each node has its token's text.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
    """
    prompt, edits = prompt_of(body, llm), edits_of(body, llm)
    count = body.count("num_beams", 1, MOST_BEAMS) or USUAL_BEAMS
    tokens = body.count("max_tokens", 1, MOST_TOKENS) or USUAL_TOKENS
    no_more(body, "a search has prompt, num_beams, max_tokens and edits")
    found = llm.beam_search(
        prompt, num_beams=count, num_return_sequences=count, max_new_tokens=tokens, edits=edits
    )
    groupers = {0: llm.tokenizer.grouper()}
    for token in prompt:
        groupers[0].push(token)
    tree = [asdict(found.tree[0])]
    for node in found.tree[1:]:
        groupers[node.id] = grouper = copy(groupers[node.parent])
        fields = token_fields(llm.tokenizer, node.token, grouper.push(node.token))
        tree.append({**asdict(node), **fields})
    return {
        "prompt": prompt,
        "texts": [
            {"text": one.text, "score": one.score, "node": one.node, "finish_reason": one.finish_reason}
            for one in found.texts
        ],
        "tree": tree,
    }
