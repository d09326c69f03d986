"""A real Kubernetes cluster of one node on this machine: etcd to kubelet, with containerd and runc.

Everything lies below one folder and listens on loopback only. What it changes outside (sysctls, folders of the
kubelet) is written down before, so that ``down`` can undo it, also after a crash and from another process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import machine
from tests.cluster import config, host
from tests.cluster.build import build
from tests.cluster.host import ClusterError
from tests.cluster.pki import Pki
from tests.containers import ContainerdDaemon
from tests.waiting import until


def default_folder() -> Path:
    """``$PODTRACER_CLUSTER_DIR``, else ``podtracer-cluster`` in the folder for temporary files."""
    temporary = Path(os.environ.get("TMPDIR") or "/tmp")
    return Path(os.environ.get("PODTRACER_CLUSTER_DIR") or temporary / "podtracer-cluster").absolute()


class Cluster:
    """The cluster in one folder, whether it runs or not; one at a time on a machine: the ports are fixed."""

    node = config.NODE

    def __init__(self, folder: Path | None = None, owner: machine.Process | None = None) -> None:
        """``owner`` is the process without which the cluster has no use: after its death ``up`` replaces it."""
        self.folder = (folder or default_folder()).resolve()
        self.owner = owner
        self.pki = Pki(self.folder / "pki")
        self.kubeconfig = self.folder / "pki/admin.kubeconfig"
        self.daemons = machine.Daemons(self.folder / "daemons")
        self.containerd = ContainerdDaemon(self.folder / "containerd", config.CONTAINERD, self.daemons)
        self.kubelet_root = self.folder / "kubelet"
        self.pods_api = self.kubelet_root / "pods-api/pods-api.sock"
        self.kubelet_configuration = self.folder / "kubelet.json"
        self.static_pods = self.folder / "static-pods"
        self._record = self.folder / "machine.json"
        self._failed = self.folder.with_name(f"{self.folder.name}.failed")

    # Starting and removing

    def up(self) -> None:
        """Start everything, and return when the node is Ready; what a crash left goes first.

        Raises ``ClusterError``, with nothing left behind but logs, whose folder the message names.
        """
        kbox = build()
        with self._locked():
            if self._record.exists():
                if self.running() and not self._orphaned():
                    raise ClusterError(f"the cluster is up already ({self.folder})")
                _say("removing what an earlier cluster left")
                self._remove()
            if any(self.folder.iterdir()):
                raise ClusterError(f"the folder holds something else ({self.folder})")
            host.check_ports()
            shutil.rmtree(self._failed, ignore_errors=True)
            try:
                self._start(kbox)
            except Exception as error:
                self._keep_logs()
                self._remove()
                if isinstance(error, ClusterError):
                    raise
                raise ClusterError(f"{error}; logs are kept in {self._failed}") from error
            except BaseException:  # Ctrl-C
                self._remove()
                raise

    def down(self) -> None:
        """Stop and remove everything, and put the machine back as it was. Nothing to do is fine."""
        if self._record.exists():
            with self._locked():
                self._remove()
        shutil.rmtree(self._failed, ignore_errors=True)

    def running(self) -> bool:
        """Whether it was started, and every daemon is alive."""
        names = {"containerd", *config.commands(self.folder, self.pki)}
        return names == {name for name, process in self.daemons.recorded().items() if process.alive()}

    def _orphaned(self) -> bool:
        """Whether it was started for a process that is dead by now."""
        owner = json.loads(self._record.read_text())["owner"]
        return owner is not None and not machine.Process(*owner).alive()

    def _start(self, kbox: Path) -> None:
        began = time.monotonic()
        _say(f"folder {self.folder}")
        owner = [self.owner.pid, self.owner.start_time] if self.owner else None
        unfinished = self._record.with_suffix(".new")
        unfinished.write_text(json.dumps({"owner": owner, **host.state()}))
        unfinished.rename(self._record)
        self.folder.joinpath("kbox").symlink_to(kbox)
        self.pki.make_ca()
        names = "subjectAltName=IP:127.0.0.1,IP:10.0.0.1,DNS:localhost,DNS:kubernetes.default.svc"
        self.pki.sign("apiserver", "/CN=kube-apiserver", names)
        self.pki.sign("admin", "/O=system:masters/CN=admin")
        self.pki.sign("node", f"/O=system:nodes/CN=system:node:{config.NODE}")
        self.pki.sign("kubelet-client", "/O=system:masters/CN=apiserver-kubelet")
        for name in ("admin", "node"):
            self.pki.kubeconfig(name, config.SERVER)

        _say("etcd, API server, containerd")
        self.start("etcd")
        self.start("kube-apiserver")
        self._start_containerd()
        self._until("kube-apiserver", lambda: self._get("/readyz") == "ok", "the API server to be ready")

        _say("controller manager, scheduler, kubelet")
        self.start("kube-controller-manager")
        self.start("kube-scheduler")
        self.static_pods.mkdir()
        configuration = config.kubelet(self.folder, self.pki, self.containerd.socket)
        self.kubelet_configuration.write_text(json.dumps(configuration))
        machine.make_cgroup(config.CGROUP)
        self.start("kubelet")
        self._until("kubelet", self.ready, "the node to be Ready")
        # The kubelet does not give itself a loopback address, and kubectl exec has to know where it listens.
        addresses = [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": config.NODE}]
        status = json.dumps({"status": {"addresses": addresses}})
        self.kubectl("patch", "node", config.NODE, "--subresource=status", "--type=merge", f"--patch={status}")
        # A pod is refused as long as its namespace has no service account.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._until("kube-controller-manager", lambda: self._get(account), "the first service account")
        _say(f"node {config.NODE} is Ready after {time.monotonic() - began:.1f} s; KUBECONFIG={self.kubeconfig}")

    def _start_containerd(self) -> None:
        configurations = self.containerd.folder / "cni"
        configurations.mkdir(parents=True)
        configurations.joinpath("10-bridge.conf").write_text(json.dumps(config.network(self.containerd.folder)))
        self.start("containerd")
        for image in (config.PAUSE, config.APP):
            self.containerd.add_image(image)

    def _remove(self) -> None:
        """Undo ``_start``, however far it came: every step may find its work done.

        Of the folder the record goes last, since without it nobody would know that the rest is ours to remove.
        """
        _say("stopping the daemons")
        self.daemons.stop("kubelet")  # first, or it would start again what we end
        self.daemons.stop(*self.daemons.recorded(), grace=0)  # the API server would wait for its clients to go
        _say("removing containers, mounts, network and cgroups")
        self.containerd.stop(config.CGROUP)
        machine.unmount_below(self.folder)
        host.remove_bridge()
        if self._record.exists():
            host.restore(json.loads(self._record.read_text()), self.folder)
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self._record:
                path.unlink()
        self._record.unlink(missing_ok=True)

    def _keep_logs(self) -> None:
        self._failed.mkdir(parents=True, exist_ok=True)
        for log in self.daemons.folder.glob("*.log"):
            shutil.copy(log, self._failed)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder, so that two commands do not start and remove at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise ClusterError(f"another command is starting or removing this cluster ({self.folder})") from None
        finally:
            os.close(folder)
            with contextlib.suppress(OSError):  # not empty: a cluster is there
                self.folder.rmdir()

    # Its daemons, one by one

    def start(self, name: str) -> None:
        """Start one daemon, and wait no longer than containerd takes to answer."""
        if name == "containerd":
            self.containerd.start()
            return
        self.daemons.start(name, [self.folder / "kbox", name, *config.commands(self.folder, self.pki)[name]])

    def stop(self, name: str) -> None:
        """Stop one daemon; what it started goes on."""
        self.daemons.stop(name)

    def _until(self, daemon: str, predicate: Any, what: str) -> None:
        """Wait for something that needs all daemons; fail at once when one has ended."""

        def check() -> Any:
            for name, process in self.daemons.recorded().items():
                if not process.alive():
                    raise ClusterError(
                        f"{name} has ended; the end of its log, which is kept in {self._failed}:\n"
                        + "\n".join(self.daemons.log(name).read_text(errors="replace").splitlines()[-10:])
                    )
            return predicate()

        until(check, 90, f"{what}; see {daemon}.log", interval=0.1)

    # Asking it

    def api(self, path: str) -> Any:
        """GET of a path at the API server, as JSON, as the administrator. Raises ``OSError``."""
        context = ssl.create_default_context(cafile=str(self.pki.ca))
        context.load_cert_chain(self.pki.certificate("admin"), self.pki.key("admin"))
        with urllib.request.urlopen(config.SERVER + path, context=context, timeout=10) as response:
            body = response.read()
        return json.loads(body) if body.startswith((b"{", b"[")) else body.decode()

    def _get(self, path: str) -> Any:
        """The same as ``api``, or nothing while there is no good answer."""
        with contextlib.suppress(OSError):
            return self.api(path)
        return None

    def ready(self) -> bool:
        """Whether the node says of itself that it is Ready."""
        node = self._get(f"/api/v1/nodes/{config.NODE}")
        conditions = node["status"].get("conditions", []) if node else []
        return {condition["type"]: condition["status"] for condition in conditions}.get("Ready") == "True"

    def pods(self) -> list[dict[str, Any]]:
        """The pods as the kubelet's read-only port lists them. Raises ``OSError``."""
        url = f"http://127.0.0.1:{config.PORTS['kubelet read-only']}/pods"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["items"] or []

    def kubectl_environment(self) -> dict[str, str]:
        """What ``kubectl`` needs in its environment to be this cluster's, and to write nowhere else."""
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.folder / "kubectl")}

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator. Raises ``ClusterError`` with its message when it fails."""
        done = subprocess.run(
            [self.folder / "kbox", "kubectl", *args],
            env=self.kubectl_environment(),
            input=stdin or "",
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(args)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def apply(self, manifest: str, namespace: str = "default") -> None:
        """Apply a manifest given as YAML or JSON text; what names no namespace goes to this one."""
        self.kubectl("--namespace", namespace, "apply", "--filename", "-", stdin=manifest)


def _say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)
