"""POST /look/…: lenses, attribution, features, graphs, beams, tokenization, nearest tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict
from typing import Annotated, Any

from msgspec import Meta

from pellucid.errors import InvalidRequest, brief
from pellucid.llm import LLM
from pellucid.sample.beams import BeamOptions
from pellucid.serve.look import prompt_fields as prompts
from pellucid.serve.request_body import ModelFields, RequestBody, Texts, TokenId, listed_texts
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.edits import Edit
from pellucid.trace.explanation import MOST_STEP, MOST_TOP, explain
from pellucid.trace.graphs.build import attribution_graph
from pellucid.trace.graphs.targets import promoted_tokens
from pellucid.trace.lenses.attribution import attribute
from pellucid.trace.lenses.attribution import needed as attribution_points
from pellucid.trace.lenses.comparison import around
from pellucid.trace.lenses.features import features
from pellucid.trace.lenses.heads import needed as token_points
from pellucid.trace.lenses.heads import token_contributions
from pellucid.trace.lenses.logit_lens import logit_lens
from pellucid.trace.lenses.logit_lens import needed as lens_points
from pellucid.trace.selection import select
from pellucid.trace.traced_model import read
from pellucid.util.checks import whole

# POST /look/features: the features of a server's dictionary that are active at the tokens of a prompt.

FEATURE_TOKENS = 2048


class FeaturesFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/features: the name of a ``dictionary``, and the number ``top`` of features of each token."""

    dictionary: str
    top: Annotated[int, Meta(ge=1, le=100)] = 10


def active_features(body: RequestBody[FeaturesFields], llm: LLM) -> dict[str, Any]:
    """The features with the highest activations at each token, and the explained variance of each point."""
    fields, prompt, edits = body.fields, prompts.prompt_of(body, llm), prompts.edits_of(body.fields.edits, llm)
    dictionary = prompts.dictionary_of("dictionary", fields.dictionary, llm)
    if len(prompt.read) > FEATURE_TOKENS:
        raise InvalidRequest(f"prompt has {len(prompt.read):,} tokens; the limit is {FEATURE_TOKENS:,} here")
    points = [own.name for coder in dictionary.coders.values() for own in (coder.reads, coder.writes[0])]
    table = features(llm, read(llm, prompt.ids, points, edits, answer=prompt.answer), dictionary)
    return {
        "dictionary": described(dictionary),
        "pieces": table.pieces,
        "features": [
            [
                {"layer": own.layer, "feature": own.feature, "activation": own.activation}
                for own in table.top(position, fields.top)
            ]
            for position in range(len(table.pieces))
        ],
        "explained_variance": table.explained(),
    }


def described(dictionary: Dictionary) -> Mapping[str, Any]:
    coders = dictionary.coders
    return {
        "kind": dictionary.kind,
        "layers": {
            str(layer): {
                "features": coder.features,
                "activation": coder.activation,
                "reads": coder.reads.name,
                "writes": [own.name for own in coder.writes],
            }
            for layer, coder in coders.items()
        },
    }


# POST /look/graph: an attribution graph of the token after a prompt.

GRAPH_TOKENS, MAX_NODES = 512, 4096
BUDGET = 2 << 30
Share = Annotated[float, Meta(gt=0, le=1)]


class GraphFields(prompts.PromptFields, frozen=True, kw_only=True):
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
    fields, prompt, edits = body.fields, prompts.prompt_of(body, llm), prompts.edits_of(body.fields.edits, llm)
    if len(prompt.read) > GRAPH_TOKENS:
        raise InvalidRequest(f"prompt has {len(prompt.read):,} tokens; the limit is {GRAPH_TOKENS:,} here")
    own = fields.dictionary
    dictionary = None if own is None else prompts.dictionary_of("dictionary", own, llm)
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


# POST /look/beams: beam search, with the tree of all candidates.


class BeamsFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/beams."""

    num_beams: Annotated[int, Meta(ge=1, le=16)] = 4
    max_tokens: Annotated[int, Meta(ge=1, le=200)] = 12


def beams(body: RequestBody[BeamsFields], llm: LLM) -> dict[str, Any]:
    """Texts, best first, the search tree, and the ``length_penalty`` of the scores. Each node has its token's text.

    The ``score`` of a node is the sum of the log-probabilities of its tokens, the score of a text this sum divided by
    the number of tokens to the power of ``length_penalty``.
    """
    prompt, count = prompts.prompt_of(body, llm), body.fields.num_beams
    if prompt.answer:
        raise InvalidRequest(f"answer={brief(prompt.answer)}: a beam search begins before the answer: leave it out")
    beams_found = llm.beam_search(
        prompt.ids,
        num_beams=count,
        num_return_sequences=count,
        max_new_tokens=body.fields.max_tokens,
        edits=prompts.edits_of(body.fields.edits, llm),
    )
    groupers = {0: llm.tokenizer.grouper()}
    for token in prompt.read:
        groupers[0].push(token)
    tree = [asdict(beams_found.tree[0])]
    for node in beams_found.tree[1:]:
        groupers[node.id] = grouper = copy(groupers[node.parent])
        fields = prompts.token_fields(llm.tokenizer, node.token, grouper.push(node.token))
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


# POST /look/…: lenses, attribution, tokenization, texts of tokens, nearest tokens.

MAX_TEXT, MAX_IDS = 4000, 4096  # characters; token ids
MAX_LENS, MAX_SCORES = 512, 1 << 26  # tokens; tokens times the vocabulary
MAX_AT_ONE = 2048  # tokens before the one position that is explained
MAX_SEARCHED, MAX_WORD = 8, 200  # words with a search for neighbours; characters of a word
MAX_WORDS = 32
REPORT_TOKENS = 256


class TextTokenizeFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /look/tokenize."""

    text: str = ""


class PiecesFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /look/pieces."""

    ids: list[TokenId]


class AttributionFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/attribution. ``token`` and ``against`` are texts or ids.

    ``by_token``: also divide the logit among the tokens that attention reads.
    """

    token: Any = None
    against: Any = None
    position: int | None = None
    by_token: bool = False


class LensFields(prompts.PromptFields, frozen=True, kw_only=True):
    """Fields of /look/lens. ``token`` is a text or an id, whose probability and rank are computed too."""

    top: Annotated[int, Meta(ge=1, le=MOST_TOP)] = 5
    token: Any = None
    position: int | None = None


class NeighboursFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /look/neighbours: ``ids`` of tokens or ``words``, and the number of neighbours."""

    ids: list[TokenId] | None = None
    words: Texts | None = None
    n: Annotated[int, Meta(ge=0, le=50)] = 8


def tokenization(body: RequestBody[TextTokenizeFields], llm: LLM) -> dict[str, Any]:
    """Tokenization of a ``text``, stage by stage (``tokenize/explain.py``)."""
    text = body.fields.text
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"text has {len(text):,} characters; the limit is {MAX_TEXT:,}")
    return llm.tokenizer.explain(text).as_dict()


def pieces(body: RequestBody[PiecesFields], llm: LLM) -> dict[str, Any]:
    ids = _checked_ids(body.fields.ids, llm, MAX_IDS)
    return {"pieces": [llm.tokenizer.piece(token) for token in ids]}


def _checked_ids(ids: list[int], llm: LLM, most: int) -> list[int]:
    """Token ids of a body. They are separate tokens, not a text. Raises InvalidRequest."""
    size = llm.inputs.vocabulary
    if len(ids) > most or any(token >= size for token in ids):
        raise InvalidRequest(f"ids={brief(ids)}: must be at most {most:,} token ids below {size:,}")
    return ids


def attribution(body: RequestBody[AttributionFields], llm: LLM) -> dict[str, Any]:
    """Contribution of each part of the model to the logit of ``token`` (``trace/lenses/attribution.py``).

    With ``by_token`` also of each token, as ``token_contributions`` (``trace/lenses/heads.py``).
    """
    fields, prompt, edits = body.fields, prompts.prompt_of(body, llm), stream_edits(body.fields, llm)
    count = len(prompt.read)
    at = whole("position", -1 if fields.position is None else fields.position, -count, count - 1) % count
    refuse_long(prompt, MAX_AT_ONE)
    points = token_points(llm, at) if fields.by_token else attribution_points(llm)
    run = read(llm, prompt.ids, points, edits, answer=prompt.answer)
    found = attribute(llm, run, fields.token, against=fields.against, position=at)
    if not fields.by_token:
        return found.as_dict()
    by_token = token_contributions(llm, run, found.token_id, against=found.against_id, position=at)
    return {**found.as_dict(), "token_contributions": by_token.as_dict()}


class ReportFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /look/report: a text, the number ``step`` of the token that is explained, and how tokens are drawn."""

    prompt: str
    step: Annotated[int, Meta(ge=1, le=MOST_STEP)] = 1
    temperature: float = 0
    top_k: int = 0
    top_p: float = 1
    seed: int = 0


