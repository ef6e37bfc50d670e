"""Which grammars may force a long text: the estimate is an upper bound of the text's length."""

from __future__ import annotations

import pytest

from pellucid.sample.grammars.grammar import LONG_RUN, has_long_runs

LONG = "a" * (LONG_RUN // 2 + 1)


@pytest.mark.parametrize(
    ("kind", "text", "is_long"),
    [
        ("regex", "a" * LONG_RUN, False),
        ("regex", "a" * (LONG_RUN + 1), True),
        ("regex", f"(ab){{{LONG_RUN // 2}}}", False),
        ("regex", f"(ab){{{LONG_RUN // 2 + 1}}}", True),
        ("regex", f"((ab){{3}}c){{{LONG_RUN // 8}}}", False),
        ("regex", f"((ab){{3}}c){{{LONG_RUN // 6}}}", True),
        ("regex", r"[abc]\\n.", False),
        ("choices", "a" * (LONG_RUN + 1), False),
        ("lark", 'start: A\nA: "a"', False),
        ("lark", f'start: A\nA: "a"{{{LONG_RUN}}}', True),
    ],
)
def test_lengths_are_bounded(kind: str, text: str, is_long: bool) -> None:
    assert has_long_runs(kind, text) == is_long


def test_terminals_in_terminals_are_written_out() -> None:
    doubling = "\n".join(f"T{n}: T{n + 1} T{n + 1}" for n in range(12))
    assert not has_long_runs("lark", f'start: T9\nT9: "ab"\n{doubling[:20]}')
    assert has_long_runs("lark", f'start: T0\n{doubling}\nT12: "abcdefgh"')
    assert has_long_runs("lark", f'start: A\nA: B B\nB: "{LONG}"')
