"""/v1/responses/ID/input_items: the input items of a response, page by page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.util.checks import whole

USUAL, MOST = 20, 100
NAMES = ("limit", "order", "after")


def input_items(items: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of at most ``limit`` items ``after`` an id. The last item comes first, unless ``order`` is "asc".

    Raises:
        InvalidRequest: a field of the query is wrong or unknown.
    """
    for name in query:
        if name not in NAMES:
            raise InvalidRequest(f"unknown option {brief(name)}: the query may have {', '.join(NAMES)}")
    given, order, after = query.get("limit", str(USUAL)), query.get("order", "desc"), query.get("after")
    digits = given.isascii() and given.isdigit() and len(given) < 10
    limit = whole("limit", int(given) if digits else given, 1, MOST)
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order={brief(order)}: must be asc or desc")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        places = [at for at, one in enumerate(ordered) if one["id"] == after]
        if not places:
            raise InvalidRequest(f"after={brief(after)}: the response has no item with this id")
        ordered = ordered[places[0] + 1 :]
    page = ordered[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > limit,
    }
