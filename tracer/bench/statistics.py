"""Samples summed up: ranks of what was measured, nothing interpolated and nothing dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_TAIL = ((0.9, 10), (0.99, 100), (0.999, 1000))  # (share, samples that it takes)


@dataclass(frozen=True, slots=True)
class Summary:
    """A median is never without its spread. All but ``count`` are in ``unit``; each is a value that was measured. A
    quantile that so few samples cannot tell from their maximum is ``None``."""

    unit: str
    count: int
    min: float
    p50: float
    p90: float | None
    p99: float | None
    p999: float | None
    max: float

    def to_dict(self) -> dict[str, float | str | None]:
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
    size = len(ordered)
    p90, p99, p999 = (quantile(ordered, share) if size >= least else None for share, least in _TAIL)
    return Summary(unit, size, ordered[0], quantile(ordered, 0.5), p90, p99, p999, ordered[-1])


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
