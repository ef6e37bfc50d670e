"""Numbers between two bounds: as many decimals as fit, for one type and for a list of types."""

from __future__ import annotations

from typing import Any

import pytest

from pellucid.errors import InvalidRequest
from pellucid.sample.grammars.grammar import compiled

NEAR = {"minimum": 0.1, "maximum": 0.10000000001}


@pytest.mark.parametrize("kind", ["number", ["number"], ["null", "number"]])
def test_bounds_that_are_too_near_are_refused(kind: Any) -> None:
    with pytest.raises(InvalidRequest, match="move the bounds apart"):
        compiled("json_schema", {"type": kind, **NEAR})
    compiled("json_schema", {"type": kind, "minimum": 0.1, "maximum": 0.2})


@pytest.mark.parametrize("more", [{"enum": [0.1]}, {"const": 0.1}, {"multipleOf": 0.1}])
def test_numbers_whose_values_are_given_may_be_near(more: dict[str, Any]) -> None:
    compiled("json_schema", {"type": "number", **NEAR, **more})


@pytest.mark.parametrize("kind", ["string", ["null", "string"]])
def test_bounds_of_other_types_say_nothing(kind: Any) -> None:
    compiled("json_schema", {"type": kind, **NEAR})
