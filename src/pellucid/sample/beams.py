"""Beam search: the best whole texts instead of the best next token (Lowerre 1976; as in transformers).

    logits of each beam → log-softmax → steps of the chain → + the beam's score → the best over all beams → beams

A beam's score is the sum of its tokens' log-probabilities. A candidate is a beam followed by one more token. Each step
considers at least 2 * beams candidates, so that enough candidates are left if half of them end. A candidate that ends
becomes a finished text if it ranks among the best. Its score is divided by its length to the power of
``length_penalty``. The result is the finished texts with the best scores.

Groups of beams search separately (diverse beam search; Vijayakumar et al. 2016). Their choices differ because of
``diversity_penalty``: each time that an earlier group has chosen a token in the same step, the penalty is subtracted
from the token's log-probability. Beam sampling draws candidates instead of taking the best candidates. It draws without
replacement in proportion to their likelihood, by adding Gumbel noise to their scores (Kool et al. 2019).

The search does not depend on a model: ``BeamSearch.step`` takes logits, and returns the next beams with their parents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, NothingLeft, brief
from pellucid.sample.candidates import Candidates, Floats
from pellucid.sample.chain import Sampler
from pellucid.util.checks import real, whole

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_BEAMS = 64


@dataclass(frozen=True)
class BeamOptions:
    """The options of beam search, with the names and meanings of transformers.

    ``num_beams`` texts are searched at a time, and the best ``num_return_sequences`` texts are returned.
    ``early_stopping`` decides when the search ends. True: as soon as there are ``num_beams`` finished texts. False:
    when no running beam would be better than the finished texts if it ended now. "never": only when no running beam
    could become better, even if all its further tokens had probability 1. ``num_beam_groups`` divides the beams into
    groups. With ``do_sample``, candidates are drawn and all steps of the chain apply. Without it, only steps that
    change logits or forbid tokens apply.

    Raises:
        InvalidRequest: a value has the wrong type or is out of range.
    """

    num_beams: int = 4
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    do_sample: bool = False

    def __post_init__(self) -> None:
        beams = whole("num_beams", self.num_beams, 1, MAX_BEAMS)
        checked: dict[str, Any] = {
            "num_beams": beams,
            "num_return_sequences": whole("num_return_sequences", self.num_return_sequences, 1, beams, "or more beams"),
            "num_beam_groups": whole("num_beam_groups", self.num_beam_groups, 1, beams, "at most num_beams"),
            "length_penalty": real("length_penalty", self.length_penalty, -10, 10),
            "diversity_penalty": real("diversity_penalty", self.diversity_penalty, 0, 1000),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InvalidRequest(f'early_stopping={brief(self.early_stopping)}: must be True, False or "never"')
        if not isinstance(self.do_sample, bool):
            raise InvalidRequest(f"do_sample={brief(self.do_sample)}: must be True or False")
        if beams % self.num_beam_groups:
            raise InvalidRequest(
                f"num_beam_groups={self.num_beam_groups}: must divide num_beams, which is {beams}, evenly"
            )
        if (self.num_beam_groups > 1) != (self.diversity_penalty > 0):
            raise InvalidRequest(
                f"num_beam_groups={self.num_beam_groups} and diversity_penalty={self.diversity_penalty:g}: groups need "
                "a penalty above 0, and a penalty needs groups"
            )
        if self.do_sample and self.num_beam_groups > 1:
            raise InvalidRequest("do_sample=True: groups of beams are not sampled; remove do_sample or the groups")

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> BeamOptions:
        """Remove the options of beam search from ``options``, and return them."""
        known = cls.__dataclass_fields__
        return cls(**{name: options.pop(name) for name in list(options) if name in known})


@dataclass
class Node:
    """A candidate that the search considered. The root, node 0, is the prompt.

    ``score`` is the sum of log-probabilities up to and including ``token``. ``step`` is the step that considered the
    candidate, ``ended`` the step after which the candidate was no longer running. ``state`` is "running", "finished"
    (``final_score`` includes the length penalty), "extended" (a continuation is running) or "pruned" (``why`` is the
    reason).
    """

    id: int
    parent: int
    token: int
    score: float
    step: int
    group: int = 0
    state: str = "running"
    ended: int | None = None
    why: str = ""
    final_score: float | None = None
    finish_reason: str | None = None


class Beam(Struct):
    """A running text. ``parent`` is its position among the beams of the previous step."""

    node: Node
    sampler: Sampler
    parent: int


class FinishedBeam(Struct, frozen=True):
    """A finished text: its ``ids``, including an end token, and its score, including the length penalty."""

    ids: list[int]
    score: float
    finish_reason: str
    node: int


class _Group(Struct):
    """Beams that compete with each other, and their finished texts, best first."""

    number: int
    beams: list[Beam]
    finished: list[Node] = field(default_factory=list)
    best: float = -math.inf
    """The score that decides whether a better text is still possible. With one group, it is the score of the best
    running beam, as in transformers 5. With several groups, it is the score of the best candidate, as in transformers
    4. This candidate may have just ended."""
    done: bool = False


Noise = Callable[[int, int], Floats]
"""(step, count) → standard Gumbel noise, (count,) float64: one value per token of the vocabulary, beam after beam."""


def gumbel(seed: int) -> Noise:
    """Noise that depends only on the seed, the step and the position."""

    def noise(step: int, count: int) -> Floats:
        random = np.random.Generator(np.random.Philox(key=seed, counter=step << 64)).random(count)
        with np.errstate(divide="ignore"):
            return np.asarray(-np.log(-np.log(random)), np.float64)

    return noise


class BeamSearch:
    """A running beam search. ``limit`` is the maximum number of tokens of a text, ``ends`` are the tokens that end it.

    A group of beams that is done chooses no more tokens. For the diversity penalty, each of its beams counts as a
    choice of the token ``padding`` (by default the lowest of ``ends``), as in transformers.
    """

    def __init__(
        self,
        options: BeamOptions,
        sampler: Sampler,
        ends: frozenset[int],
        limit: int,
        noise: Noise | None = None,
        padding: int | None = None,
    ) -> None:
        self.options, self.nodes = options, [Node(0, -1, -1, 0.0, -1)]
        self._ends, self.limit, self._steps, self._sampler = ends, limit, 0, sampler
        self._noise = noise or gumbel(sampler.history.seed)
        self._padding = min(ends, default=0) if padding is None else padding
        self._nothing_left: NothingLeft | None = None
        self._size = options.num_beams // options.num_beam_groups
        root = Beam(self.nodes[0], sampler, 0)
        self._groups = [_Group(number, [root]) for number in range(options.num_beam_groups)]
        self.beams: list[Beam] = [root]

    @property
    def done(self) -> bool:
        """True if the search is over."""
        return all(group.done for group in self._groups)

    def step(self, rows: Sequence[NDArray[np.float32]]) -> list[Beam]:
        """Advance by one token. ``rows`` are the logits (V,) after each of ``beams``; returns the new ``beams``."""
        for job in self.advance(rows):
            job.result()
        return self.beams

    def advance(self, rows: Sequence[NDArray[np.float32]]) -> Iterator[Future[None]]:
        """Like ``step``, but yields each job of another thread that the step needs. The caller waits for the job."""
        position = {id(beam): at for at, beam in enumerate(self.beams)}
        first = [self._log_softmax(row) for row in rows]
        used: list[int] = []
        for group in self._groups:
            if group.done:
                used += [self._padding] * self._size
                continue
            beams = [position[id(beam)] for beam in group.beams]
            for beam in group.beams:
                if job := beam.sampler.preparing:
                    yield job
            yield from self._advance(group, beams, self._candidates(group, beams, first, used))
            used += [beam.node.token for beam in group.beams]
        self._steps += 1
        for group in self._groups:
            if not group.done:
                self._end_if_done(group)
        if self._steps == self.limit:
            self.stop("length")
        self.beams = [beam for group in self._groups if not group.done for beam in group.beams]

    def results(self) -> list[FinishedBeam]:
        """The best finished texts so far, best first.

        Raises NothingLeft: no text is finished, because the steps of the chain forbade every token.
        """
        if self._nothing_left is not None and not self.finished:
            raise self._nothing_left
        best = sorted(self.finished, key=_final_score, reverse=True)
        return [
            FinishedBeam(self.ids(node.id), _final_score(node), node.finish_reason or "", node.id)
            for node in best[: self.options.num_return_sequences]
        ]

    @property
    def finished(self) -> list[Node]:
        """The last nodes of the finished texts that may become results."""
        return [node for group in self._groups for node in group.finished]

    def ids(self, node: int) -> list[int]:
        """The tokens from the end of the prompt to a node."""
        tokens: list[int] = []
        while node > 0:
            tokens.append(self.nodes[node].token)
            node = self.nodes[node].parent
        return tokens[::-1]

    def stop(self, reason: str) -> None:
        """End the search now. Running beams count as finished, with ``reason`` as their finish reason."""
        for group in self._groups:
            if not group.done:
                for beam in group.beams:
                    if beam.node.id:
                        self._finish(group, beam.node, reason)
                group.done = True

    def end(self) -> None:
        """Free the resources of the samplers after the end of the search."""
        for beam in [beam for group in self._groups for beam in group.beams]:
            beam.sampler.end()
        self._sampler.end()

    def _log_softmax(self, row: NDArray[np.float32]) -> Candidates:
        where = f"token {self._steps}"
        return self._sampler.without_padding(Candidates.of(Candidates.of(row, where).log_probabilities(), where))

    def _candidates(
        self, group: _Group, beams: list[int], first: list[Candidates], used: list[int]
    ) -> list[tuple[float, int, int]]:
        """The (score, beam, token) of the candidates to consider, best first."""
        count = max(2, 1 + len(self._ends)) * self._size
        candidates: list[tuple[float, int, int]] = []
        scores, positions = [], []
        for at, (beam, number) in enumerate(zip(group.beams, beams)):
            start = first[number]
            if used:
                tokens, counts = np.unique(used, return_counts=True)
                start = start.plus(tokens, -self.options.diversity_penalty * counts)
            try:
                remaining, _ = beam.sampler.apply_steps(start)
            except NothingLeft as error:  # other beams may continue
                self._nothing_left = error
                continue
            if self.options.do_sample:
                scores.append(beam.node.score + remaining.logits())
                positions.append(at * len(start) + remaining.ids_at())
                continue
            top = remaining.top(count)
            logits, ids = remaining.logits(top).tolist(), remaining.ids_at(top).tolist()
            candidates += [(beam.node.score + x, at, token) for x, token in zip(logits, ids) if x > -math.inf]
        if scores:
            size = len(first[beams[0]])
            score, position = np.concatenate(scores), np.concatenate(positions)
            noisy = score + self._noise(self._steps, size * len(beams))[position]
            drawn = np.argsort(-noisy, kind="stable")[:count]
            candidates = [
                (float(score[i]), int(position[i]) // size, int(position[i]) % size)
                for i in drawn
                if score[i] > -np.inf
            ]
        candidates.sort(key=lambda c: (-c[0], c[1], c[2]))
        return candidates[:count]

    def _advance(
        self, group: _Group, beams: list[int], candidates: list[tuple[float, int, int]]
    ) -> Iterator[Future[None]]:
        """Replace a group's beams by the best candidates, and finish the texts that end. Yields as ``advance``."""
        running: list[Beam] = []
        for rank, (score, at, token) in enumerate(candidates):
            if len(running) == self._size and rank >= 2 * self._size:
                break  # neither this candidate nor a later one matters
            parent = group.beams[at]
            node = Node(len(self.nodes), parent.node.id, token, score, self._steps, group.number)
            self.nodes.append(node)
            if token in self._ends:
                self._finish_or_prune(group, node, rank)
            elif len(running) < self._size:
                sampler = parent.sampler.fork()
                sampler.accept(token)
                if job := sampler.advancing:
                    yield job
                if sampler.complete:
                    self._finish_or_prune(group, node, rank)
                else:
                    running.append(Beam(node, sampler, beams[at]))
            else:
                self._prune(node, f"{self._size} others are likelier")
        ahead = candidates if len(self._groups) > 1 else [(beam.node.score, 0, 0) for beam in running]
        group.best = max((score for score, _, _ in ahead), default=-math.inf)
        continued = {beam.node.parent for beam in running}
        for beam in group.beams:
            if beam.node.id and beam.node.state == "running":
                children = beam.node.id in continued
                beam.node.state, beam.node.ended = "extended", self._steps
                if not children:
                    self._prune(beam.node, "none of its continuations is among the best")
                beam.sampler.end()
        group.beams, group.done = running, not running

    def _finish_or_prune(self, group: _Group, node: Node, rank: int) -> None:
        """Finish a text that has ended if it ranks high enough; prune it otherwise."""
        if rank < self._size:
            self._finish(group, node, "stop")
        else:
            self._prune(node, f"it ends, but is not among the best {self._size}")

    def _finish(self, group: _Group, node: Node, reason: str) -> None:
        """Finish a text. The group keeps only its best finished texts."""
        node.finish_reason = reason
        length = node.step + 1
        node.state, node.ended = "finished", self._steps
        node.final_score = node.score / length**self.options.length_penalty
        group.finished.append(node)
        group.finished.sort(key=_final_score, reverse=True)  # stable: the earlier text wins ties
        for other in group.finished[self._size :]:
            other.state, other.why = "pruned", f"{self._size} finished texts are better"
        del group.finished[self._size :]

    def _end_if_done(self, group: _Group) -> None:
        """End a group if its finished texts are good enough."""
        options, penalty = self.options, self.options.length_penalty
        if len(group.finished) < self._size:
            return
        length = self.limit if options.early_stopping == "never" and penalty > 0 else self._steps
        if options.early_stopping is True or group.best / length**penalty <= _final_score(group.finished[-1]):
            group.done = True
            for beam in group.beams:
                self._prune(beam.node, "the finished texts are enough, or better")

    def _prune(self, node: Node, why: str) -> None:
        node.state, node.ended, node.why = "pruned", self._steps, why


def _final_score(node: Node) -> float:
    return -math.inf if node.final_score is None else node.final_score
