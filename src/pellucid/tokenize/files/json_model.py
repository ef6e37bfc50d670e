"""``JsonModelReader``, which a kind of vocabulary declares, apart from the reader of the file that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from pellucid.tokenize.files.tokenizer_json import TokenizerJson
    from pellucid.tokenize.stages.pretokenize import Stage
    from pellucid.tokenize.tokenizer_model import TokenizerModel


class JsonModelReader(Struct, frozen=True):
    """The reader of the models of one ``type`` in a ``tokenizer.json``.

    ``claims`` distinguishes kinds of vocabulary that share a type. It takes the file and the stages of its
    pre-tokenizer, and returns True for a file of its kind.
    """

    type: str
    build: Callable[[TokenizerJson], TokenizerModel]
    claims: Callable[[TokenizerJson, Sequence[Stage]], bool] = lambda *_: True
