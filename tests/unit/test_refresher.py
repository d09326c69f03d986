"""The schedule of GETs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.sources.refresh import (
    FIRST_FAILURE_PAUSE,
    FIRST_RETRY,
    LAST_RETRY,
    MAX_WANTED,
    SPACING,
    STIR,
    Refresher,
)

MS = 1_000_000
S = 1_000 * MS
START = 1_000 * S


def fetch(refresher: Refresher, at: int, *, took: int = 0, ok: bool = True) -> None:
    """One whole GET, which must be due at ``at``."""
    assert refresher.next_fetch(at) == at
    refresher.started(at)
    refresher.finished(at + took, ok)


def test_first_at_once() -> None:
    """The first GET is due at once."""
    assert Refresher(10 * S).next_fetch(START) == START


def test_interval() -> None:
    """Without wants a GET is due one interval after the last one began."""
    refresher = Refresher(10 * S)
    fetch(refresher, START, took=3 * S)
    assert refresher.next_fetch(START + 4 * S) == START + 10 * S


def test_none_in_flight() -> None:
    """While a GET is in flight none is due, whatever is wanted, and starting another is an error."""
    refresher = Refresher(10 * S)
    refresher.started(START)
    refresher.want("a", START)
    assert refresher.next_fetch(START + 60 * S) is None
    with pytest.raises(RuntimeError, match="in flight already"):
        refresher.started(START + 1)


def test_finish_needs_start() -> None:
    """A GET that never began cannot end."""
    with pytest.raises(RuntimeError, match="no GET"):
        Refresher(10 * S).finished(START, True)


def test_unknown_container_backs_off() -> None:
    """An unknown container is fetched for at once, then 50 ms, 100 ms, … 5 s after each answer without it."""
    refresher = Refresher(3600 * S)
    fetch(refresher, START)
    now = START + S
    refresher.want("a", now)
    pauses = []
    for _ in range(10):
        fetch(refresher, now, took=200 * MS)
        ended = now + 200 * MS
        due = refresher.next_fetch(ended)
        assert due is not None
        pauses.append((due - ended) // MS)
        now = due
    assert pauses == [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]


def test_spacing_beats_backoff() -> None:
    """GETs begin 100 ms apart even where a container's turn comes sooner."""
    refresher = Refresher(3600 * S)
    fetch(refresher, START)
    refresher.want("a", START + 1 * MS)
    assert refresher.next_fetch(START + 1 * MS) == START + SPACING


def test_wanting_again_changes_nothing() -> None:
    """Wanting the same container again neither restarts nor shortens its back-off."""
    refresher = Refresher(3600 * S)
    refresher.want("a", START)
    now = START
    for _ in range(5):
        fetch(refresher, now, took=1 * MS)
        due = refresher.next_fetch(now + 1 * MS)
        refresher.want("a", now + 1 * MS)
        assert refresher.next_fetch(now + 1 * MS) == due
        assert due is not None
        now = due


def test_want_during_flight_is_not_answered_by_it() -> None:
    """A container wanted while a GET is in flight gets the next one at once: that list may be too old."""
    refresher = Refresher(3600 * S)
    refresher.started(START)
    refresher.want("a", START + 500 * MS)
    refresher.finished(START + S, True)
    assert refresher.next_fetch(START + S) == START + S


def test_settled_is_not_fetched_for() -> None:
    """A settled container is fetched for no more; wanted anew, it starts anew."""
    refresher = Refresher(10 * S)
    fetch(refresher, START)
    refresher.want("a", START + S)
    refresher.settle("a")
    refresher.settle("never wanted")
    assert refresher.wanted == 0
    assert refresher.next_fetch(START + S) == START + 10 * S
    refresher.want("a", START + 2 * S)
    assert refresher.next_fetch(START + 2 * S) == START + 2 * S


def test_many_wants_share_their_fetches() -> None:
    """A hundred containers that never become known cost no more GETs than one does."""
    counts = []
    for number in (1, 100):
        refresher = Refresher(3600 * S)
        fetch(refresher, START)
        now, fetches = START + S, 0
        for i in range(number):
            refresher.want(f"c{i}", now)
        while (due := refresher.next_fetch(now)) is not None and due < START + 60 * S:
            fetch(refresher, due, took=5 * MS)
            now, fetches = due + 5 * MS, fetches + 1
        counts.append(fetches)
    assert counts[1] == counts[0] < 20


