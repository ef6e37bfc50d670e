"""Request bodies: Structs are decoded, wrong fields are named in one line, and the schema comes from the Struct."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from pellucid.errors import InvalidRequest
from pellucid.serve.generation_options import generation_options
from pellucid.serve.request_body import BodyRules, BodyType, Fields, ModelFields


class Square(Fields, frozen=True, tag_field="type", tag="square"):
    side: Annotated[float, Meta(ge=0, le=9)]


class Circle(Fields, frozen=True, tag_field="type", tag="circle"):
    radius: float = 1.0
    note: str | None = None

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError(f"radius={self.radius:g}: must not be negative")


Shape = Annotated[Square | Circle, Meta(extra_json_schema={"default": {"type": "square"}})]


class DrawingFields(ModelFields, frozen=True, kw_only=True):
    shapes: Annotated[Sequence[Shape], Meta(min_length=1)]
    color: Literal["red", "green", "blue"] = "red"
    count: Annotated[int, Meta(ge=1, le=5)] = 1
    filled: bool = False
    data: dict[str, Any] | None = None


DRAWING = BodyType(
    DrawingFields,
    BodyRules(
        options=generation_options(),
        renamed={"max_tokens": "max_new_tokens"},
        absent={"seed": (-1,)},
        ignored=frozenset({"user"}),
        only={"background": False},
    ),
)
ONE = {"shapes": [{"type": "circle"}]}


def test_fields_options_and_raw() -> None:
    given = {**ONE, "temperature": 0.5, "max_tokens": 3, "seed": -1, "user": "me", "background": False}
    body = DRAWING.decode(given)
    assert body.fields == DrawingFields(shapes=[Circle()])
    assert body.given == {"temperature": 0.5, "max_tokens": 3}
    assert body.options({"top_k": 4}) == {"temperature": 0.5, "max_new_tokens": 3, "top_k": 4}
    assert body.raw is given


def test_null_is_absent_and_a_type_has_a_default() -> None:
    data = {"const": None, "enum": [None, {"a": None}]}
    body = DRAWING.decode(
        {"shapes": [{"side": 2, "odd": None}, {"type": "circle", "note": None}], "color": None, "data": data}
    )
    assert body.fields == DrawingFields(shapes=[Square(2.0), Circle()], data=data)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "the body is []: it must be an object with named fields"),
        ({}, "shapes is missing: the request must have it"),
        ({"shapes": None}, "shapes is missing: the request must have it"),
        ({"shapes": []}, "shapes is empty: must be a non-empty list of objects"),
        ({"shapes": 5}, "shapes=5: must be a non-empty list of objects"),
        ({"shapes": [5]}, "shapes[0]=5: must be an object"),
        ({"shapes": [{"type": "odd"}]}, "shapes[0].type='odd': must be square or circle"),
        ({"shapes": [{}]}, "shapes[0].side is missing: the request must have it"),
        ({"shapes": [{"side": 10}]}, "shapes[0].side=10: must be a number from 0 to 9"),
        ({"shapes": [{"side": True}]}, "shapes[0].side=True: must be a number from 0 to 9"),
        ({"shapes": [{"type": "circle", "radius": -1}]}, "shapes[0].radius=-1: must not be negative"),
        ({**ONE, "color": "pink"}, "color='pink': must be one of blue, green, red"),
        ({**ONE, "count": 0}, "count=0: must be a whole number from 1 to 5"),
        ({**ONE, "count": 2.0}, "count=2.0: must be a whole number from 1 to 5"),
        ({**ONE, "filled": "yes"}, "filled='yes': must be true or false"),
        ({**ONE, "model": 5}, "model=5: must be a text"),
        ({**ONE, "background": True}, "background=True: not supported; leave it out"),
        ({**ONE, "colour": "red"}, "unknown option 'colour': did you mean color or count?"),
        (
            {"shapes": [{"type": "circle", "size": 1}]},
            "unknown option 'shapes[0].size': it may have type, radius, note",
        ),
        ({**ONE, "zzzz": 1}, "unknown option 'zzzz': GET /openapi.json shows all fields of this request"),
    ],
)
def test_a_wrong_field_is_named(body: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        DRAWING.decode(body)
    assert str(caught.value) == message


def test_the_schema_is_that_of_the_struct() -> None:
    schema = DRAWING.schema
    assert (schema["required"], schema["additionalProperties"]) == (["shapes"], False)
    assert schema["properties"]["count"] == {"type": "integer", "minimum": 1, "maximum": 5, "default": 1}
    assert schema["properties"]["data"] == {"type": "object"}
    assert schema["properties"]["background"]["const"] is False
    assert schema["properties"]["max_tokens"] == schema["properties"]["max_new_tokens"]
    kinds = [one["properties"]["type"]["enum"] for one in schema["properties"]["shapes"]["items"]["anyOf"]]
    assert kinds == [["square"], ["circle"]]
