"""``podtracer spire-plugin``: attests workloads for SPIRE's agent, which starts it."""

from __future__ import annotations

import os
import signal
import sys

import click

from tracer.cli import options
from tracer.cli.app import App, pass_app
from tracer.errors import UsageError

EXAMPLES = """\b
Examples: the agent starts podtracer spire-plugin where its agent.conf has, with the keys of the built-in attestor,
  plugins {
    WorkloadAttestor "k8s" {
      plugin_cmd = "/usr/bin/podtracer"
      plugin_args = ["spire-plugin"]
      plugin_data {
        kubelet_secure_port = 10250
        node_name_env = "MY_NODE_NAME"
      }
    }
  }
\b
Keys of its own, with what they are by default:
  socket_path     = "/run/podtracer/podtracer.sock"  the daemon's socket
  fallback        = true      while no daemon answers, ask the kubelet as SPIRE does
  mode            = "strict"  "parity" finds the container by SPIRE's rules
  pod_images_wait = "1s"      wait for images of containers that are not made yet; "0" never
  ephemeral_containers = false  attest ephemeral containers where the daemon does, which SPIRE never does
\b
The daemon answers an agent that is root of the host, or of its --socket-group, or a pod of its --socket-allow.
"""


@click.command("spire-plugin", cls=options.Command, epilog=EXAMPLES)
@options.global_options
@pass_app
def command(app: App, /) -> int:
    """Attest workloads for SPIRE's agent, which starts this as its WorkloadAttestor.

    The daemon is asked; while there is none, the kubelet, as SPIRE's own attestor does.
    """
    from tracer.serve import go_plugin

    go_plugin.check_host(app.environ)
    if app.value("standalone"):
        hint = "leave it out: while there is no daemon the plugin does without, unless its fallback is false"
        raise UsageError("the plugin asks the daemon", "--standalone", hint)
    # A terminal sends it to the whole group: it is meant for the agent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(app)
    # Threads that hang in a request, and what gRPC still does in the background, are nobody's business any more.
    sys.stdout.flush()
    os._exit(0)


def _serve(app: App) -> None:
    import asyncio
    import logging

    from tracer.serve.hclog import Handler

    handler = Handler()
    log = logging.getLogger()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if app.verbose else logging.INFO)
    try:
        asyncio.run(_run(app))
    finally:
        handler.finish()


async def _run(app: App) -> None:
    # gRPC's core writes to stderr whatever it likes, unless this is set when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # One thread takes a request in, not two: 40 µs less of 250. gRPC used to do it so, and ignores the names of
    # experiments that it knows no more.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    from tracer.attestor import Attestor
    from tracer.serve import go_plugin, spire_plugin

    parent = os.getppid()
    attestor = Attestor(parent, socket=app.value("socket"), procfs=app.value("procfs"))
    try:
        await go_plugin.serve(spire_plugin.handlers(attestor), parent=parent)
    finally:
        await attestor.close()