def test_fetched_for_on_anothers_behalf() -> None:
    """A GET for another container counts for this one, but does not lengthen its back-off."""
    refresher = Refresher(3600 * S)
    refresher.want("a", START)
    now = START
    for _ in range(4):
        fetch(refresher, now, took=150 * MS)
        now = refresher.next_fetch(now + 150 * MS) or 0
    # The pause of a is 800 ms from here; 10 ms later b comes.
    fetch(refresher, now, took=150 * MS)
    began = now + 160 * MS
    refresher.want("b", began)
    fetch(refresher, began, took=150 * MS)
    refresher.settle("b")
    ended = began + 150 * MS
    assert refresher.next_fetch(ended) == ended + 800 * MS


def test_failures_back_off_to_the_interval() -> None:
    """After failures the next try comes in 0.5 s, 1 s, … up to the interval, whatever is wanted."""
    refresher = Refresher(10 * S)
    now = START
    pauses = []
    for i in range(8):
        fetch(refresher, now, ok=False)
        refresher.want(f"c{i}", now)
        due = refresher.next_fetch(now)
        assert due is not None
        pauses.append((due - now) / S)
        now = due
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10, 10]
    fetch(refresher, now)
    fetch(refresher, now + SPACING)
    assert refresher.next_fetch(now + SPACING) == now + 2 * SPACING


def test_failing_for_ever() -> None:
    """The pause stays at the interval after any number of failures."""
    refresher = Refresher(10 * S)
    now = START
    for _ in range(2000):
        fetch(refresher, now, ok=False)
        due = refresher.next_fetch(now)
        assert due is not None
        now = due
    assert now - START >= 1990 * 10 * S


def test_failure_leaves_back_off_alone() -> None:
    """A GET that failed says nothing of a container, so that its back-off does not grow."""
    refresher = Refresher(3600 * S)
    refresher.want("a", START)
    fetch(refresher, START, ok=False)
    fetch(refresher, START + FIRST_FAILURE_PAUSE, took=200 * MS)
    ended = START + FIRST_FAILURE_PAUSE + 200 * MS
    assert refresher.next_fetch(ended) == ended + FIRST_RETRY


def test_wants_are_bounded() -> None:
    """Of too many wanted containers the one wanted first is forgotten."""
    refresher = Refresher(10 * S)
    for i in range(MAX_WANTED + 100):
        refresher.want(f"c{i}", START + i)
    assert refresher.wanted == MAX_WANTED
    refresher.settle("c99")
    assert refresher.wanted == MAX_WANTED
    refresher.settle("c100")
    assert refresher.wanted == MAX_WANTED - 1


def test_what_happens_to_an_incomplete_pod_is_fetched_for_soon() -> None:
    """Half a second after something happened a GET has begun, one for all until then, not repeated."""
    refresher = Refresher(10 * S)
    fetch(refresher, START)
    for after in (1, 100, 400):
        refresher.stir(START + S + after * MS)
    due = refresher.next_fetch(START + S + 400 * MS)
    assert due == START + S + MS + STIR
    assert due <= START + S + 500 * MS
    fetch(refresher, due)
    assert refresher.next_fetch(due) == due + 10 * S


def test_a_fetch_for_another_reason_leaves_the_later_one() -> None:
    """A GET right after an event, whose list the kubelet's status may not be in yet, does not replace the one that was
    to come."""
    refresher = Refresher(10 * S)
    fetch(refresher, START)
    refresher.stir(START + S)
    refresher.want("a", START + S)
    fetch(refresher, START + S)
    refresher.settle("a")
    assert refresher.next_fetch(START + S) == START + S + STIR


def test_failures_are_not_hurried_by_what_happens() -> None:
    """While the kubelet fails the next try has its pause, whatever happens to pods."""
    refresher = Refresher(10 * S)
    fetch(refresher, START, ok=False)
    refresher.stir(START)
    assert refresher.next_fetch(START) == START + FIRST_FAILURE_PAUSE


