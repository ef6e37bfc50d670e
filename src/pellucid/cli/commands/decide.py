"""pellucid decide MODEL --state FILE --question TEXT...: typed questions about a state, answered with probabilities."""

from __future__ import annotations

import json as json_module
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pellucid.cli import common
from pellucid.cli.command import command
from pellucid.cli.options import Loading, check_task, load
from pellucid.errors import InvalidRequest, brief, one_line, shown

if TYPE_CHECKING:
    from pellucid.decide.questions import Decision, DecisionExplanation, Decisions

BAR = 20
"""Characters of the bar of probability 1."""
SHOWN_WORDS = 8
WITH_OPTIONS = re.compile(r"\[[^\]]*<[^\]]*\]")
"""Brackets with levels."""
EXAMPLES = "'Is the customer angry?', 'Which team? [billing | shipping]', 'How urgent? [can wait < today < now]'"


@command("decide")
def decide_command(
    model: common.Model,
    state: str | None = common.text(
        "FILE",
        "The file with the state: a text, or JSON if its name ends with .json. If it is - or missing: standard input.",
    ),
    question: list[str] | None = common.text(
        "TEXT",
        "A question, as often as you like. Yes/no: 'Is the customer angry?'. A choice: 'Which team? [billing: "
        "payments | shipping]', with descriptions after a colon. A score: 'How urgent? [can wait < today < now]'.",
    ),
    questions: str | None = common.text("FILE", "A JSON file with questions by id, in the form of the System One API."),
    explain: bool = common.flag("--explain", "Show also the words of the state that made an answer likely."),
    *,
    loading: Loading,
    json: common.Json = False,
) -> None:
    """Answer questions about a state with probabilities, without generating text.

    A decision model's file states how its probabilities are calibrated. Probabilities of other models, which need a
    chat template, are not calibrated.
    """

    from pellucid.decide.questions import questions_of, state_of

    asked = _asked(question or [], questions)
    questions_of(asked)  # errors before the model is loaded
    given = state_of(_state(state))
    llm = load(model, loading, lambda inputs: check_task(inputs, "decide", "generate"))
    decisions = llm.decide(given, asked, explain=explain)
    if json:
        common.print_json({"answers": decisions.as_dict(), "usage": {"input_tokens": decisions.prompt_tokens}})
        return
    if llm.decider.format is None:
        print("pellucid: not a decision model: the probabilities are not calibrated", file=sys.stderr)
    _show(decisions)


def _asked(texts: list[str], file: str | None) -> dict[str, Any]:
    """The questions of the command line and of the file. Raises InvalidRequest."""
    asked: Any = {}
    if file is not None:
        asked = _json_of(file, common.file_text(file, "give a JSON file with questions by id"))
        if not isinstance(asked, dict):
            raise InvalidRequest(f"questions={file}: must be an object with questions by id")
    for text in texts:
        asked.setdefault(text, _question(text))
    if not asked:
        raise InvalidRequest(f"no question: give --question, such as {EXAMPLES}, or --questions FILE")
    return dict(asked)


def _question(text: str) -> dict[str, Any]:
    """The question of a text, such as "How urgent? [can wait < today < now]"."""

    def refused(problem: str) -> InvalidRequest:
        return InvalidRequest(f"question={brief(text)}: {problem}: write it like {EXAMPLES}")

    words, inside = _divided(text.strip())
    if "|" in words or words.count("[") != words.count("]") or WITH_OPTIONS.search(words):
        raise refused("its options are not in complete brackets at the end")
    if inside is None:
        return {"type": "noul", "instructions": words}
    is_score = "<" in inside and "|" not in inside
    parts = [one.strip() for one in inside.split("<" if is_score else "|")]
    options = {one if is_score else one.partition(":")[0].strip(): one for one in parts}
    if len(options) < max(2, len(parts)) or "" in options:
        raise refused("the brackets must have two or more different options")
    if is_score:
        return {"type": "score", "instructions": words, "criteria": parts}
    criteria = {name: one.partition(":")[2].strip() or None for name, one in options.items()}
    return {"type": "choice", "instructions": words, "criteria": criteria}


def _divided(text: str) -> tuple[str, str | None]:
    """The words of a question, and the inside of the brackets at its end; None: it ends without brackets."""
    depth = 0
    for place in range(len(text) - 1, -1, -1):
        depth += (text[place] == "]") - (text[place] == "[")
        if depth <= 0:
            break
    else:
        return text, None
    return (text[:place].rstrip(), text[place + 1 : -1]) if text[place] == "[" and depth == 0 else (text, None)


def _state(file: str | None) -> Any:
    is_stdin = file is None or file == "-"
    text = common.text_or_stdin(file, "no state") if is_stdin else common.file_text(str(file), "name another file")
    if not text.strip():
        raise InvalidRequest("the state is empty: give --state FILE, or the state on standard input")
    return _json_of(file, text) if file is not None and file.endswith(".json") else text


def _json_of(file: str, text: str) -> Any:
    try:
        return json_module.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{shown(file)} is not JSON: {shown(str(error))}") from None


def _show(decisions: Decisions) -> None:
    for number, decision in enumerate(decisions.values()):
        print("\n" if number else "", end="")
        print(f"{_text(decision.question.instructions)}  {_answer(decision)}")
        names = _names(decision)
        chances = [(name, decision.probabilities[key]) for key, name in names.items()]
        rows = [(name, f"{100 * p:.1f} %", "█" * round(p * BAR)) for name, p in chances]
        common.print_table("option", ">probability", "", rows=rows)
        if decision.explanation is not None:
            _show_explanation(decision.explanation, names)


def _names(decision: Decision) -> dict[str, str]:
    """The words for the options: the descriptions of the levels of a score, yes and no, or the options' names."""
    own = {"false": "no", "true": "yes"} if decision.type == "noul" else {}
    return {
        one.key: _text(one.description) if decision.type == "score" else own.get(one.key, one.key)
        for one in decision.question.options
    }


def _answer(decision: Decision) -> str:
    if isinstance(decision.value, str):
        return f"{decision.value} (confidence {decision.confidence:.2f})"
    if decision.type == "noul":
        return "yes" if decision.value >= 0.5 else "no"
    return f"{decision.value:.2f} of {len(decision.probabilities) - 1} (confidence {decision.confidence:.2f})"


def _show_explanation(explanation: DecisionExplanation, names: Mapping[str, str]) -> None:
    option, against = names[explanation.option], names[explanation.against]
    print(f"why {option} and not {against}: the logits differ by {explanation.logit:+.3f}; words of the state add")
    rows = [(f"{word.value:+.3f}", common.visible(word.text)) for word in explanation.ranked()[:SHOWN_WORDS]]
    common.print_table(">adds", "word", rows=rows)
    rest = explanation.total - sum(word.value for word in explanation.words if word.place == "state")
    print(f"all words of the state add {explanation.total - rest:+.3f}, everything else {rest:+.3f}")


def _text(content: Any) -> str:
    return one_line(content if isinstance(content, str) else json_module.dumps(content, ensure_ascii=False))
