"""The secure port of a real kubelet, with real tokens, certificates and roles, by the command."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import machine
from tests.cluster.cluster import Cluster
from tests.cluster.config import CGROUP, PORTS
from tests.cluster.test_cluster import WORKLOAD, running
from tests.podtracer import COMMAND, Watch, podtracer
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.cluster]

SECURE = ("--standalone", "--kubelet-secure-port", PORTS["kubelet"])
ROLES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: %(namespace)s-pods}
rules: [{apiGroups: [""], resources: [nodes/pods], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: %(namespace)s-namespaces}
rules: [{apiGroups: [""], resources: [namespaces], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %(namespace)s-pods}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %(namespace)s-pods}
subjects:
  - {kind: ServiceAccount, name: reader, namespace: %(namespace)s}
  - {kind: ServiceAccount, name: half, namespace: %(namespace)s}
  - {kind: User, name: %(namespace)s-reader, apiGroup: rbac.authorization.k8s.io}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %(namespace)s-namespaces}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %(namespace)s-namespaces}
subjects: [{kind: ServiceAccount, name: reader, namespace: %(namespace)s}]
"""


@dataclass
class Site:
    """A namespace with one running pod, and service accounts: ``reader`` may get pods and namespaces, ``half`` pods
    only, ``stranger`` nothing. The user ``NAMESPACE-reader`` may get pods."""

    cluster: Cluster
    namespace: str
    pid: int
    pod: str

    @property
    def ca(self) -> Path:
        """The kubelet's own certificate, which it signed itself, and the authority it made for that."""
        return self.cluster.folder / "kubelet-pki/kubelet.crt"

    def token(self, account: str) -> str:
        """A new token of a service account."""
        return self.cluster.kubectl("--namespace", self.namespace, "create", "token", account).stdout

    def user(self, name: str) -> tuple[Any, ...]:
        """The flags of a client certificate for a user."""
        pki = self.cluster.pki
        pki.sign(name, f"/O=test/CN={name}")
        return "--certificate-path", pki.certificate(name), "--private-key-path", pki.key(name)


@pytest.fixture(scope="module")
def site(cluster: Cluster) -> Iterator[Site]:
    """The namespace, its pod running and its roles in force: the kubelet remembers a refusal for half a minute."""
    namespace = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", namespace)
    for account in ("reader", "half", "stranger"):
        cluster.kubectl("--namespace", namespace, "create", "serviceaccount", account)
    cluster.apply(ROLES % {"namespace": namespace})
    cluster.apply(WORKLOAD % 1, namespace)
    (pod,) = until(lambda: running(cluster, namespace), 60, "the pod", interval=0.2)
    accounts = [f"system:serviceaccount:{namespace}:{name}" for name in ("reader", "half")]
    for user in (*accounts, f"{namespace}-reader"):
        asked = ("auth", "can-i", "get", "nodes", "--subresource=pods", f"--as={user}")
        until(lambda asked=asked: cluster.kubectl(*asked, check=False).returncode == 0, 30, f"the role of {user}")
    container = pod["status"]["containerStatuses"][0]["containerID"].partition("://")[2]
    folder = machine.cgroup_folders(f"{CGROUP}/kubepods/besteffort/pod{pod['metadata']['uid']}/{container}")[0]
    pid = int((folder / "cgroup.procs").read_text())
    yield Site(cluster, namespace, pid, pod["metadata"]["name"])
    for name in ("pods", "namespaces"):
        cluster.kubectl("delete", "clusterrolebinding,clusterrole", f"{namespace}-{name}")
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def token(site: Site, tmp_path: Path) -> Path:
    """A file with a token that may get pods."""
    path = tmp_path / "token"
    path.write_text(site.token("reader"))
    return path