ids = st.sampled_from(["a", "b", "c", "d"])
steps = st.one_of(
    st.tuples(st.just("want"), ids),
    st.tuples(st.just("settle"), ids),
    st.tuples(st.just("stir"), st.none()),
    st.tuples(st.just("wait"), st.integers(0, 8 * S)),
    st.tuples(st.just("fetch"), st.tuples(st.integers(0, 2 * S), st.booleans())),
)


@settings(max_examples=300, deadline=None)
@given(
    interval=st.sampled_from([50 * MS, 500 * MS, 10 * S, 60 * S]),
    what=st.lists(steps, max_size=60),
)
def test_any_order(interval: int, what: list[tuple[str, object]]) -> None:
    """Whatever is wanted and settled: spaced, one at a time, in time for each, never a busy loop."""
    refresher = Refresher(interval)
    now, began, ended, failures = START, None, START, 0
    # Per wanted container: how many good GETs began since it was wanted, and when it was wanted.
    looks: dict[str, int] = {}
    stirred: int | None = None
    since: dict[str, int] = {}

    for kind, value in what:
        if kind == "want":
            assert isinstance(value, str)
            if value not in looks:
                looks[value], since[value] = 0, now
            refresher.want(value, now)
        elif kind == "settle":
            assert isinstance(value, str)
            refresher.settle(value)
            looks.pop(value, None)
        elif kind == "stir":
            refresher.stir(now)
            stirred = now if stirred is None else stirred
        elif kind == "wait":
            assert isinstance(value, int)
            now += value
        due = refresher.next_fetch(now)
        assert due is not None
        assert due >= now
        if began is not None:
            assert due >= began + SPACING
            if failures:
                pause = min(interval, FIRST_FAILURE_PAUSE * 2 ** (failures - 1))
                assert due == max(now, began + SPACING, ended + pause)
            else:
                # In time: no later than the interval allows, nor than any wanted container's back-off.
                latest = [max(began + interval, ended + SPACING)]
                latest += [
                    since[c] if n == 0 else ended + min(FIRST_RETRY * 2 ** (n - 1), LAST_RETRY)
                    for c, n in looks.items()
                ]
                latest += [] if stirred is None else [stirred + STIR]
                assert due <= max(now, began + SPACING, min(latest))
                # No busy loop: unless the interval is over, somebody must have a reason.
                if due < max(began + interval, ended + SPACING):
                    assert looks or stirred is not None
        if kind == "fetch":
            assert isinstance(value, tuple)
            took, ok = value
            now = due
            refresher.started(now)
            began = now
            if stirred is not None and stirred + STIR <= now:
                stirred = None
            assert refresher.next_fetch(now) is None
            now += took
            assert refresher.next_fetch(now) is None
            refresher.finished(now, ok)
            ended, failures = now, 0 if ok else failures + 1
            if ok:
                looks = {c: n + 1 for c, n in looks.items()}


@settings(max_examples=100, deadline=None)
@given(
    interval=st.sampled_from([100 * MS, 500 * MS, 10 * S]),
    wanted=st.lists(st.integers(0, 60 * S), max_size=30),
    took=st.integers(0, 300 * MS),
)
def test_rate_for_what_never_comes(interval: int, wanted: list[int], took: int) -> None:
    """Containers that never become known cost a bounded number of GETs, however many and whenever wanted."""
    refresher = Refresher(interval)
    now, end, fetches = START, START + 120 * S, 0
    todo = sorted(START + at for at in wanted)
    while True:
        while todo and todo[0] <= now:
            refresher.want(f"c{len(todo)}", todo.pop(0))
        due = refresher.next_fetch(now)
        assert due is not None
        if due >= end and not todo:
            break
        if todo and todo[0] < due:
            now = todo[0]
            continue
        refresher.started(due)
        now = due + took
        refresher.finished(now, True)
        fetches += 1
    # A want has 8 GETs before its pause is 5 s; then all share one each 5 s; the interval has its own.
    assert fetches <= 2 + 9 * len(wanted) + 120 * S // min(interval, 5 * S) + 120 * S // (5 * S)
