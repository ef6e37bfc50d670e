"""Classes that test_registry.py discovers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    name: str


class Base:
    name = ""
