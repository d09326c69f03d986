"""When the runtime is asked for which container: the schedule alone, with times as numbers."""

from __future__ import annotations

import pytest

from tracer.sources.attempts import MAX_FAILURES, PAUSES, Attempts

MS = 1_000_000


def taken(attempts: Attempts, now: int) -> str | None:
    want = attempts.take(now)
    return want.container_id if want else None


def test_a_container_that_is_not_there() -> None:
    """It is asked for at once, again after 1, 2, 4 … 64 ms, then at doubled pauses up to a second, then never."""
    attempts = Attempts()
    attempts.want("a", 5)
    now, pauses = 5, []
    while (due := attempts.next_due()) is not None:
        pauses.append(due - now)
        now = due
        assert attempts.take(now - 1) is None
        want = attempts.take(now)
        assert want is not None
        assert attempts.take(now) is None
        given_up = attempts.missed(want, now)
    assert given_up
    assert [pause // MS for pause in pauses] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert attempts.wanted == 0


def test_wanted_again() -> None:
    """Wanted twice is asked for once; wanted again after it was given up, it is asked for at once."""
    attempts = Attempts()
    attempts.want("a", 0)
    attempts.want("a", 0)
    want = attempts.take(0)
    assert want is not None
    attempts.want("a", 0)
    assert attempts.take(0) is None
    for _ in PAUSES:
        assert not attempts.missed(want, 0)
        want = attempts.take(1 << 60)
        assert want is not None
    assert attempts.missed(want, 0)
    attempts.want("a", 7)
    assert attempts.next_due() == 7


def test_settled() -> None:
    """What became known otherwise is asked for no more, and an answer in flight is no news."""
    attempts = Attempts()
    for name in "abc":
        attempts.want(name, 0)
    attempts.settle("a")
    assert taken(attempts, 0) == "b"
    want = attempts.take(0)
    assert want is not None
    attempts.settle("c")
    assert not attempts.done(want)
    assert not attempts.missed(want, 0)
    assert not attempts.failed(want, 0)


def test_settled_and_wanted_while_in_flight() -> None:
    """The answer to an earlier question does not end a later one."""
    attempts = Attempts()
    attempts.want("a", 0)
    old = attempts.take(0)
    assert old is not None
    attempts.settle("a")
    attempts.want("a", 1)
    assert not attempts.missed(old, 1)
    new = attempts.take(1)
    assert new is not None
    assert attempts.done(new)


def test_wanted_comes_before_listed() -> None:
    """What is wanted comes before what a listing named; that is asked for once, and counted until done with."""
    attempts = Attempts()
    attempts.add(["x", "y", "z"])
    attempts.want("a", 0)
    attempts.want("y", 0)
    assert (attempts.wanted, attempts.listed) == (2, 2)
    assert [taken(attempts, 0) for _ in range(3)] == ["a", "y", "x"]
    want = attempts.take(0)
    assert want is not None
    assert attempts.missed(want, 0)
    assert attempts.listed == 1
    assert attempts.next_due() is None


def test_listed_then_wanted_in_flight() -> None:
    """What becomes wanted while it is asked for as listed is tried again as wanted."""
    attempts = Attempts()
    attempts.add(["x"])
    want = attempts.take(0)
    assert want is not None
    attempts.want("x", 0)
    assert not attempts.missed(want, 0)
    assert attempts.next_due() == MS
    assert attempts.listed == 0


@pytest.mark.parametrize("listed", [False, True])
def test_failures(listed: bool) -> None:
    """A call that failed is made again, three times in all, whoever asked for it."""
    attempts = Attempts()
    if listed:
        attempts.add(["a"])
    else:
        attempts.want("a", 0)
    results = []
    while (want := attempts.take(0)) is not None:
        results.append(attempts.failed(want, 0))
    assert results == [False] * (MAX_FAILURES - 1) + [True]
    assert (attempts.wanted, attempts.listed) == (0, 0)


def test_bounded() -> None:
    """Of too many the one wanted first is forgotten; what a listing named is not."""
    attempts = Attempts(max_wanted=2)
    attempts.add(["x"])
    for number, name in enumerate("abc"):
        attempts.want(name, number)
    assert [taken(attempts, 9) for _ in range(4)] == ["b", "c", "x", None]