def resolved(site: Site, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The identity that the command printed, which is that of the site's pod."""
    assert done.returncode == 0, done.stdout + done.stderr
    identity: dict[str, Any] = json.loads(done.stdout)
    assert (identity["state"], identity["pod"], identity["namespace"]) == ("resolved", site.pod, site.namespace)
    assert (identity["service_account"], identity["pods_from"]) == ("cart", "kubelet")
    return identity


def lookup(site: Site, *flags: Any) -> subprocess.CompletedProcess[str]:
    """The command, asked for the site's pod at the secure port."""
    return podtracer("lookup", site.pid, "-o", "json", *SECURE, *flags)


def test_token(site: Site, token: Path) -> None:
    """A service account's token with the role ``nodes/pods`` resolves; the name in the certificate is not asked for."""
    resolved(site, lookup(site, "--token-path", token, "--kubelet-ca-path", site.ca))


def test_nobody(site: Site) -> None:
    """Without a credential the kubelet answers 401, and the hint names what is missing."""
    done = lookup(site, "--use-anonymous-authentication", "--kubelet-ca-path", site.ca)
    assert done.returncode == 75
    assert "warning: the kubelet answered 401" in done.stderr
    assert "authentication.anonymous" in done.stderr
    assert json.loads(done.stdout)["state"] == "pending"


def test_invalid_token(site: Site, tmp_path: Path) -> None:
    """A token of nobody is a 401 whose hint names its file, and the token is not shown."""
    path = tmp_path / "token"
    path.write_text("not-a-token")
    done = lookup(site, "--token-path", path, "--kubelet-ca-path", site.ca)
    assert "the kubelet answered 401" in done.stderr
    assert str(path) in done.stderr
    assert "not-a-token" not in done.stderr


def test_no_role(site: Site, tmp_path: Path) -> None:
    """A token without the role is a 403 whose hint is the rule to be added."""
    path = tmp_path / "token"
    path.write_text(site.token("stranger"))
    done = lookup(site, "--token-path", path, "--kubelet-ca-path", site.ca)
    assert done.returncode == 75
    assert f"the kubelet answered 403: 'Forbidden (user=system:serviceaccount:{site.namespace}:stranger" in done.stderr
    assert "resources ['nodes/pods'], verbs ['get']" in done.stderr


def test_client_certificate(site: Site) -> None:
    """A client certificate of a user with the role resolves, and that of another is a 403."""
    resolved(site, lookup(site, *site.user(f"{site.namespace}-reader"), "--kubelet-ca-path", site.ca))
    done = lookup(site, *site.user(f"{site.namespace}-stranger"), "--kubelet-ca-path", site.ca)
    assert f"the kubelet answered 403: 'Forbidden (user={site.namespace}-stranger" in done.stderr


def test_wrong_authority(site: Site, token: Path) -> None:
    """The cluster's own authority did not sign this kubelet's certificate: nothing is asked, unless that is skipped."""
    flags = ("--token-path", token, "--kubelet-ca-path", site.cluster.pki.ca)
    done = lookup(site, *flags)
    assert done.returncode == 75
    assert "the kubelet's certificate is not trusted" in done.stderr
    assert str(site.cluster.pki.ca) in done.stderr
    resolved(site, lookup(site, *flags, "--skip-kubelet-verification"))


def test_name_of_the_node(site: Site, token: Path, tmp_path: Path) -> None:
    """With a node name the certificate has to bear it: the node's name does, an address does not."""
    flags = ("--token-path", token, "--kubelet-ca-path", site.ca)
    done = lookup(site, *flags, "--node-name", "127.0.0.2")
    assert "https://127.0.0.2:10250/pods" in done.stderr
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {site.cluster.node} another-node\n")
    mount = f"mount --bind {hosts} /etc/hosts"
    resolved(site, privately(mount, "lookup", site.pid, "-o", "json", *SECURE, *flags, MY_NODE_NAME=site.cluster.node))
    done = privately(mount, "lookup", site.pid, *SECURE, *flags, "--node-name", "another-node")
    assert done.returncode == 75
    assert "the kubelet's certificate is for another name" in done.stderr


def test_rotated_token(site: Site, tmp_path: Path) -> None:
    """A watch whose token is not valid yet resolves what it showed as pending once the file has a good one."""
    path = tmp_path / "token"
    path.write_text("not-a-token")
    with Watch(
        "--kubelet-secure-port", PORTS["kubelet"], "--token-path", path, "--kubelet-ca-path", site.ca,
        "--refresh-interval", "1s",
    ) as watch:  # fmt: skip
        (snapshot,) = watch.of(site.pid)
        assert (snapshot["event"], snapshot["state"], snapshot["pod"]) == ("snapshot", "pending", None)
        path.write_text(site.token("reader"))
        until(lambda: len(watch.of(site.pid)) > 1, 30, "the identity to be resolved")
        event = watch.of(site.pid)[1]
    assert (event["event"], event["state"], event["pod"]) == ("resolved", "resolved", site.pod)


def privately(prepare: str, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a mount namespace of its own, in which ``prepare`` has run before."""
    script = f'{prepare} && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *COMMAND, *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment,
    )  # fmt: skip


def as_in_a_pod(site: Site, account: str, folder: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    """The command with the files and variables that a pod with this service account has."""
    (folder / "token").write_text(site.token(account))
    (folder / "ca.crt").write_bytes(site.cluster.pki.ca.read_bytes())
    place = "/run/secrets/kubernetes.io/serviceaccount"
    return privately(
        f"mount -t tmpfs none /run && mkdir -p {place} && cp {folder}/token {folder}/ca.crt {place}", *words,
        KUBERNETES_SERVICE_HOST="127.0.0.1", KUBERNETES_SERVICE_PORT=str(PORTS["API server"]),
    )  # fmt: skip


def test_as_in_a_pod(site: Site, tmp_path: Path) -> None:
    """With a service account's token at its usual place the secure port is found, which is said in one line."""
    words = ("lookup", site.pid, "-o", "json", "--standalone", "--kubelet-ca-path", site.ca)
    done = as_in_a_pod(site, "reader", tmp_path, *words)
    resolved(site, done)
    assert done.stderr == (
        "podtracer: asking the kubelet at https://127.0.0.1:10250/pods,"
        " with the token in /var/run/secrets/kubernetes.io/serviceaccount/token\n"
    )


def test_namespace_labels(site: Site, tmp_path: Path) -> None:
    """Labels of the namespace become selectors when they are asked for, and an edit of them does too."""
    words = (
        *("lookup", site.pid, "-o", "json", "--standalone", "--kubelet-ca-path", site.ca),
        "--enable-namespace-labels",
    )

    def labels() -> set[str]:
        selectors = resolved(site, as_in_a_pod(site, "reader", tmp_path, *words))["selectors"]
        return {selector for selector in selectors if selector.startswith("k8s:ns-label:")}

    own = f"k8s:ns-label:kubernetes.io/metadata.name:{site.namespace}"
    assert labels() == {own}
    site.cluster.kubectl("label", "namespace", site.namespace, "team=cart")
    assert labels() == {own, "k8s:ns-label:team:cart"}


def test_namespace_labels_refused(site: Site, tmp_path: Path) -> None:
    """Where the API server refuses, everything but the selectors is known, and the hint is the rule to be added."""
    words = ("lookup", site.pid, "-o", "json", "--standalone", "--kubelet-ca-path", site.ca)
    done = as_in_a_pod(site, "half", tmp_path, *words, "--enable-namespace-labels")
    assert done.returncode == 75
    identity = json.loads(done.stdout)
    assert (identity["state"], identity["reason"]) == ("pending", "namespace_labels")
    assert (identity["pod"], identity["container"], identity["selectors"]) == (site.pod, "app", [])
    assert "warning: the API server answered 403" in done.stderr
    assert "resources ['namespaces'], verbs ['get']" in done.stderr
