"""``podtracer daemon``: keeps the table and serves it."""

from __future__ import annotations

import os
import signal

import click

from tracer import logs, notify
from tracer.cli import configuration, options
from tracer.cli.app import App, pass_app
from tracer.daemon import Daemon, Serving
from tracer.kernel.loader import forced
from tracer.serve.http import address
from tracer.settings import Settings

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

EXAMPLES = """\b
Examples:
  podtracer daemon --kubelet-secure-port 10250 --token-path TOKEN --kubelet-ca-path CA
  podtracer daemon --socket-allow k8s:ns:spire,k8s:sa:spire-agent
  podtracer daemon --http-address none --config /etc/podtracer/config.yaml
\b
SIGHUP reads the configuration again. watch, lookup, ps and explain ask the daemon where it is.
"""


@click.command("daemon", cls=options.Command, epilog=EXAMPLES)
@options.daemon_options
@options.pod_data_options
@options.global_options
@pass_app
def command(app: App) -> int:
    """Keep the table of all processes, and serve it over a socket, with health and metrics over HTTP.

    Any process may ask about itself. Root of the host, the group of --socket-group, pods that --socket-allow names, and
    the daemon's own user in its own container may ask about everyone. Logs go to stderr. Ends on SIGTERM and Ctrl-C.
    """
    settings, serving = _settings(app)
    logs.to_stderr(verbose=app.verbose)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # taken where we wait for them, by no other thread
    daemon = Daemon(settings, serving, lambda: _settings(_again(app)))
    daemon.start()
    try:
        notify.status("waiting for the first pod list")
        while signal.sigwait(_SIGNALS) == signal.SIGHUP:
            daemon.reload()
    finally:
        daemon.close()
    return 0


def _again(app: App) -> App:
    """The same command line, with the environment and the file as they are now."""
    return App(tracer=app.tracer, environ=app.environ, flags=app.flags, config=app.config, verbose=app.verbose)


def _settings(app: App) -> tuple[Settings, Serving]:
    where = app.value("http-address")
    serving = Serving(
        socket=os.path.abspath(app.value("socket")),
        http=None if where == "none" else address(where),
        group=app.value("socket-group"),
        allowed=[frozenset(each.split(",")) for each in app.value("socket-allow")],
        by_number="peercred" in forced(app.environ),
    )
    return configuration.settings(app.values), serving
