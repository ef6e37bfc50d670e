"""What the page asks for: texts with the probabilities of their tokens, and what is inside (docs/serving.md)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.api import NAMED, Api, ClientCall, Route, answer
from pellucid.serve.body import Body
from pellucid.serve.generate import generated
from pellucid.serve.look.fields import LOOK_BODY
from pellucid.serve.look.generation import LookGeneration
from pellucid.serve.look.models import described
from pellucid.serve.look.reading import TraceReading, attribution, lens, near, pieces, tokenization
from pellucid.serve.look.running import profile, state
from pellucid.serve.look.searching import beams
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import error_body
from pellucid.serve.schema import (
    COUNT,
    FLAG,
    IDS,
    OBJECT,
    PROMPT,
    TEXT,
    TEXTS,
    body,
    generation_options,
    listed,
)

NAMES = {"type": "array", "items": TEXT}
READ = {"prompt": PROMPT, "messages": listed(OBJECT)}


async def _models(call: ClientCall) -> Response:
    loaded = call.models.loaded
    return answer({"models": [{"name": name, "loaded": name in loaded} for name in call.models.names]})


async def _model(call: ClientCall) -> Response:
    name = call.models.known(call.request.path_params["name"])
    async with call.models.use(name) as llm:
        return answer(await run_in_threadpool(described, name, llm))


async def _state(call: ClientCall) -> Response:
    name = call.models.known(call.request.path_params["name"])
    llm = call.models.llm(name)
    return answer({"loaded": llm is not None, **({} if llm is None else state(llm))})


async def _generate(call: ClientCall) -> Response:
    fields = Body(await call.json(), LOOK_BODY)
    stream = NAMED if fields.flag("stream", True) else None
    name = fields.model_or(call.models.names[0])
    return await generated(call, name, lambda llm: LookGeneration.of(fields, llm), stream)


async def _trace(call: ClientCall) -> Response:
    fields = Body(await call.json(), LOOK_BODY)
    name = fields.model_or(call.models.names[0])
    return await generated(call, name, lambda llm: TraceReading.of(fields, llm), None)


def _asked(read: Callable[[Body, ServedModel], dict[str, Any]]) -> Callable[[ClientCall], Any]:
    """A route that answers what ``read`` makes of a body, in a thread."""

    async def run(call: ClientCall) -> Response:
        fields = Body(await call.json(), LOOK_BODY)
        name = fields.model_or(call.models.names[0])
        return answer(await call.unless_gone(call.models.work(name, partial(read, fields))))

    return run


LOOK = Api(
    "look",
    {
        "GET /look/models": Route(_models, "The models that can be looked at."),
        "GET /look/models/{name:path}": Route(_model, "The shape of a model, and its points."),
        "GET /look/state/{name:path}": Route(_state, "How a model runs right now."),
        "POST /look/generate": Route(
            _generate,
            "A text, token by token, with the probabilities of the likeliest others.",
            body({}, {**generation_options(), "model": TEXT, **READ, "alternatives": COUNT, "stream": FLAG}),
            stream="text/event-stream",
        ),
        "POST /look/trace": Route(
            _trace,
            "Recorded values of a prompt and what follows it.",
            body(
                {},
                {
                    **generation_options(),
                    "model": TEXT,
                    **READ,
                    "points": NAMES,
                    "norms": NAMES,
                    "views": listed(OBJECT),
                },
            ),
        ),
        "POST /look/lens": Route(
            _asked(lens),
            "What the model would say after each block.",
            body({}, {"model": TEXT, **READ, "top": COUNT}),
        ),
        "POST /look/beams": Route(
            _asked(beams),
            "A beam search, with the tree of all candidates.",
            body({}, {"model": TEXT, **READ, "num_beams": COUNT, "max_tokens": COUNT}),
        ),
        "POST /look/profile": Route(
            _asked(profile),
            "The times of a step's operations beside what the machine can do.",
            body({}, {"model": TEXT, "tokens": COUNT, "depth": {"type": "integer", "minimum": 0}}),
        ),
        "POST /look/attribution": Route(
            _asked(attribution),
            "What each part adds to the logit of a token.",
            body({}, {"model": TEXT, **READ, "token": {}, "against": {}, "position": {"type": "integer"}}),
        ),
        "POST /look/neighbours": Route(
            _asked(near), "The nearest tokens of words.", body({"words": TEXTS}, {"model": TEXT, "n": COUNT})
        ),
        "POST /look/pieces": Route(
            _asked(pieces), "The texts of tokens.", body({"ids": IDS}, {"model": TEXT})
        ),
        "POST /look/tokenize": Route(
            _asked(tokenization), "How a text becomes tokens.", body({}, {"model": TEXT, "text": TEXT})
        ),
    },
    error_body,
    prefixes=("/look",),
)
