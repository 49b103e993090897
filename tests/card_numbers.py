"""Which numbers a card states, and which ones its results file holds."""

import re
from typing import Any


def measured_in(values: Any) -> set[str]:
    """Every number of a JSON value as a card may write it."""
    if isinstance(values, dict):
        return set().union(*(measured_in([name, value]) for name, value in values.items()), set())
    if isinstance(values, list):
        return set().union(*map(measured_in, values), set())
    if isinstance(values, float):
        return {f"{values:.3f}"}
    if isinstance(values, int):
        return {f"{values}", f"{values:,}"}
    return numbers(values) if isinstance(values, str) else set()


def numbers(text: str) -> set[str]:
    """The numbers in a text, without those of hashes and of the name F1."""
    return set(re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"`[0-9a-f]{64}`|F1", "", text)))


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
