"""Errors, exit codes, configuration and the cost of imports, for every command."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fakes import FakeTracer, identity
from hypothesis import given
from hypothesis import strategies as st

from tracer.cli.app import App
from tracer.cli.group import COMMANDS
from tracer.cli.main import run
from tracer.cli.params import Duration

HEAVY = {"requests", "psutil", "asyncio", "rich", "grpc", "prometheus_client", "bcc"}


def app(environ: dict[str, str] | None = None, tracer: FakeTracer | None = None) -> App:
    return App(tracer=(tracer or FakeTracer({7: identity(7)})).factory, environ=environ or {})


def error_of(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    error, hint = captured.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("", "missing command", "see podtracer --help"),
        ("wtch", "no such command (wtch)", "did you mean podtracer watch?"),
        ("xyzzy", "no such command (xyzzy)", "see podtracer --help"),
        ("--hlep", "no such option (--hlep)", "did you mean --help?"),
        ("watch --namespac x", "no such option (--namespac)", "did you mean --namespace?"),
        ("watch --xyzzy", "no such option (--xyzzy)", "see podtracer watch --help"),
        ("watch extra", "got unexpected extra argument (extra)", "see podtracer watch --help"),
        ("watch --count 0", "'0' is no whole number from 1 to 1000000000 (--count)", "see podtracer watch --help"),
        ("watch --duration -1s", "'-1s' is negative (--duration)", "see podtracer watch --help"),
        ("watch --duration", "the option requires an argument (--duration)", "see podtracer watch --help"),
        ("watch -o xml", "'xml' is not one of table, wide, json (--output)", "see podtracer watch --help"),
        ("watch -p 0", "'0' is no process ID (--pid)", "see podtracer watch --help"),
        ("watch -n ,", "a name is empty (--namespace)", "see podtracer watch --help"),
        ("lookup", "missing argument (PID… | -)", "see podtracer lookup --help"),
        ("lookup 7 --mode lax", "'lax' is not one of strict, parity (--mode)", "see podtracer lookup --help"),
        ("lookup 7 --refresh-interval 0", "0s is out of range (refresh-interval)",
         "say 0.1s or more, ten years at most"),
        ("lookup 7 --kubelet-secure-port 1 --kubelet-read-only-port 2",
         "two ports of the kubelet were given (kubelet-read-only-port, kubelet-secure-port)", "give one of them"),
        ("lookup 7 --certificate-path c", "a client certificate without its key (certificate-path)",
         "add --private-key-path"),
        ("lookup 7 --private-key-path k", "a key without its client certificate (private-key-path)",
         "add --certificate-path"),
        ("lookup 7 --reload-interval 0", "0s is out of range (reload-interval)", "say 0.1s or more, ten years at most"),
        ("lookup 7 --color pink", "'pink' is not one of auto, always, never (--color)", "see podtracer lookup --help"),
    ],
)  # fmt: skip
def test_a_usage_error_is_one_error_and_one_hint_line(
    capsys: pytest.CaptureFixture[str], line: str, what: str, hint: str
) -> None:
    assert run(line.split(), app()) == 2
    assert error_of(capsys) == (what, hint)


@given(st.lists(st.text(), max_size=3))
def test_whatever_is_typed_no_traceback_is_shown_and_the_exit_code_is_known(words: list[str]) -> None:
    assert run(words, app()) in (0, 1, 2, 75)


def test_an_internal_error_is_70_and_hides_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_args: object, **_more: object) -> FakeTracer:
        raise ZeroDivisionError("a\nb")

    assert run(["lookup", "7", "--standalone"], App(tracer=broken, environ={})) == 70
    assert error_of(capsys) == (r"internal error: a\x0ab (ZeroDivisionError)", "--debug shows the traceback")
    assert run(["--debug", "lookup", "7", "--standalone"], App(tracer=broken, environ={})) == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_command_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_args: object, **_more: object) -> FakeTracer:
        raise KeyboardInterrupt

    assert run(["lookup", "7", "--standalone"], App(tracer=interrupted, environ={})) == 130


@pytest.mark.parametrize("args", [["--standalone", "lookup", "7"], ["lookup", "7", "--standalone"]])
def test_global_flags_stand_before_or_after_the_command(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    tracer = FakeTracer({7: identity(7)})
    assert run([*args, "--procfs", "/p"], app(tracer=tracer)) == 0
    assert run(["--procfs", "/p", *args], app(tracer=tracer)) == 0
    assert tracer.settings is not None
    assert tracer.settings.procfs == "/p"
    assert capsys.readouterr().err == ""


def test_without_a_daemon_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lookup", "7"], app()) == 0
    assert capsys.readouterr().err == ("podtracer: no daemon at /run/podtracer/podtracer.sock, working standalone\n")


@pytest.mark.parametrize(("args", "environ"), [(["--socket", "/x.sock"], {}), ([], {"PODTRACER_SOCKET": "/x.sock"})])
def test_a_socket_asked_for_by_name_must_be_there(
    capsys: pytest.CaptureFixture[str], args: list[str], environ: dict[str, str]
) -> None:
    assert run(["lookup", "7", *args], app(environ)) == 69
    assert error_of(capsys)[0] == "no daemon listens (/x.sock)"


def test_a_warning_is_one_quoted_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lookup", "7", "--standalone"], app(tracer=FakeTracer({7: identity(7)}, warning="a\x1bb\nc"))) == 0
    assert capsys.readouterr().err == "warning: a\\x1bb\\x0ac\n"


def shown(capsys: pytest.CaptureFixture[str], args: list[str], environ: dict[str, str]) -> dict[str, dict[str, object]]:
    assert run(["config", "-o", "json", *args], app(environ)) == 0
    parsed: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)
    return parsed


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("refresh-interval: 3\nmax-poll-attempts: 4\nkubelet: none\nnamespace: [a, b]\nstandalone: true\n")
    environ = {"PODTRACER_CONFIG": str(file), "PODTRACER_REFRESH_INTERVAL": "2m", "PODTRACER_MAX_POLL_ATTEMPTS": "5"}
    values = shown(capsys, ["--refresh-interval", "500ms"], environ)
    assert values["refresh-interval"] == {"value": 0.5, "from": "flag"}
    assert values["max-poll-attempts"] == {"value": 5, "from": "environment PODTRACER_MAX_POLL_ATTEMPTS"}
    assert values["kubelet"] == {"value": "none", "from": f"file {file}"}
    assert values["namespace"]["value"] == ["a", "b"]
    assert values["standalone"]["value"] is True
    assert values["pods-max-stale"] == {"value": 600.0, "from": "default"}


def test_the_node_name_comes_from_its_usual_variables_last(capsys: pytest.CaptureFixture[str]) -> None:
    usual = {"NODE_NAME": "b"}
    assert shown(capsys, [], usual)["node-name"] == {"value": "b", "from": "environment NODE_NAME"}
    usual["MY_NODE_NAME"] = "a"
    assert shown(capsys, [], usual)["node-name"]["value"] == "a"
    assert shown(capsys, [], usual | {"PODTRACER_NODE_NAME": "c"})["node-name"]["value"] == "c"
    assert shown(capsys, ["--node-name", "d"], usual)["node-name"] == {"value": "d", "from": "flag"}


def test_the_node_name_comes_from_the_variable_that_is_named_before_the_usual_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    environ = {"MY_NODE_NAME": "a", "NODE_NAME": "b", "NODE": "c"}
    named = ["--node-name-env", "NODE"]
    assert shown(capsys, named, environ)["node-name"] == {"value": "c", "from": "environment NODE"}
    assert shown(capsys, [*named, "--node-name", "d"], environ)["node-name"]["value"] == "d"
    assert shown(capsys, named, environ | {"PODTRACER_NODE_NAME": "e"})["node-name"]["value"] == "e"
    assert shown(capsys, ["--node-name-env", "UNSET"], environ)["node-name"]["value"] == "a"


def test_the_config_table_names_every_value_and_its_origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "-n", "a,b"], app({"PODTRACER_MODE": "strict"})) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["namespace", "a,b", "flag"] in lines
    assert ["mode", "strict", "environment PODTRACER_MODE"] in lines
    assert ["refresh-interval", "10s", "default"] in lines


@pytest.mark.parametrize(
    ("body", "what", "hint"),
    [
        (
            "refresh_interval: 3",
            "unknown key 'refresh_interval' in the configuration",
            "did you mean refresh-interval?",
        ),
        ("xyzzy: 3", "unknown key 'xyzzy' in the configuration", "podtracer config shows all keys"),
        ("1: 3", "unknown key '1' in the configuration", "podtracer config shows all keys"),
        ("- a", "the configuration is no mapping of keys to values", "write one 'key: value' a line"),
        ("a: [", "the configuration is no YAML", "write one 'key: value' a line"),
        ("a: \x00", "the configuration is no YAML", "write one 'key: value' a line"),
        ("[" * 9999, "the configuration is no YAML", "write one 'key: value' a line"),
        ("a: !!python/object:os.system x", "the configuration is no YAML", "write one 'key: value' a line"),
        ("max-poll-attempts: 1.5", "1.5 is no whole number from 1 to 1000000", "it is what --max-poll-attempts takes"),
        ("max-poll-attempts: true", "True is no whole number", "it is what --max-poll-attempts takes"),
        (
            "refresh-interval: 3\nmode: strict\nrefresh-interval: 4",
            "the key refresh-interval stands in the configuration twice, at line 3, column 1",
            "write one 'key: value' a line",
        ),
        ("refresh-interval: [1]", "[1] is no duration", "it is what --refresh-interval takes"),
        ("refresh-interval: true", "True is no duration", "it is what --refresh-interval takes"),
        ("refresh-interval: .inf", "inf is no duration", "it is what --refresh-interval takes"),
        ("kubelet: 3", "3 is not one of auto, none", "it is what --kubelet takes"),
        ("standalone: 2", "2 is neither true nor false", "it is what --standalone takes"),
        ("node-name: {}", "{} is no text", "it is what --node-name takes"),
        ("namespace: {}", "{} is no list of names", "it is what --namespace takes"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_error_that_names_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, body: str, what: str, hint: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(body)
    assert run(["lookup", "7", "--config", str(file)], app()) == 2
    error, next_step = error_of(capsys)
    assert error.startswith(what)
    assert str(file) in error
    assert next_step.startswith(hint)


def test_a_named_configuration_must_be_there_and_readable(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["lookup", "7", "--config", str(tmp_path / "none")], app()) == 2
    assert error_of(capsys)[0] == f"no such configuration file ({tmp_path}/none)"
    assert run(["--config", str(tmp_path), "lookup", "7"], app()) == 2
    assert error_of(capsys)[0].startswith("the configuration cannot be read")


def test_a_configuration_may_come_through_a_pipe_and_nobody_waits_for_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What a shell hands over as a pipe is read to its end; a named pipe on which nobody writes is an error at once."""
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb") as pipe:
        pipe.write(b"refresh-interval: 3s\n" + b"#" * 5000)
        pipe.close()
        assert run(["config", "-o", "json", "--config", f"/dev/fd/{reader}"], app()) == 0
    assert json.loads(capsys.readouterr().out)["refresh-interval"]["value"] == 3
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert run(["config", "--config", str(fifo)], app()) == 2
    assert error_of(capsys)[0] == f"the configuration cannot be read: nobody writes to it ({fifo})"


