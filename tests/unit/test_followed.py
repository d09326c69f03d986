"""When pods are listed whose next container is about to be made."""

from __future__ import annotations

from tracer.sources.followed import PAUSE, SPAN, Followed

START = 1_000_000_000


def test_a_followed_pod_is_listed_for_a_moment() -> None:
    """Listings come a pause after one another, for as long as the moment lasts and no longer."""
    followed = Followed()
    assert followed.next_due() is None
    followed.follow("a", START)
    now, listings = START, 0
    while (due := followed.next_due()) is not None:
        assert due == now + PAUSE
        assert followed.pods == {"a"}
        now, listings = due, listings + 1
        followed.listed(now)
    assert listings == SPAN // PAUSE


def test_one_listing_serves_all() -> None:
    """Pods that are followed later wait for no pause of their own, and each has its own moment."""
    followed = Followed()
    followed.follow("a", START)
    followed.follow("b", START + PAUSE // 2)
    assert followed.next_due() == START + PAUSE
    followed.listed(START + SPAN)
    assert followed.pods == {"b"}
    followed.leave("b")
    followed.leave("b")
    assert followed.next_due() is None


def test_news_lengthen_the_moment() -> None:
    """A pod of which another container came up is followed for a whole moment more."""
    followed = Followed()
    followed.follow("a", START)
    followed.follow("a", START + SPAN - 1)
    followed.listed(START + SPAN)
    assert followed.pods == {"a"}
    followed.clear()
    assert followed.next_due() is None
