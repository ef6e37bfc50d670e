"""POST /look/beams: a beam search, with the tree of all candidates that it considered."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pellucid.llm import LLM
from pellucid.serve.body import Body
from pellucid.serve.look.fields import no_more, prompt_of

USUAL_BEAMS, MOST_BEAMS = 4, 16
USUAL_TOKENS, MOST_TOKENS = 12, 200


def beams(body: Body, llm: LLM) -> dict[str, Any]:
    """The texts, best first, and the tree; each node with its token's text.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
    """
    prompt = prompt_of(body, llm)
    count = body.count("num_beams", 1, MOST_BEAMS) or USUAL_BEAMS
    tokens = body.count("max_tokens", 1, MOST_TOKENS) or USUAL_TOKENS
    no_more(body, "a search has prompt, num_beams and max_tokens")
    found = llm.beam_search(prompt, num_beams=count, num_return_sequences=count, max_new_tokens=tokens)
    return {
        "prompt": prompt,
        "texts": [
            {"text": one.text, "score": one.score, "node": one.node, "finish_reason": one.finish_reason}
            for one in found.texts
        ],
        "tree": [
            {**asdict(node), "piece": llm.tokenizer.piece(node.token) if node.id else ""}
            for node in found.tree
        ],
    }
