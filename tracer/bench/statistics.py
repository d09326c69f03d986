"""Samples summed up: ranks of what was measured, nothing interpolated and nothing dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999))


@dataclass(frozen=True, slots=True)
class Summary:
    """A median is never without its spread. All but ``count`` are in ``unit``; each is a value that was measured."""

    unit: str
    count: int
    min: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    def to_dict(self) -> dict[str, float | str]:
        """The figures under the names that JSON has."""
        found = asdict(self)
        found["p99.9"] = found.pop("p999")
        return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of some sorted values that this share of them does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize(samples: Sequence[float], unit: str) -> Summary | None:
    """The summary of samples in ``unit``; ``None`` where there are none."""
    if not samples:
        return None
    ordered = sorted(samples)
    ranks = [quantile(ordered, share) for _, share in QUANTILES]
    return Summary(unit, len(ordered), ordered[0], ranks[0], ranks[1], ranks[2], ranks[3], ordered[-1])


def curve(samples: Sequence[float], points: int = 400) -> tuple[list[float], list[float]]:
    """(values, shares of the samples up to them) for a cumulative curve of at most this many points, which are dense
    where the tail is."""
    ordered = sorted(samples)
    size = len(ordered)
    if size <= points:
        ranks = list(range(1, size + 1))
    else:
        body = {round(size * n / points) for n in range(1, points)}
        tail = {max(1, size - round(size ** (n / 50)) + 1) for n in range(51)}
        ranks = sorted({1, size, *body, *tail} - {0})
    return [ordered[rank - 1] for rank in ranks], [rank / size for rank in ranks]
