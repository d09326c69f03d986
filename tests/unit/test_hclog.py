"""A plugin's log is what go-plugin's host reads: one JSON object a line, of strings alone."""

from __future__ import annotations

import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor

from tests.waiting import until
from tracer.serve.hclog import Handler, line


def test_a_line_is_of_strings_alone() -> None:
    data = line(
        "WARNING", 'say "no"\n', 1767323045.678901, {"count": 3, "none": None, "@level": "x", "text": "\ud800é"}
    )
    assert data.isascii()
    assert data.count(b"\n") == 1
    assert json.loads(data) == {
        "@level": "warn",
        "@message": 'say "no"\n',
        "@timestamp": "2026-01-02T03:04:05.678901Z",
        "count": "3",
        "none": "None",
        "text": "\ud800é",
    }


def test_a_value_has_an_end_so_that_a_line_is_read_whole() -> None:
    assert len(line("INFO", "x" * 100_000, 0.0, {})) < 65536


def record(message: str, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("podtracer", logging.INFO, "", 0, message, (), None)
    made.__dict__.update(more)
    return made


def test_records_are_written_with_their_fields() -> None:
    reader, writer = os.pipe()
    handler = Handler(writer)
    handler.handle(record("configured", fields={"mode": "strict"}))
    handler.finish()
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = json.loads(pipe.read())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", said.pop("@timestamp"))
    assert said == {"@level": "info", "@message": "configured", "mode": "strict"}


def test_a_host_that_does_not_read_is_not_waited_for_and_told_what_it_missed() -> None:
    reader, writer = os.pipe()
    handler = Handler(writer)
    for _ in range(3000):
        handler.handle(record("x" * 1000))
    with open(reader, "rb") as pipe, ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.readlines)
        until(handler._lines.empty, 30, "the log to be written")
        handler.handle(record("again"))
        handler.finish(30)
        os.close(writer)
        lines = read.result()
    assert 1000 <= len(lines) < 3000
    told = [json.loads(line) for line in lines]
    assert told[-1]["@message"] == "again"
    assert sum(int(said.get("dropped", 0)) for said in told) == 3001 - len(told)
