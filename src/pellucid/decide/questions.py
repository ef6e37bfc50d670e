"""Typed questions about a state, in the form of System One's API: a choice, a score or a yes/no question ("noul").

    {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "payments", "shipping": None}}
    {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "this week", "today"]}
    {"type": "noul", "instructions": "Is the customer angry?", "criteria": {"true": "insults us", "false": "is calm"}}

``criteria`` of a choice are its options, each with a description or None; of a score its levels, the lowest first; of a
yes/no question, which needs none, descriptions of both answers. Instructions and descriptions are texts, or objects and
lists, which the model reads as JSON.

Source: ``server_decision_context::parse_questions`` in llama.cpp's tools/server/server-decision.cpp, and the OpenAPI of
TypeSafe's API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief, shown
from pellucid.tokenize.chat.conversation import refuse_other_than_text, template_variables
from pellucid.util import checks

Content: TypeAlias = str | dict[str, Any] | list[Any]
QuestionType = Literal["choice", "score", "noul"]
TYPES: Sequence[QuestionType] = ("choice", "score", "noul")
FIELDS = ("type", "instructions", "criteria")
MOST_QUESTIONS, MOST_OPTIONS, MOST_NAME = 256, 255, 1000
LEAST_LEVELS, MOST_LEVELS = 2, 10


class Option(Struct, frozen=True):
    """An option of a question: its name, and a description or None."""

    key: str
    description: Content | None = None


class Question(Struct, frozen=True):
    """A question. Options of a score are its levels "0", "1", …; options of a yes/no question are "false" and "true".

    ``type`` is "choice", "score" or "noul" (yes/no).
    """

    id: str
    type: QuestionType
    instructions: Content
    options: tuple[Option, ...]


def questions_of(given: Any) -> list[Question]:
    """Check questions, a mapping from ids to questions, and return them in their order.

    Raises:
        InvalidRequest: a question is wrong; the message names it.
    """
    if not isinstance(given, Mapping) or not given:
        raise InvalidRequest(
            f"questions={brief(given)}: must be a mapping of at least one id to its question, such as "
            '{"angry": {"type": "noul", "instructions": "Is the customer angry?"}}'
        )
    if len(given) > MOST_QUESTIONS:
        raise InvalidRequest(
            f"questions has {len(given):,} questions; the limit is {MOST_QUESTIONS}: ask the rest in another request"
        )
    return [_question(checks.text("the id of a question", id, MOST_NAME), one) for id, one in given.items()]


def state_of(given: Any) -> Content:
    """Check a state: a text, or an object or list, which the model reads as JSON. A list may be chat messages.

    Raises:
        InvalidRequest: the state is of another type, or has a value that JSON does not have, or an image.
    """
    state = _content("state", given)
    messages = state.get("messages") if isinstance(state, dict) else state
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            refuse_other_than_text(message.get("content"), f"state[{at}].content")
    return state


def _question(id: str, given: Any) -> Question:
    where = f"questions.{shown(id)}"
    if not isinstance(given, Mapping):
        raise InvalidRequest(
            f"{where}={brief(given)}: must be an object with type, instructions and criteria"
        )
    if unknown := [name for name in given if name not in FIELDS]:
        raise InvalidRequest(
            f"{where} has the unknown field {brief(unknown[0])}: it may have {', '.join(FIELDS)}"
        )
    stated = given.get("type")
    kind = next((one for one in TYPES if one == stated), None)
    if kind is None:
        raise InvalidRequest(f"{where}.type={brief(stated)}: must be one of {', '.join(TYPES)} (yes/no)")
    instructions = given.get("instructions")
    if instructions is None or instructions in ("", {}, []):
        raise InvalidRequest(f"{where}.instructions is missing: a question must say what it asks")
    content = _content(f"{where}.instructions", instructions)
    return Question(id, kind, content, OPTIONS[kind](f"{where}.criteria", given.get("criteria")))


def _choices(where: str, given: Any) -> tuple[Option, ...]:
    if not isinstance(given, Mapping) or not given:
        raise InvalidRequest(
            f"{where}={brief(given)}: must be an object of at least one option, each with a description or null"
        )
    if len(given) > MOST_OPTIONS:
        raise InvalidRequest(f"{where} has {len(given):,} options; the limit is {MOST_OPTIONS}: offer fewer")
    return tuple(
        Option(
            checks.text(f"the name of an option in {where}", key, MOST_NAME), _description(where, key, one)
        )
        for key, one in given.items()
    )


def _levels(where: str, given: Any) -> tuple[Option, ...]:
    levels = given if isinstance(given, (list, tuple)) else ()
    if not LEAST_LEVELS <= len(levels) <= MOST_LEVELS:
        raise InvalidRequest(
            f"{where}={brief(given)}: must be a list of {LEAST_LEVELS} to {MOST_LEVELS} levels, the lowest first"
        )
    for at, level in enumerate(levels):
        if level is None or level in ("", {}, []):
            raise InvalidRequest(f"{where}[{at}] is empty: describe each level")
    return tuple(Option(str(at), _content(f"{where}[{at}]", level)) for at, level in enumerate(levels))


def _yes_and_no(where: str, given: Any) -> tuple[Option, ...]:
    described = {} if given is None else given
    if not isinstance(described, Mapping) or set(described) - {"false", "true"}:
        raise InvalidRequest(
            f"{where}={brief(given)}: must be an object with descriptions of true and false, or left out"
        )
    return tuple(Option(key, _description(where, key, described.get(key))) for key in ("false", "true"))


OPTIONS: Mapping[QuestionType, Callable[[str, Any], tuple[Option, ...]]] = {
    "choice": _choices,
    "score": _levels,
    "noul": _yes_and_no,
}
"""The function that reads the criteria of each type."""


def _description(where: str, key: Any, given: Any) -> Content | None:
    return None if given is None else _content(f"{where}.{shown(str(key))}", given)


def _content(where: str, given: Any) -> Content:
    """A text, an object or a list, with only the types of JSON."""
    if not isinstance(given, (str, Mapping, list, tuple)):
        raise InvalidRequest(f"{where}={brief(given)}: must be a text, an object or a list")
    content: Content = template_variables({where: given})[where]
    return content
