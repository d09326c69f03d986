"""``podtracer demo``: a small node made up on this machine, and the live watch over it."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import Any

import click

from tracer.cli import configuration, options, watch
from tracer.cli.app import App, Tracer, pass_app, say, warn
from tracer.demo.node import DemoNode

_ITS_OWN = (
    *("kubelet", "kubelet-read-only-port", "kubelet-secure-port", "kubelet-ca-path", "skip-kubelet-verification"),
    *("token-path", "certificate-path", "private-key-path", "use-anonymous-authentication", "reload-interval"),
    *("node-name", "node-name-env", "cgroup-prefix", "enable-namespace-labels"),
)

EXAMPLES = """\b
Examples:
  podtracer demo                           everything, live
  podtracer demo -n shop -l app=cart       one application
  podtracer demo -o json --duration 10s    ten seconds, for a program
"""


@click.command("demo", cls=options.Command, epilog=EXAMPLES)
@watch.stream_options
@options.configurable(*(option for option in configuration.POD_DATA if option.key not in _ITS_OWN))
@options.global_options
@pass_app
def command(app: App, /, **given: Any) -> int:
    """Watch a node made up on this machine, which needs no Kubernetes.

    Five pods of real processes in real cgroups start, fork, crash and end, and a kubelet on loopback lists them.
    Options and output are those of watch. All of it is removed at the end.
    """

    def prepare(opened: ExitStack) -> tuple[Tracer, Any]:
        _end_with_terminal(opened)
        node = opened.enter_context(DemoNode(configuration.settings(app.values), warn=warn))
        say(f"podtracer: a demo node; another terminal may ask its kubelet: --kubelet-read-only-port {node.port}")
        return app.tracer(node.settings, warn=warn), node.begin

    return watch.run(app, given, prepare)


def _end_with_terminal(opened: ExitStack) -> None:
    """A terminal that is closed ends the demo the way SIGTERM does, unless that was switched off (nohup)."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        opened.callback(signal.signal, signal.SIGHUP, signal.SIG_DFL)
