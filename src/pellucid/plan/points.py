"""Hook points: the named values of a run that can be recorded and changed.

The function of ``plan/`` that computes a value declares the point (``Builder.point``): its name, a description and its
dimensions. The plan carries the points.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pellucid.kernels.matmul.layouts import ROWS, round_up

RowKind = Literal["tokens", "outputs", "sequences", "once"]
PointKind = Literal["value", "probabilities", "pattern", "scores", "state", "output"]
ENDLESS = 1 << 31  # more tokens than a text has


class View(Struct, frozen=True):
    """The value in a row of a buffer: ``parts`` (for example heads) of ``count`` numbers, with a stride of ``stride``.

    A row has ``width`` columns. The columns between the parts are padding. ``letters`` names the dimensions, such as
    "H K". If ``places`` is given, each part has a row of its own, and the buffer ``places`` (T, parts) int32 has the
    row numbers.
    """

    parts: int
    count: int
    stride: int
    width: int
    letters: str = "D"
    places: str = ""

    @property
    def place_width(self) -> int:
        """Number of columns of ``places``, rounded up to whole SIMD vectors."""
        return round_up(self.parts, ROWS)


class AttentionMask(Struct, frozen=True):
    """The attention mask: the tokens that a position sees.

    A ``causal`` mask excludes the tokens after the position. A ``window`` limits the number of tokens up to the
    position, and without ``causal`` also from the position on (0: no limit). ``chunked`` windows do not overlap. In
    ``cross`` attention the tokens are the tokens of the encoder.
    """

    causal: bool
    window: int
    chunked: bool
    cross: bool

    def seen(self, position: int) -> range:
        """The range of tokens that a position sees. It may go beyond the end of the text."""
        if self.cross:
            return range(ENDLESS)
        first = 0
        if self.window:
            chunk = position // self.window * self.window
            first = chunk if self.chunked else max(0, position - self.window + 1)
        if self.causal:
            return range(first, position + 1)
        return range(first, position + self.window if self.window else ENDLESS)


class Point(Struct, frozen=True):
    """A hook point: the ``name`` of a value, a description and its ``unit`` ("": no unit, for example activations).

    ``operation`` is the index of the operation that computes the value, in the plan before passes. ``write`` is the
    index of the value's buffer among the buffers that the operation writes, and ``view`` is the layout of the value in
    a row. ``rows`` is the kind of rows that have the value, because after the last block, values are computed only at
    positions whose logits are needed.

    Values of kind "pattern" and "scores" have a row for each head and token, and the ``mask`` of their attention. Kind
    "probabilities" is the softmax of a value. Kind "state" is a ``part`` of the recurrent state after the last token of
    each step; ``write`` is then the layer of the cache. A value of kind "output" is not computed by the plan
    (``trace/output_points.py``).

    In an encoder-decoder, the rows of points that the encoder computes (``of_source``) are the tokens of the source.

    Outputs of sublayers are ``scaled`` if a factor multiplies them before they are added to the residual stream. Logits
    are ``scaled`` if they were multiplied or capped after the projection.
    """

    name: str
    about: str
    view: View
    operation: int = -1
    write: int = 0
    rows: RowKind = "tokens"
    kind: PointKind = "value"
    dtype: str = "float32"
    unit: str = ""
    part: str = ""
    mask: AttentionMask | None = None
    of_source: bool = False
    scaled: bool = False

    def __repr__(self) -> str:
        return f"Point({self.name}, {self.shape} {self.dtype}: {self.about})"

    @property
    def letters(self) -> tuple[str, ...]:
        """The names of the value's dimensions in a row: ("H", "K")."""
        return tuple(self.view.letters.split())

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the dimensions of ``letters``; 0: the number of tokens."""
        return (self.view.parts, self.view.count)[2 - len(self.letters) :]

    @property
    def shape(self) -> str:
        """The shape with sizes: "(B, T, H 9, K 64)", or "(B, H 9, T, T')" for a pattern with query T and key T'."""
        sized = [f"{letter} {size}" for letter, size in zip(self.letters, self.sizes)]
        if self.kind in ("pattern", "scores"):
            return f"(B, {sized[0]}, T, T')"
        if self.kind == "output":
            return f"({', '.join(['B', 'N', *map(str, self.sizes)])})"
        return f"({', '.join(['B', *(['T'] if self.rows != 'sequences' else []), *sized])})"

    @property
    def heads(self) -> int:
        """The number of heads (or other parts) that can be selected; 0 if the point has no heads."""
        return self.view.parts if len(self.letters) == 2 else 0