def test_files_that_cannot_be_opened_for_want_of_descriptors_are_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    """Running out of descriptors says so and how to have more, with the exit code for what the machine lacks."""

    class Short(FakeTracer):
        def __enter__(self) -> FakeTracer:
            raise OSError(errno.EMFILE, "Too many open files")

    assert run(["lookup", "7", "--standalone"], app(tracer=Short({}))) == 69
    error, hint = error_of(capsys)
    assert error == "no more files can be opened"
    assert "ulimit -n" in hint


def test_an_environment_variable_that_cannot_be_used_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lookup", "7"], app({"PODTRACER_REFRESH_INTERVAL": "soon"})) == 2
    assert error_of(capsys)[0].endswith("(PODTRACER_REFRESH_INTERVAL)")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2), ("1m", 60), ("1h", 3600), ("3", 3), ("0", 0), ("1.5", 1.5), (".5s", 0.5)],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == pytest.approx(seconds)


def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert run([name, "-h"], app()) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"Usage: podtracer {name}")
        assert f"podtracer {name}" in out.partition("Examples:")[2]
    assert run(["--help"], app()) == 0
    assert all(f"  {name} " in capsys_line for name, capsys_line in zip(COMMANDS, _commands(capsys), strict=True))


def _commands(capsys: pytest.CaptureFixture[str]) -> list[str]:
    listed = capsys.readouterr().out.partition("Commands:\n")[2].partition("\n\n")[0]
    return [line for line in listed.splitlines() if not line.startswith("    ")]


@pytest.mark.parametrize("args", [["version"], ["--version"]])
def test_the_version_is_printed(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert run(args, app()) == 0
    assert capsys.readouterr().out == "podtracer 0.1.0\n"


@pytest.mark.parametrize(
    "code",
    [
        "from tracer.cli.main import run; run(['lookup', '--help'])",
        "from tracer.cli.main import run; import tracer.cli.lookup",
        "from tracer.cli.main import run; run(['lookup', '7', '-o', 'json', '--socket', '/none'])",
        "from tracer.cli.main import run; import tracer.cli.watch, tracer.cli.events",
    ],
)
def test_the_command_line_loads_nothing_heavy(code: str) -> None:
    report = f"{code}; import sys; sys.stderr.write(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & (HEAVY | {"yaml"})


def test_a_locale_that_is_not_utf8_is_no_reason_to_fail() -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "tracer.cli.main", "lookup", "ä"]
    done = subprocess.run(command, capture_output=True, env=environ, check=False)
    assert done.returncode == 2
    assert rb"\xe4" in done.stderr
