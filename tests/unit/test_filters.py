"""Filters show what matches for sure."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from cli_fakes import CART, HOST, WAITING, identity
from hypothesis import given
from hypothesis import strategies as st

from tracer.cli.filters import Filters, matches
from tracer.cli.labels import parse
from tracer.errors import UsageError

LABELS = {"app": "cart", "tier": "web", "size": "7", "example.com/in": "in"}


def meets(selector: str, labels: dict[str, str] = LABELS) -> bool:
    return all(requirement.matches(labels) for requirement in parse(selector))


@pytest.mark.parametrize(
    "selector",
    [
        "", "  ", "app", "app=cart", "app==cart", " app = cart ", "app!=shop", "missing!=x", "!missing", "! missing",
        "app in (cart)", "app in (a, cart ,b)", "app in(cart)", "app notin (a,b)", "missing notin (a)",
        "tier in (,web)",
        "app=cart,tier=web", "app,!missing,tier in (web,api)", "size>6",
        "size < 8",
        "example.com/in in (in)", "example.com/in=in", "app in (cart,)",
    ],
)  # fmt: skip
def test_a_selector_that_holds_matches(selector: str) -> None:
    assert meets(selector)


@pytest.mark.parametrize(
    "selector",
    ["missing", "!app", "app=shop", "app=", "app!=cart", "app in (a,b)", "app notin (cart)", "app=cart,tier=db",
     "size>7", "app>1", "missing<9", "in", "notin=x"],
)  # fmt: skip
def test_a_selector_that_does_not_hold_does_not_match(selector: str) -> None:
    assert not meets(selector)


def test_in_and_notin_may_be_keys() -> None:
    assert meets("in in (notin),notin notin (in)", {"in": "notin", "notin": "x"})


def test_an_empty_value_is_a_value() -> None:
    assert meets("a=,c==", {"a": "", "c": ""})


@pytest.mark.parametrize(
    ("selector", "position"),
    [
        ("app=cart,", 10), ("=x", 1), ("app in cart", 8), ("app in ()", 9), ("app in (a", 10), ("app in (a b)", 11),
        ("a b", 3), ("app=c=d", 6), ("!app=x", 5), ("-a", 1), ("a=-b", 3), ("A/b", 1), ("a//b", 1), ("x>y", 3),
        ("a,,b", 3), ("a=" + "v" * 64, 3), ("a)", 2), ("!", 2), ("a=(", 3), ("ä", 1), ("x>-1", 3),
    ],
)  # fmt: skip
def test_an_error_names_its_position(selector: str, position: int) -> None:
    with pytest.raises(UsageError, match=f"position {position}\\b") as caught:
        parse(selector)
    assert caught.value.hint


@given(st.one_of(st.text(), st.text("ab=!(),<> innotin.-/1", max_size=30)))
def test_no_selector_raises_anything_but_a_usage_error(selector: str) -> None:
    with suppress(UsageError):
        meets(selector)


@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(namespaces=("other", "shop")),
        Filters(pods=("cart-7d9f",)),
        Filters(containers=("app",)),
        Filters(labels=parse("app=cart")),
        Filters(pids=(7,)),
        Filters(namespaces=("shop",), pods=("cart-7d9f",), containers=("app",), labels=parse("app"), pids=(7,)),
    ],
)
def test_a_process_that_meets_every_filter_is_shown(filters: Filters) -> None:
    assert matches(identity(7), filters)


@pytest.mark.parametrize(
    "filters",
    [
        Filters(namespaces=("other",)),
        Filters(pods=("cart",)),
        Filters(containers=("sidecar",)),
        Filters(labels=parse("app!=cart")),
        Filters(pids=(8,)),
        Filters(namespaces=("shop",), pids=(8,)),
    ],
)
def test_a_process_that_fails_one_filter_is_hidden(filters: Filters) -> None:
    assert not matches(identity(7), filters)


@pytest.mark.parametrize(
    "filters",
    [
        Filters(namespaces=("shop",)),
        Filters(pods=("cart-7d9f",)),
        Filters(containers=("app",)),
        Filters(labels=parse("app!=cart")),
        Filters(labels=parse("!app")),
    ],
)
def test_a_process_whose_tested_field_is_unknown_is_hidden_until_it_is_known(filters: Filters) -> None:
    assert not matches(identity(7, WAITING), filters)


def test_a_pending_process_is_shown_without_filters_and_by_what_is_known_of_it() -> None:
    assert matches(identity(7, WAITING), Filters())
    assert matches(identity(7, replace(WAITING, namespace="shop")), Filters(namespaces=("shop",)))


def test_host_processes_are_hidden_unless_asked_for_or_named() -> None:
    host = identity(7, HOST)
    assert not matches(host, Filters())
    assert matches(host, Filters(host=True))
    assert matches(host, Filters(pids=(7,)))
    assert not matches(host, Filters(host=True, namespaces=("shop",)))


def test_a_process_is_named_by_its_thread_too() -> None:
    assert matches(identity(7)._replace(asked=9), Filters(pids=(9,)))


def test_labels_that_are_known_to_be_none_meet_a_negative_selector() -> None:
    assert matches(identity(7, replace(CART, labels={})), Filters(labels=parse("!canary,app!=x")))
