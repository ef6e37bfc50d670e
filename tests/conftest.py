"""Being here, it puts tests/ on the import path, so that tests can import ``support``."""

import pytest
from hypothesis import settings

settings.register_profile("pellucid", derandomize=True, deadline=None)
settings.load_profile("pellucid")

FASTEST_FIRST = ("unit", "contract", "accuracy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; among them, those that need no real model."""
    items.sort(
        key=lambda item: (
            next((i for i, folder in enumerate(FASTEST_FIRST) if folder in item.path.parts), 0),
            item.get_closest_marker("model") is not None,
        )
    )
