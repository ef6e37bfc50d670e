"""Routes of the page: generated text with token probabilities, traces, lenses, profiles (docs/serving.md)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.responses import Response

from pellucid.llm import LLM
from pellucid.serve.api import NAMED, Api, ClientCall, Route, answer
from pellucid.serve.body import Body
from pellucid.serve.generate import generated
from pellucid.serve.live import HEADER
from pellucid.serve.look.fields import LOOK_BODY
from pellucid.serve.look.generation import LookGeneration
from pellucid.serve.look.looks import LOOKS
from pellucid.serve.look.reading import TraceReading
from pellucid.serve.look.running import state
from pellucid.serve.openai.answer import error_body
from pellucid.serve.schema import (
    COUNT,
    FLAG,
    IDS,
    LOGPROBS,
    OBJECT,
    PROMPT,
    SHAPE,
    TEXT,
    TEXTS,
    VALUES,
    body,
    closed,
    generation_options,
    listed,
    one_of,
)

NAMES = {"type": "array", "items": TEXT}
READ = {"prompt": PROMPT, "messages": listed(OBJECT)}
EDIT = {"edit": one_of("ablate", "scale", "add", "replace"), "point": TEXT, "factor": {"type": "number"}}
EDITS = {"type": "array", "items": closed({**EDIT, "values": VALUES, "shape": SHAPE}, "edit", "point")}
VIEW = {"title": TEXT, "point": TEXT, "head": COUNT, "rows": SHAPE, "pool": COUNT}


async def _models(call: ClientCall) -> Response:
    loaded = call.models.loaded
    return answer({"models": [{"name": name, "loaded": name in loaded} for name in call.models.names]})


async def _model(call: ClientCall) -> Response:
    name = call.models.known(call.request.path_params["name"])
    return await _looked(call, "models", name, Body({"name": name}, LOOK_BODY))


async def _state(call: ClientCall) -> Response:
    name = call.models.known(call.request.path_params["name"])
    llm = call.models.llm(name)
    return answer({"loaded": llm is not None, **({} if llm is None else state(llm))})


async def _generate(call: ClientCall) -> Response:
    fields = Body(await call.json(), LOOK_BODY)
    stream = NAMED if fields.flag("stream", True) else None
    name = call.model(fields)
    return await generated(call, name, lambda llm: LookGeneration.of(fields, llm), stream)


def _asked(what: str) -> Callable[[ClientCall], Coroutine[Any, Any, Response]]:
    """Handler that computes the look ``what`` ("trace" or a key of ``LOOKS``) for a request body."""

    async def run(call: ClientCall) -> Response:
        fields = Body(await call.json(), LOOK_BODY)
        return await _looked(call, what, call.model(fields), fields)

    return run


async def _looked(call: ClientCall, what: str, name: str, fields: Body) -> Response:
    """Response of the look ``what``, computed where the model's engine runs: here or on a replica."""
    async with call.use(name) as llm:
        if not isinstance(llm, LLM):
            made = await call.unless_gone(llm.look(what, name, fields.rest()))
            return Response(made, media_type="application/json", headers={HEADER: call.number})
        if what == "trace":
            return await generated(call, name, lambda _: TraceReading.of(fields, llm), None)
        work = call.models.work(name, lambda _: LOOKS[what](fields, llm))
        return answer(await call.unless_gone(work))


LOOK = Api(
    "look",
    {
        "GET /look/models": Route(_models, "The models that can be looked at."),
        "GET /look/models/{name:path}": Route(_model, "The shape of a model, and its points."),
        "GET /look/state/{name:path}": Route(_state, "How a model runs right now."),
        "POST /look/generate": Route(
            _generate,
            "A text, token by token, with the probabilities of the likeliest others.",
            body(
                {},
                {
                    **generation_options("watch", "logprobs", "prompt_logprobs"),
                    "model": TEXT,
                    **READ,
                    "edits": EDITS,
                    "alternatives": COUNT,
                    "stream": FLAG,
                },
                LOOK_BODY,
            ),
            stream="text/event-stream",
        ),
        "POST /look/trace": Route(
            _asked("trace"),
            "Recorded values of a prompt and what follows it.",
            body(
                {},
                {
                    **generation_options("watch", *LOGPROBS),
                    "model": TEXT,
                    **READ,
                    "edits": EDITS,
                    "points": NAMES,
                    "norms": NAMES,
                    "views": listed(closed(VIEW, "title", "point")),
                },
                LOOK_BODY,
            ),
        ),
        "POST /look/lens": Route(
            _asked("lens"),
            "What the model would say after each block.",
            body({}, {"model": TEXT, **READ, "top": COUNT, "edits": EDITS}),
        ),
        "POST /look/beams": Route(
            _asked("beams"),
            "A beam search, with the tree of all candidates.",
            body({}, {"model": TEXT, **READ, "num_beams": COUNT, "max_tokens": COUNT, "edits": EDITS}),
        ),
        "POST /look/profile": Route(
            _asked("profile"),
            "The times of a step's operations beside what the machine can do.",
            body({}, {"model": TEXT, "tokens": COUNT, "depth": {"type": "integer", "minimum": 0}}),
        ),
        "POST /look/attribution": Route(
            _asked("attribution"),
            "What each part adds to the logit of a token.",
            body(
                {},
                {
                    "model": TEXT,
                    **READ,
                    "token": {},
                    "against": {},
                    "position": {"type": "integer"},
                    "edits": EDITS,
                },
            ),
        ),
        "POST /look/neighbours": Route(
            _asked("neighbours"),
            "The nearest tokens of tokens, or of words.",
            body({}, {"model": TEXT, "ids": IDS, "words": TEXTS, "n": COUNT}),
        ),
        "POST /look/pieces": Route(
            _asked("pieces"), "The texts of tokens.", body({"ids": IDS}, {"model": TEXT})
        ),
        "POST /look/tokenize": Route(
            _asked("tokenize"), "How a text becomes tokens.", body({}, {"model": TEXT, "text": TEXT})
        ),
    },
    error_body,
    prefixes=("/look",),
)
