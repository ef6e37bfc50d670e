"""POST /look/causes, /look/raised, /look/heads, /look/place: why a token, what parts say, where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.llm import LLM
from pellucid.serve.look import prompt_fields as prompts
from pellucid.serve.look.explanations import refuse_long, stream_edits
from pellucid.serve.request_body import RequestBody
from pellucid.trace.edits import Edit, ablate
from pellucid.trace.lenses.heads import pattern_points
from pellucid.trace.lenses.logit_lens import logit_lens
from pellucid.trace.lenses.logit_lens import needed as lens_points
from pellucid.trace.lenses.targets import LogProbability
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import read
from pellucid.trace.why import MOST_TOKENS as MOST_READ
from pellucid.trace.why import MOST_TOP as MOST_CAUSES
from pellucid.trace.why import MOST_TRIED, ReadingHead, causes, find_heads, raised_tokens

LOGITS = "project.logits"


class CausesFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/causes. ``token`` and ``against`` are texts or ids."""

    token: Any = None
    against: Any = None
    top: Annotated[int, Meta(ge=1, le=MOST_CAUSES)] = 3
    tried: Annotated[int, Meta(ge=1, le=MOST_TRIED)] = 24


def why(body: RequestBody[CausesFields], llm: LLM) -> dict[str, Any]:
    """The tokens, heads and neurons that make a token lead, each taken out (``trace/why.py``)."""
    fields, prompt = body.fields, prompts.prompt_of(body, llm)
    found = causes(
        llm,
        prompt.ids,
        fields.token,
        against=fields.against,
        top=fields.top,
        tried=fields.tried,
        edits=prompts.edits_of(fields.edits, llm),
    )
    parts = (*found.tokens, *found.heads, *found.neurons)
    named = {found.token, found.against, *(token for one in parts for token in (one.says, *one.raises))}
    return {**found.as_dict(), "texts": {str(token): llm.tokenizer.piece(token) for token in sorted(named)}}


class RaisedFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/raised: the ``points`` that are taken out one after the other."""

    points: Annotated[list[str], Meta(min_length=1, max_length=MOST_CAUSES)]


def raised(body: RequestBody[RaisedFields], llm: LLM) -> dict[str, Any]:
    """For each part, the tokens whose logits after the prompt fall most without it."""
    fields, prompt = body.fields, prompts.prompt_of(body, llm)
    found = raised_tokens(llm, prompt.ids, fields.points, edits=prompts.edits_of(fields.edits, llm))
    named = sorted({token for tokens in found for token in tokens})
    return {"raises": found, "texts": {str(token): llm.tokenizer.piece(token) for token in named}}


class HeadsFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/heads: the ``position`` that reads, and the position ``key`` that is read (any by default)."""

    position: int = -1
    key: Annotated[int, Meta(ge=0)] | None = None
    top: Annotated[int, Meta(ge=1, le=MOST_CAUSES)] = 8


def reading_heads(body: RequestBody[HeadsFields], llm: LLM) -> dict[str, Any]:
    """Heads that read specifically at a position, with what the model says at the end of the prompt without each."""
    fields, prompt, edits = body.fields, prompts.prompt_of(body, llm), stream_edits(body.fields, llm)
    run = _patterns(llm, prompt, edits)
    return _without(llm, prompt, find_heads(llm, run, fields.position, key=fields.key, top=fields.top), edits)


def _patterns(llm: LLM, prompt: prompts.PromptTokens, edits: Sequence[Edit], *more: str) -> SequenceTrace:
    """A run of a prompt with all patterns."""
    refuse_long(prompt, MOST_READ)
    points = [*pattern_points(llm), *more]
    if llm.spec.generates:
        return read(llm, prompt.ids, points, edits, answer=prompt.answer)
    with llm.trace(*points) as trace:
        llm.encode([EncoderInput(prompt.ids)], list(edits))
    return trace.sequences[0]


def _without(
    llm: LLM, prompt: prompts.PromptTokens, found: Sequence[ReadingHead], edits: Sequence[Edit]
) -> dict[str, Any]:
    """The heads as data; for a text that is continued, with the probability of the likeliest token without each."""
    heads = [asdict(one) for one in found]
    if not llm.spec.generates or llm.spec.encoder:
        return {"heads": heads}
    copies = [[ablate(f"blocks.{one.layer}.attention.heads[heads={one.head}]")] for one in found]
    outputs = dict(llm.edited_outputs(prompt.ids, copies, list(edits)))
    token = int(outputs[-1].argmax())
    shares = {number: LogProbability(token, raised=True)(logits) for number, logits in outputs.items()}
    for number, one in enumerate(heads):
        one["without"] = shares[number]
    return {"heads": heads, "token": token, "text": llm.tokenizer.piece(token), "probability": shares[-1]}


class PlaceFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/place: words of the prompt, the ``word`` that reads, and the word ``key`` that it reads."""

    word: str = ""
    key: str = ""


def place(body: RequestBody[PlaceFields], llm: LLM) -> dict[str, Any]:
    """A token, a block and a head that a picture of a prompt should show (``heads`` as in /look/heads, at most one).

    The token is ``word``, or the last token. The head is the head that reads ``key`` there most specifically. Without
    a key, it is the most specific head of the block that multiplies the probability of the likeliest token most.
    """
    prompt, edits = prompts.prompt_of(body, llm), stream_edits(body.fields, llm)
    pieces = [llm.tokenizer.piece(token).strip().lower() for token in prompt.read]
    words = body.fields.word.lower(), body.fields.key.lower()
    at, key = ([n for n, piece in enumerate(pieces) if word and piece == word] for word in words)
    position = at[0] if at else len(pieces) - 1
    if llm.spec.encoder or not pattern_points(llm) or len(pieces) < 2:
        return {"position": position, "heads": []}
    turns = llm.spec.generates and not (at and key)
    run = _patterns(llm, prompt, edits, *((*lens_points(llm), f"{LOGITS}[tokens={position}]") if turns else ()))
    if not turns:
        found = find_heads(llm, run, position, key=key[0] if at and key else None, top=1)
        return {"position": position, **_without(llm, prompt, found, edits)}
    likely = int(run[LOGITS][-1].argmax())
    mine = logit_lens(llm, run, top=1, tokens=[likely], positions=[position]).wanted[1:, 0, 0]
    block = int((mine[1:] / np.maximum(mine[:-1], 1e-300)).argmax()) + 1 if len(mine) > 1 else 0
    own = find_heads(llm, run, position, block=block, top=1)
    return {"position": position, "block": block, "heads": [asdict(one) for one in own]}
