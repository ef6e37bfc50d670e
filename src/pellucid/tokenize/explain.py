"""The path from a text to ids, stage by stage, as data.

In: the stages of a tokenizer and a text. Out: an :class:`Explanation`: the normalized text, the pre-tokens, and the
model's record for each pre-token (merges with their ranks, tries, a lattice with scores). ``--json`` prints its
``as_dict()``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid.tokenize.encoder import Encoder
    from pellucid.tokenize.encoding import Token
    from pellucid.tokenize.stages.aligned import AlignedText


@dataclass(frozen=True)
class ExplainedToken:
    """One id: its piece as the file spells it, the bytes that it adds to a text, the characters that it covers."""

    id: int
    piece: str
    bytes: bytes
    start: int
    end: int
    special: bool = False


@dataclass(frozen=True)
class PreToken:
    """A normalized pre-token, its tokens, and the model's record of how it found the tokens.

    ``how`` is None for an added token, which is found before all other stages. Otherwise it is the record, whose keys
    depend on the kind of model:

        BPE         ``whole``, or ``symbols`` and ``merges``. A merge has ``rank`` (``score`` in vocabularies with
                    scores), ``at`` (index of its first symbol), and ``left``, ``right``, ``merged`` with their ids
                    ``left_id``, ``right_id``, ``id``
        WordPiece   ``tries``: ``at``, ``tried``, ``found``, ``id``; ``unknown``: the reason why a word is unknown
        Unigram     ``lattice``: ``at``, ``piece``, ``id``, ``score``; ``best`` and its ``score``
        words       ``unknown``, as above
        characters  ``symbols``
        bytes       ``bytes``
    """

    text: str
    start: int
    end: int
    tokens: tuple[ExplainedToken, ...]
    how: Mapping[str, Any] | None


@dataclass(frozen=True)
class Explanation:
    """A text with the result of each stage; ``normalized`` is the normalizer's output, ``stages`` names the stages."""

    text: str
    normalized: str
    stages: Mapping[str, Sequence[str]]
    pre_tokens: tuple[PreToken, ...]
    tokens: tuple[ExplainedToken, ...]

    @property
    def ids(self) -> list[int]:
        """The ids, with the special tokens around the text."""
        return [token.id for token in self.tokens]

    def as_dict(self) -> dict[str, Any]:
        """The explanation as JSON-compatible data; bytes are hexadecimal."""

        def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: value.hex(" ") if isinstance(value, bytes) else value for key, value in pairs}

        return asdict(self, dict_factory=plain)


def explain(encoder: Encoder, text: str, parse_special: bool, around: Sequence[Token]) -> Explanation:
    """Explain a text; ``around`` are its tokens together with the special tokens around it."""
    parts = encoder.pre_tokens(text, parse_special)
    pre_tokens = tuple(_pre_token(encoder, part, index) for part, index in parts)
    tokens = tuple(ExplainedToken(t.id, t.text, encoder.token_bytes(t.id), t.start, t.end, t.special) for t in around)
    normalized = "".join(part.text for part, _ in encoder.parts(text, parse_special))
    return Explanation(text, normalized, _stages(encoder), pre_tokens, tokens)


def _pre_token(encoder: Encoder, pre_token: AlignedText, index: int | None) -> PreToken:
    spans = [(index, 0, len(pre_token))] if index is not None else encoder.model.spans(pre_token.text)
    tokens = tuple(
        ExplainedToken(
            token,
            encoder.token_text(token),
            encoder.token_bytes(token),
            *pre_token.span(start, stop),
            special=encoder.is_special(token),
        )
        for token, start, stop in spans
    )
    how = None if index is not None else encoder.model.explain(pre_token.text)
    return PreToken(pre_token.text, *pre_token.span(0, len(pre_token)), tokens, how)


def _stages(encoder: Encoder) -> dict[str, list[str]]:
    normalizer = encoder.normalizer
    parts = getattr(normalizer, "stages", (normalizer,)) if normalizer is not None else ()
    return {
        "normalize": [_name(part) for part in parts],
        "pre_tokenize": [_name(stage) for stage in encoder.pre_tokenizer.stages],
        "model": [type(encoder.model).__name__],
        "decode": [type(encoder.decoder).__name__],
    }


def _name(stage: Any) -> str:
    """The ``repr`` of a stage if it is short, else its class name."""
    words = repr(stage)
    return words if len(words) <= 200 else type(stage).__name__
