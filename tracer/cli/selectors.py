"""``podtracer selectors``: the selectors of one container of a pod list, on any machine."""

from __future__ import annotations

import click

from tracer.cli import configuration, options
from tracer.cli.app import App, pass_app, warn
from tracer.cli.output import Out, to_json
from tracer.cli.params import OneOf, Text
from tracer.cli.quote import quote
from tracer.identity import offline
from tracer.identity.parity import Located, attest
from tracer.identity.pods import PodTable
from tracer.sources import files

EXAMPLES = """\b
Examples:
  podtracer selectors --pods-file pods.json --container 0123…
  podtracer selectors --pods-file pods.json --container 0123… --pod-uid 4567… -o json
  podtracer selectors --pods-file pods.json --container 0123… --mode parity
\b
The list is what the kubelet answers at /pods, or `kubectl get pods -A -o json` prints.
Exit code: 0 found, 1 not, 2 when the list cannot be read.
"""


@click.command("selectors", cls=options.Command, epilog=EXAMPLES)
@click.option("--pods-file", type=Text(), required=True, metavar="F", help="A pod list, as JSON.")
@click.option("--container", type=Text(), required=True, metavar="ID", help="The container's ID, in full.")
@click.option("--pod-uid", type=Text(), metavar="UID", help="The pod's UID, where the cgroup path names it.")
@click.option("-o", "--output", "format_", type=OneOf("text", "json"), default="text", help="text or json. [text]")
@options.configurable(
    configuration.OPTIONS["mode"],
    configuration.OPTIONS["disable-container-selectors"],
    configuration.OPTIONS["ephemeral-containers"],
)
@options.global_options
@pass_app
def command(app: App, /, pods_file: str, container: str, pod_uid: str | None, format_: str) -> int:
    """Print the selectors that SPIRE gives a process of one container, from a pod list.

    With --mode parity no selectors come with SPIRE's own error. Asks nobody, and needs no root.
    """
    pods = files.read_pods(pods_file)
    for sentence in pods.skipped:
        warn(f"{sentence} ({pods_file})")
    table = PodTable.build(pods.pods)
    alone = app.value("disable-container-selectors")
    if app.value("mode") == "parity":
        outcome = attest(Located(pod_uid, container), table, disable_container_selectors=alone)
        found, error = outcome.selectors, outcome.error
    else:
        found, error = offline.of_container(
            table,
            container,
            pod_uid,
            disable_container_selectors=alone,
            ephemeral_containers=app.value("ephemeral-containers"),
        )
    if format_ == "json":
        text = to_json({"selectors": list(found), "error": error})
    elif error is None:
        text = "".join(f"{quote(selector)}\n" for selector in found)
    else:
        text = f"no selectors: {quote(error)}\n"
    Out().write(text)
    return 1 if error is not None else 0
