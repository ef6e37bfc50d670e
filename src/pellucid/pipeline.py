"""The whole way from text to text, on one page. This is what runs.

    text → tokenize → embed → +position → blocks ×L → norm → project → softmax → sample → detokenize → text

``forward`` says what a model does with numbers: it is executed once, when a model is loaded, and writes the plan
that every step runs (``pellucid plan MODEL`` prints it). ``generate`` and ``loop`` go round it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pellucid.inputs import Inputs, Prompt
from pellucid.kernels.packed import Packed
from pellucid.model.spec import ModelSpec
from pellucid.plan.block import block
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import embed, embedding_norm
from pellucid.plan.network import Network
from pellucid.plan.passes import optimize
from pellucid.plan.plan import Plan
from pellucid.plan.position import position
from pellucid.plan.project import final_norm, project
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import Sequence
from pellucid.sample.chain import Chain
from pellucid.sample.options import Options
from pellucid.tokenize import Tokenizer


def forward(
    spec: ModelSpec, layouts: Mapping[str, Packed], planes: int = 1, kv_cache: str | None = None
) -> Plan:
    """The plan of a model: token ids (T,) → logits (R, V), or sentence vectors (B, D).

    ``layouts`` and ``planes`` say how weights are packed and how finely activations meet them, ``kv_cache`` what keys
    and values are kept in (``plan/builder.py``).
    """
    plan = Builder(spec, layouts, planes, kv_cache)
    x = embed(plan)  # each token's row of the embedding matrix           (T, D)
    x = position(plan, x)  # where it stands: a vector added, or angles to turn by
    x = embedding_norm(plan, x)
    for layer, kind in enumerate(spec.blocks):
        x = block(plan, layer, kind, x)  # attention and feed-forward, each added to x (T, D)
    x = final_norm(plan, x)  # only the rows whose logits are wanted          (R, D)
    logits = project(plan, x)  # a score for every token of the vocabulary      (R, V)
    return optimize(plan.finish(logits))


@dataclass(frozen=True)
class Piece:
    """One turn of the loop: the token that was sampled, the text that became certain, and why it ended."""

    id: int
    text: str
    finish_reason: str | None = None


def generate(
    network: Network,
    inputs: Inputs,
    prompt: Prompt,
    options: Options,
    chain: Chain,
    hold: Callable[[list[int]], Sequence],
) -> tuple[list[int], Iterator[Piece]]:
    """From a prompt to its ids and the pieces of what follows. What can be wrong with a request is raised here.

    ``hold`` gives the sequence that the cache keeps for the ids; it may have a beginning of them already.
    """
    ids = inputs.prompt(prompt)  # text → tokenize
    return ids, loop(network, inputs.tokenizer, ids, options, chain, hold)


def loop(
    network: Network,
    tokenizer: Tokenizer,
    ids: list[int],
    options: Options,
    chain: Chain,
    hold: Callable[[list[int]], Sequence],
) -> Iterator[Piece]:
    """The loop: a token a turn, until the model ends, a stop string comes, or there is no room for more."""
    room = network.limits.context - len(ids)
    limit = min(room, options.max_new_tokens or room)
    stopper, detokenizer, sequence = options.stopper(), tokenizer.stream(), hold(ids)
    logits = network.prefill(sequence, ids[sequence.length :])  # embed → +position → blocks → norm → project
    for index in range(limit):
        logits = logits[: tokenizer.vocab_size]  # some matrices are padded with rows that are no tokens
        token = chain.sample(logits, index)  # softmax → sample
        if token in tokenizer.eos_ids:
            yield Piece(token, stopper.push(detokenizer.flush()) + stopper.flush(), "stop")
            return
        text = stopper.push(detokenizer.push(token))  # detokenize → text
        if stopper.stopped:
            yield Piece(token, text, "stop")
            return
        if index + 1 == limit:
            yield Piece(token, text + stopper.flush(), "length")  # bytes of a character cut in half stay out
            return
        yield Piece(token, text)
        logits = network.forward([Chunk(sequence, [token])])[0]  # and round again
