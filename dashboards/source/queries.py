"""Queries that several dashboards ask."""

from __future__ import annotations

MINE = 'instance=~"$instance"'


def rate(metric: str, labels: str = "", by: str = "") -> str:
    """So many a second, of the processes that are looked at."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{_all(labels)}}}[$__rate_interval]))"


def increase(metric: str, labels: str = "", by: str = "", over: str = "$__range") -> str:
    """So many in the time that is looked at, or in another."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (increase({metric}{{{_all(labels)}}}[{over}]))"


def quantile(share: float, metric: str, by: str = "", labels: str = "") -> str:
    """What that share of a histogram's samples stays below."""
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({grouping}) (rate({metric}_bucket{{{_all(labels)}}}[$__rate_interval])))"


def worst(metric: str, by: str = "") -> str:
    """Of a figure of the database, which all workers report alike; or the worst of several processes."""
    return f"max by ({by}) ({metric})" if by else f"max({metric})"


def or_none(query: str) -> str:
    """Zero where nothing of the sort has ever been counted."""
    return f"{query} or on () vector(0)"


FIRING = 'count(ALERTS{{alertstate="firing", severity="{}"}}) or on () vector(0)'


def _all(labels: str) -> str:
    return f"{MINE}, {labels}" if labels else MINE
