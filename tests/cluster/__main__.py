"""``scripts/cluster``: the test cluster for a developer's hands."""

from __future__ import annotations

import os
import sys

from tests.cluster.build import BuildError, build
from tests.cluster.cluster import Cluster, ClusterError


def _status(cluster: Cluster) -> int:
    for name, process in cluster.daemons.recorded().items():
        print(f"{name:25}{'runs' if process.alive() else 'has ended'} (PID {process.pid})")
    if not cluster.running():
        print(f"not up, or not all of it ({cluster.folder})")
        return 1
    print(f"node {cluster.node} {'is Ready' if cluster.ready() else 'is not Ready'}; KUBECONFIG={cluster.kubeconfig}")
    return 0


def main(argv: list[str]) -> int:
    """``up``, ``down``, ``status``, ``kubectl …``, ``build``; returns the exit code."""
    command, args = (argv[0], argv[1:]) if argv else ("", [])
    try:
        cluster = Cluster()
        if command == "kubectl":
            if not cluster.kubeconfig.exists():
                raise ClusterError(f"the cluster is not up ({cluster.folder}): run scripts/cluster up")
            kbox = cluster.folder / "kbox"
            os.execve(kbox, ["kubectl", "kubectl", *args], cluster.kubectl_environment())
        elif args or command not in ("up", "down", "status", "build"):
            print("usage: scripts/cluster up|down|status|kubectl …|build", file=sys.stderr)
            return 2
        elif command == "status":
            return _status(cluster)
        elif command == "build":
            print(build())
        elif os.geteuid() != 0:
            raise ClusterError("root is needed")
        else:
            {"up": cluster.up, "down": cluster.down}[command]()
    except (ClusterError, BuildError, TimeoutError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
