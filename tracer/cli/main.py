"""The command line's entry: runs a command, and says every error in one way.

An error is one ``error:`` and one ``hint:`` line on stderr; the exit codes are those of ``tracer.errors``. A
reader that closes its pipe is no error.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from tracer.cli import color
from tracer.cli.app import App
from tracer.cli.group import cli
from tracer.cli.output import ReaderGone, detach
from tracer.cli.quote import quote
from tracer.errors import MissingError, TracerError

INTERNAL = 70
INTERRUPTED = 130


def main(app: App | None = None) -> int:
    """The exit code of the command in ``sys.argv``; what was printed is flushed, or can be no longer."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the descriptor was closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 is no reason to die
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="backslashreplace")
    return run(sys.argv[1:], app)


def run(args: Sequence[str], app: App | None = None) -> int:
    """The exit code of the command in ``args``, errors told on stderr."""
    app = app or App()
    try:
        code = _invoke(list(args), app)
        sys.stdout.flush()
    except (ReaderGone, BrokenPipeError):
        detach(sys.stdout)
        code = 0
    except OSError as error:
        if app.debug:
            _traceback()
        detach(sys.stdout)
        _tell(app, f"the output cannot be written: {error.strerror}", "stdout", "make room, or write elsewhere")
        code = INTERNAL
    return code


def _invoke(args: list[str], app: App) -> int:
    try:
        # Not cli.main(), which ends the program by itself when a pipe breaks.
        with cli.make_context("podtracer", args, obj=app) as ctx:
            code = cli.invoke(ctx)
        return code if isinstance(code, int) else 0
    except (ReaderGone, BrokenPipeError):
        raise
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 0 if app.command in ("watch", "demo") else INTERRUPTED
    except TracerError as error:
        if app.debug:
            _traceback()
        _tell(app, error.what, error.obj, error.hint or _help(None, app))
        return error.exit_code
    except click.ClickException as error:
        if app.debug:
            _traceback()
        _tell(app, *_explain(error, app))
        return 2
    except Exception as error:
        if app.debug:
            _traceback()
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            _tell(app, "no more files can be opened", None, "raise the limit: ulimit -n 1024")
            return MissingError.exit_code
        what = f"internal error: {error}" if str(error) else "internal error"
        hint = "this is a bug; please report it with the traceback" if app.debug else "--debug shows the traceback"
        _tell(app, what, type(error).__name__, hint)
        return INTERNAL


def _traceback() -> None:
    import traceback

    try:
        # The message of an exception may hold anything; the lines of its traceback stay lines.
        lines = traceback.format_exc().splitlines()
        sys.stderr.write("".join(f"{quote(line)}\n" for line in lines))
    except OSError:
        pass


def _help(ctx: click.Context | None, app: App) -> str:
    command = ctx.command_path if ctx else " ".join(filter(None, ("podtracer", app.command)))
    return f"see {command} --help"


def _explain(error: click.ClickException, app: App) -> tuple[str, str | None, str]:
    # click's sentences, as what, object and next step.
    ctx: click.Context | None = getattr(error, "ctx", None)
    hint = _help(ctx, app)
    if isinstance(error, click.NoSuchOption):
        known = [name for param in ctx.command.get_params(ctx) for name in param.opts] if ctx else []
        import difflib  # for a wrong word alone

        close = difflib.get_close_matches(error.option_name, known, 1)
        return "no such option", error.option_name, f"did you mean {close[0]}?" if close else hint
    if isinstance(error, click.MissingParameter):
        what = "missing argument" if isinstance(error.param, click.Argument) else "missing option"
        return what, _label(error.param, ctx), hint
    if isinstance(error, click.BadParameter):
        return _lower(error.message), _label(error.param, ctx), hint
    if isinstance(error, click.BadOptionUsage):
        what = re.sub(r"^Option '[^']*' ", "the option ", error.message)
        return _lower(what), error.option_name, hint
    return _lower(error.message), None, hint


def _label(param: click.Parameter | None, ctx: click.Context | None) -> str | None:
    if param is None:
        return None
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return param.make_metavar(ctx) if ctx else param.name


def _lower(sentence: str) -> str:
    sentence = sentence.rstrip(".")
    return sentence[:1].lower() + sentence[1:]


def _tell(app: App, what: str, obj: str | None, hint: str) -> None:
    stream = sys.stderr
    choice: Any = app.flags.get("color", "auto")  # a configuration that is broken has no say
    is_colored = color.is_wanted(choice, app.environ, stream)
    text = ""
    for word, code, line in (
        ("error:", color.BOLD + color.RED, f"{what} ({obj})" if obj else what),
        ("hint:", color.BOLD + color.CYAN, hint),
    ):
        text += f"{color.paint(word, code if is_colored else None)} {quote(line)}\n"
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        pass  # nobody left to tell


if __name__ == "__main__":
    sys.exit(main())
