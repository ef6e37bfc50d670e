"""POST /look/graph: an attribution graph of the token after a prompt."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.serve.look.edit_fields import dictionary_of, edits_of
from pellucid.serve.look.prompt_fields import PromptFields, prompt_of
from pellucid.serve.request_body import RequestBody
from pellucid.trace.graphs.build import attribution_graph
from pellucid.trace.graphs.promoted import promoted_tokens

MAX_TOKENS, MAX_NODES = 512, 4096
BUDGET = 2 << 30
Share = Annotated[float, Meta(gt=0, le=1)]


class GraphFields(PromptFields, frozen=True, kw_only=True):
    """Fields of /look/graph: the name of a ``dictionary`` of transcoders, and the number of ``nodes`` before pruning.

    ``tokens`` are texts or ids of the tokens whose logits are explained; by default the most likely tokens.
    ``node_share`` and ``edge_share`` are the shares of the influence that are kept.
    """

    dictionary: str | None = None
    nodes: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 500
    heads: bool | None = None
    tokens: Annotated[list[Any], Meta(min_length=1, max_length=16)] | None = None
    first: Annotated[int, Meta(ge=0)] = 1
    node_share: Share = 0.8
    edge_share: Share = 0.98


def graph(body: RequestBody[GraphFields], llm: LLM) -> dict[str, Any]:
    """The pruned graph in Neuronpedia's format, with the tokens that units promote (``trace/graphs``)."""
    fields, prompt, edits = body.fields, prompt_of(body, llm), edits_of(body.fields.edits, llm)
    if len(prompt.read) > MAX_TOKENS:
        raise InvalidRequest(f"prompt has {len(prompt.read):,} tokens; the limit is {MAX_TOKENS:,} here")
    own = fields.dictionary
    dictionary = None if own is None else dictionary_of("dictionary", own, llm)
    whole = attribution_graph(
        llm,
        prompt.ids,
        dictionary,
        target=fields.tokens,
        nodes=fields.nodes,
        heads=fields.heads,
        first=fields.first,
        edits=edits,
        budget=BUDGET,
    )
    found = whole.pruned(fields.node_share, fields.edge_share)
    return found.as_dict(scan=llm.checkpoint.path.stem, promoted=promoted_tokens(llm, found, dictionary))
