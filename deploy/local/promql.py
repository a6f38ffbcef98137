"""As much of PromQL as it takes to say which metrics and labels a query uses, and to scale its times.

Whether a query is one at all, promtool says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKENS = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<range>\[[^\]]*\])
    |(?P<number>\d[\w.]*)
    |(?P<name>[A-Za-z_:][\w:]*)
    |(?P<mark>=~|!~|!=|==|>=|<=|.)""",
    re.VERBOSE | re.DOTALL,
)
_GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"}
_AGGREGATIONS = {
    "sum", "min", "max", "avg", "group", "stddev", "stdvar", "count", "count_values", "bottomk", "topk", "quantile"
}
_DURATION = re.compile(r"(\d+)(ms|[smhdwy])")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}


@dataclass
class Uses:
    """Metric to the labels that it is selected by; and the labels that results are grouped by."""

    metrics: dict[str, set[str]] = field(default_factory=dict)
    grouped_by: set[str] = field(default_factory=set)


def uses(query: str) -> Uses:
    found = Uses()
    tokens = [(kind, match.group()) for match in _TOKENS.finditer(query) if (kind := match.lastgroup or "") != "space"]
    place = 0
    while place < len(tokens):
        kind, text = tokens[place]
        following = tokens[place + 1][1] if place + 1 < len(tokens) else ""
        place += 1
        if kind != "name" or text.lower() in _WORDS:
            continue
        if text in _GROUPINGS:
            if following == "(":
                inside, place = _until(tokens, place + 1, ")")
                found.grouped_by |= {word for sort, word in inside if sort == "name"}
        elif following != "(" and text not in _AGGREGATIONS:
            labels = found.metrics.setdefault(text, set())
            if following == "{":
                inside, place = _until(tokens, place + 1, "}")
                labels |= {word for sort, word in inside if sort == "name"}
    return found


def _until(tokens: list[tuple[str, str]], start: int, end: str) -> tuple[list[tuple[str, str]], int]:
    stop = next((place for place in range(start, len(tokens)) if tokens[place][1] == end), len(tokens))
    return tokens[start:stop], stop + 1


def divided(duration: str, factor: int) -> str:
    """A duration, made so many times shorter; in milliseconds, as Prometheus has no fractions."""
    seconds = sum(int(count) * _SECONDS[unit] for count, unit in _DURATION.findall(duration))
    return f"{max(1, round(seconds * 1000 / factor))}ms"


def with_shorter_times(rules: str, factor: int) -> str:
    """A file of rules whose windows, offsets and waits are so many times shorter. What is compared with stays."""
    rules = re.sub(r"\[(\w+)\]", lambda found: f"[{divided(found[1], factor)}]", rules)
    return re.sub(r"\b(for: |interval: |offset )(\w+)", lambda found: found[1] + divided(found[2], factor), rules)