def report(body: RequestBody[ReportFields], llm: LLM) -> dict[str, Any]:
    """One step of a text as ``html``: the page with this run in it, which opens without a server."""
    fields = body.fields
    count = len(llm.inputs.prompt(fields.prompt))
    if count > REPORT_TOKENS:
        raise InvalidRequest(f"prompt has {count:,} tokens; the limit is {REPORT_TOKENS:,} here")
    drawn = {name: getattr(fields, name) for name in ("temperature", "top_k", "top_p", "seed")}
    return {"html": explain(llm, fields.prompt, step=fields.step, **drawn).html()}


def refuse_long(prompt: prompts.PromptTokens, most: int) -> None:
    for name, tokens in (("prompt", prompt.ids), ("answer", prompt.answer)):
        if len(tokens) > most:
            raise InvalidRequest(f"{name} has {len(tokens):,} tokens; the limit is {most:,} here")


def lens(body: RequestBody[LensFields], llm: LLM) -> dict[str, Any]:
    """Logit lens: predictions after each block, at every position or at one (``trace/lenses/logit_lens.py``)."""
    fields, prompt, edits = body.fields, prompts.prompt_of(body, llm), stream_edits(body.fields, llm)
    positions = None
    if fields.position is not None:
        positions = [whole("position", fields.position, -len(prompt.read), len(prompt.read) - 1)]
        refuse_long(prompt, MAX_AT_ONE)
    else:
        refuse_long(prompt, min(MAX_LENS, MAX_SCORES // llm.spec.embedding.vocabulary))
    tokens = [] if fields.token is None else [fields.token]
    run = read(llm, prompt.ids, lens_points(llm), edits, answer=prompt.answer)
    return logit_lens(llm, run, top=fields.top, tokens=tokens, positions=positions).as_dict()


def stream_edits(fields: prompts.PromptFields, llm: LLM) -> list[Edit]:
    """The body's edits, for a run that a lens reads."""
    edits = prompts.edits_of(fields.edits, llm)
    for one in select(llm.points, [edit.where for edit in edits]):
        if one.point.rows == "outputs" and llm.spec.generates:
            raise InvalidRequest(
                f"edits: a lens computes the final norm and the head without edits: remove the edit of {one.name}"
            )
    return edits


def neighbours(body: RequestBody[NeighboursFields], llm: LLM) -> dict[str, Any]:
    """Nearest tokens of ``ids`` (tokens) or ``words`` (texts), the cosines between them, and a map."""
    ids, words, count = body.fields.ids, body.fields.words, body.fields.n
    if (ids is None) == (words is None):
        raise InvalidRequest("words: give either words or ids")
    items: Sequence[str | int] = listed_texts("words", words or [])
    if ids is not None:
        items = _checked_ids(ids, llm, MAX_WORDS)
    if not 1 <= len(items) <= MAX_WORDS:
        name = "words" if ids is None else "ids"
        raise InvalidRequest(f"{name} has {len(items):,} entries: give 1 to {MAX_WORDS}")
    long = any(isinstance(word, str) and len(word) > MAX_WORD for word in items)
    if long or (count and len(items) > MAX_SEARCHED):
        raise InvalidRequest(
            f"words={brief(items)}: at most {MAX_WORD} characters each, and at most {MAX_SEARCHED} words "
            "if neighbours are searched"
        )
    return around(llm, items, count)
