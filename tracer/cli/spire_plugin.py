"""``podtracer spire-plugin``: attests workloads for SPIRE's agent, which starts it."""

from __future__ import annotations

import os
import signal
import sys

import click

from tracer.cli import options
from tracer.cli.app import App, pass_app

EXAMPLES = """\b
In the agent's configuration, in place of the built-in attestor and with its keys:
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
Of its own it has these:
  socket_path      = "/run/podtracer/podtracer.sock"  the daemon's socket
  fallback         = true      while no daemon answers, ask the kubelet as SPIRE does
  mode             = "strict"  or "parity": SPIRE's rules to find the container
  pod_images_wait  = "1s"      for images of containers that are not made yet; "0" never
\b
The agent has to be root, or of the daemon's group, or a pod that the daemon allows.
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
    # A terminal sends it to the whole group: it is meant for the agent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(app.verbose)
    # Threads that hang in a request, and what gRPC still does in the background, are nobody's business any more.
    sys.stdout.flush()
    os._exit(0)


def _serve(verbose: int) -> None:
    import asyncio
    import logging

    from tracer.serve.hclog import Handler

    handler = Handler()
    log = logging.getLogger()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        asyncio.run(_run())
    finally:
        handler.finish()


async def _run() -> None:
    # gRPC's core writes to stderr whatever it likes, unless this is set when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tracer.attestor import Attestor
    from tracer.serve import go_plugin, spire_plugin

    parent = os.getppid()
    attestor = Attestor(parent)
    try:
        await go_plugin.serve(spire_plugin.handlers(attestor), parent=parent)
    finally:
        await attestor.close()
