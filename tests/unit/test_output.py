"""What identities and events look like."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import yaml
from cli_fakes import CART, CONTAINER_ID, HOST, WAITING, event, identity
from hypothesis import given
from hypothesis import strategies as st

from tracer import clock
from tracer.cli import color, events, output
from tracer.cli.output import Out, Style, age
from tracer.cli.quote import width
from tracer.cli.table import Cell, Column, Table
from tracer.errors import TracerError, UsageError
from tracer.model import Clock, Event, Identity

PLAIN = Style()
NASTY = "a\x1b[2J\n\u202eb"


def written(format_: str, *identities: Identity, style: Style = PLAIN) -> str:
    stream = io.StringIO()
    output.printer(format_, Out(stream), style).batch(identities, clock.read())
    return stream.getvalue()


def told(format_: str, *happened: Event, style: Style = PLAIN) -> str:
    stream = io.StringIO()
    printer = events.printer(format_, Out(stream), style)
    printer.begin()
    printer.batch(happened, clock.read())
    return stream.getvalue()


def test_json_is_one_object_a_line_with_just_the_keys_of_the_identity() -> None:
    who = identity(7, comm=NASTY)
    lines = written("json", who, identity(8, HOST)).splitlines()
    assert [json.loads(line)["pid"] for line in lines] == [7, 8]
    assert list(json.loads(lines[0])) == list(who.to_dict(Clock(0, 0.0)))
    assert json.loads(lines[0])["comm"] == NASTY
    assert lines[0].isascii()
    assert lines[0].isprintable()


def test_yaml_holds_the_same_as_json_one_document_each() -> None:
    documents = list(yaml.safe_load_all(written("yaml", identity(7, comm=NASTY), identity(8, HOST))))
    assert [document["pid"] for document in documents] == [7, 8]
    assert documents[0]["comm"] == NASTY


def test_name_is_namespace_pod_container() -> None:
    assert written("name", identity(7), identity(8, HOST)) == "shop/cart-7d9f/app\n-/-/-\n"


def test_selectors_are_one_a_line() -> None:
    assert written("selectors", identity(7)) == "k8s:ns:shop\nk8s:sa:cart\n"


def test_jsonpath_ends_each_object_with_one_newline() -> None:
    assert written("jsonpath={.pod}", identity(7), identity(8)) == "cart-7d9f\n" * 2
    assert written(r'jsonpath={.pod}{"\n"}', identity(7)) == "cart-7d9f\n"


@pytest.mark.parametrize("format_", ["tabel", "", "json=x", "jsonpath", "jsonpath={.x}", "yaml\x1b"])
def test_an_unknown_format_is_a_usage_error(format_: str) -> None:
    with pytest.raises(UsageError):
        output.check_format(format_)


@given(st.sampled_from(["table", "wide", "name", "selectors", "yaml"]), st.text(max_size=20))
def test_no_text_of_a_process_gets_a_control_character_into_a_human_view(format_: str, text: str) -> None:
    workload = replace(CART, namespace=text, pod=text, container=text, image=text, reason_text=text, selectors=(text,))
    for line in written(format_, identity(7, workload, text)).split("\n"):
        assert line.isprintable()
    for line in told("wide", event("exec", 7, workload, text)).split("\n"):
        assert line.isprintable()


def test_the_lookup_table_lines_up_and_says_the_reason() -> None:
    head, first, second = written("table", identity(7), identity(123456, WAITING)).splitlines()
    assert head.split() == ["PID", "STATE", "NAMESPACE", "POD", "CONTAINER", "SOURCE", "AGE", "COMM", "REASON"]
    assert first.index("resolved") == second.index("pending") == head.index("STATE")
    assert first.split()[:8] == ["7", "resolved", "shop", "cart-7d9f", "app", "exec", "5.0s", "cart"]
    assert second.endswith("no pod lists this container yet")


def test_a_thread_is_shown_with_its_process() -> None:
    assert "9→7" in written("table", identity(7)._replace(asked=9))


def test_wide_cuts_ids_unless_told_otherwise() -> None:
    assert CONTAINER_ID[:12] in (text := written("wide", identity(7)))
    assert CONTAINER_ID not in text
    assert CONTAINER_ID in written("wide", identity(7), style=Style(trunc=False))
    assert CONTAINER_ID in told("wide", event("exec", 7), style=Style(trunc=False))
    assert "k8s:ns:shop,k8s:sa:cart" in text


def test_the_header_comes_once_and_can_be_left_out() -> None:
    assert "STATE" not in written("table", identity(7), style=Style(headers=False))
    stream = io.StringIO()
    printer = output.printer("table", Out(stream), Style())
    printer.batch([identity(7)], clock.read())
    printer.batch([identity(8)], clock.read())
    assert stream.getvalue().count("STATE") == 1


def test_events_have_the_columns_of_the_watch() -> None:
    head, row = told("table", event("exec", 7)).splitlines()
    assert head.split() == ["TIME", "EVENT", "NAMESPACE", "POD", "CONTAINER", "PID", "PPID", "COMM"]
    assert row.split()[1:] == ["exec", "shop", "cart-7d9f", "app", "7", "4300", "cart"]


def test_wide_events_add_their_columns() -> None:
    head, row = told("wide", event("exec", 7)).splitlines()
    assert head.split()[8:] == ["SERVICE-ACCOUNT", "CONTAINER-ID", "CGROUP-ID", "PARITY", "STATE", "AGE", "SELECTORS"]
    assert row.split()[8:11] == ["cart", CONTAINER_ID[:12], "4711"]


def test_times_are_local_with_milliseconds_or_rfc3339() -> None:
    at = Event("synced", 1_234_000_000)
    stream = io.StringIO()
    for style in (Style(headers=False, timestamps=True), Style(headers=False)):
        events.printer("table", Out(stream), style).batch([at], Clock(2_000_000_000, 1_000_000_000.0))
    first, second = stream.getvalue().splitlines()
    assert first.split() == ["2001-09-09T01:46:41.234Z", "synced"]
    assert second.split()[0].endswith(":41.234") or second.split()[0].endswith(":41.233")


@pytest.mark.parametrize(
    ("extra", "shown"),
    [({"exit_code": 0, "signal": None}, "exit"), ({"exit_code": 3}, "exit(3)"), ({"signal": 9}, "exit(SIGKILL)"),
     ({"signal": "SIGTERM"}, "exit(SIGTERM)"), ({"signal": 200}, "exit(200)")],
)  # fmt: skip
def test_an_exit_says_how(extra: dict[str, object], shown: str) -> None:
    assert told("table", event("exit", 7, **extra)).splitlines()[1].split()[1] == shown


def test_lost_records_are_told_in_the_table_and_in_json() -> None:
    assert told("table", event("lost", count=12)).splitlines()[1].split()[1:] == ["lost", "12", "records"]
    assert json.loads(told("json", event("lost", count=12)))["count"] == 12
    assert list(json.loads(told("json", event("synced")))) == ["time", "event"]


def test_colour_changes_no_column() -> None:
    plain = told("table", event("exec", 7), event("exit", 8, WAITING))
    painted = told("table", event("exec", 7), event("exit", 8, WAITING), style=Style(color=True))
    assert "\x1b[" in painted
    codes = {value for name, value in vars(color).items() if name.isupper() and isinstance(value, str)}
    for code in codes | {color.BOLD + color.RED}:
        painted = painted.replace(code, "")
    assert [line.split()[1:] for line in painted.splitlines()] == [line.split()[1:] for line in plain.splitlines()]
    assert [len(line) for line in painted.splitlines()] == [len(line) for line in plain.splitlines()]


@given(st.lists(st.text(max_size=30), min_size=3, max_size=3), st.integers(1, 60))
def test_a_row_is_never_wider_than_the_terminal(texts: list[str], limit: int) -> None:
    table = Table([Column("A", 3, 10), Column("B", 3, 10), Column("C")], limit=limit)
    assert width(table.row([Cell(text) for text in texts])[:-1]) <= limit


def test_a_column_grows_to_its_bound_and_a_longer_cell_moves_only_its_own_row() -> None:
    table = Table([Column("A", 1, 5), Column("B")])
    assert table.row([Cell("abc"), Cell("x")]) == "abc  x\n"
    assert table.row([Cell("abcdefgh"), Cell("x")]) == "abcdefgh  x\n"
    assert table.row([Cell("a"), Cell("x")]) == "a      x\n"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(None, "-"), (0, "0ms"), (999, "999ms"), (1000, "1.0s"), (59_999, "59.9s"), (60_000, "1m"), (61_500, "1m1s"),
     (3_600_000, "1h"), (3_660_000, "1h1m"), (86_400_000 * 3 + 3_600_000, "3d1h")],
)  # fmt: skip
def test_an_age_has_two_units_at_most(milliseconds: float | None, text: str) -> None:
    assert age(milliseconds) == text


@pytest.mark.parametrize(
    ("choice", "environ", "is_wanted"),
    [
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {"FORCE_COLOR": "1"}, False),
        ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ("auto", {"FORCE_COLOR": "1"}, True),
        ("auto", {"NO_COLOR": "", "FORCE_COLOR": "0"}, False),
        ("auto", {}, False),
    ],
)
def test_the_flag_beats_no_color_beats_force_color_beats_the_terminal(
    choice: str, environ: dict[str, str], is_wanted: bool
) -> None:
    assert color.is_wanted(choice, environ, io.StringIO()) is is_wanted


def test_a_full_disk_is_an_error_that_says_so() -> None:
    with open("/dev/full", "w") as full, pytest.raises(TracerError, match="cannot be written"):
        Out(full).write("x")
