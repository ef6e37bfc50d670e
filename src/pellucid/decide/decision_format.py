"""What a model's file states about decisions: the kind of the model, the template of its prompts, its temperatures.

GGUF files have the keys of llama.cpp:

    <architecture>.decision.type                     the kind of the model (``labels.py``)
    <architecture>.decision.temperature.<question>   the temperature of "choice", "score" or "noul", > 0
    <architecture>.decision.temperature.<question>.<band>   the temperature for a number of options
    tokenizer.chat_template.systemone                the Jinja template of a prompt

Source: ``server_decision_context::init`` and ``get_temperature`` in llama.cpp's tools/server/server-decision.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from pellucid.decide.questions import Question
from pellucid.errors import FileFormatError
from pellucid.weights.checkpoint import Checkpoint

TEMPLATE = "tokenizer.chat_template.systemone"
Bands = Sequence[tuple[str, int]]
"""Names of ranges of the number of options, each with its largest number."""
BANDS: Bands = (("2", 2), ("3_5", 5), ("6_10", 10), ("11", 255))


class DecisionFormat(Struct, frozen=True):
    """The ``type`` of a decision model, the Jinja source of its prompts, and its temperatures by question and band."""

    type: str
    template: str
    temperatures: Mapping[str, float]

    def temperature(self, question: Question, bands: Bands) -> float | None:
        """The temperature that divides the scores of a question's options; None if the file states none."""
        band = next(name for name, most in bands if len(question.options) <= most)
        stated = (self.temperatures.get(name) for name in (f"{question.type}.{band}", question.type))
        return next((one for one in stated if one is not None), None)


def decision_format(checkpoint: Checkpoint) -> DecisionFormat | None:
    """What a file states about decisions; None if it is not a decision model's.

    Raises:
        FileFormatError: the template is missing, or a temperature is not a number above 0.
    """
    metadata = checkpoint.metadata
    prefix = f"{metadata.get('general.architecture')}.decision."
    kind = metadata.get(f"{prefix}type")
    if not isinstance(kind, str):
        return None
    template = metadata.get(TEMPLATE)
    if not isinstance(template, str) or not template:
        raise FileFormatError(checkpoint.path, TEMPLATE, "is missing: a decision model must have it")
    start, temperatures = f"{prefix}temperature.", dict[str, float]()
    for key, value in metadata.items():
        if key.startswith(start):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise FileFormatError(checkpoint.path, key, f"is {value!r}: must be a number above 0")
            temperatures[key[len(start) :]] = float(value)
    return DecisionFormat(kind, template, temperatures)
