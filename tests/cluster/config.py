"""What each part of the test cluster is told: flags and configuration files, with no machine touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster.pki import Pki

NODE = "podtracer"  # also the name of its cgroup
CGROUP = f"/{NODE}"
NETWORK = "podtracer"
BRIDGE = "podtracer0"
PAUSE, APP = "localhost/pause:1", "localhost/app:1"
PORTS = {"etcd": 12379, "etcd peer": 12380, "API server": 16443, "kubelet": 10250, "kubelet read-only": 10255}
SERVER = f"https://127.0.0.1:{PORTS['API server']}"


CONTAINERD = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
netns_mounts_under_state_dir = true
# Without CAP_SYS_RESOURCE nobody may lower the pause container's score.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{folder}/runc"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
"""


def commands(folder: Path, pki: Pki) -> dict[str, list[str]]:
    """The daemons that kbox holds, and their arguments."""
    admin = pki.folder / "admin.kubeconfig"
    etcd, peers = (f"http://127.0.0.1:{PORTS[name]}" for name in ("etcd", "etcd peer"))
    return {
        "etcd": [
            f"--data-dir={folder / 'etcd'}",
            *(f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            *(f"--initial-cluster=default={peers}", "--unsafe-no-fsync"),
        ],
        "kube-apiserver": [
            *(f"--etcd-servers={etcd}", "--endpoint-reconciler-type=none"),
            *("--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"),
            *(f"--secure-port={PORTS['API server']}", "--service-cluster-ip-range=10.0.0.0/24"),
            *(f"--client-ca-file={pki.ca}", f"--cert-dir={folder / 'apiserver'}"),
            *(
                f"--tls-cert-file={pki.certificate('apiserver')}",
                f"--tls-private-key-file={pki.key('apiserver')}",
            ),
            *("--authorization-mode=Node,RBAC", "--allow-privileged=true"),
            "--service-account-issuer=https://podtracer.test",
            f"--service-account-signing-key-file={pki.key('sa')}",
            f"--service-account-key-file={pki.folder / 'sa.pub'}",
            f"--kubelet-client-certificate={pki.certificate('kubelet-client')}",
            f"--kubelet-client-key={pki.key('kubelet-client')}",
            "--kubelet-preferred-address-types=InternalIP",
        ],
        "kube-controller-manager": [
            *(f"--kubeconfig={admin}", "--leader-elect=false", "--secure-port=0"),
            *(f"--service-account-private-key-file={pki.key('sa')}", f"--root-ca-file={pki.ca}"),
            "--use-service-account-credentials=false",
            f"--flex-volume-plugin-dir={folder / 'volume-plugins'}",
        ],
        "kube-scheduler": [f"--kubeconfig={admin}", "--leader-elect=false", "--secure-port=0"],
        "kubelet": [
            *(f"--config={folder / 'kubelet.json'}", f"--root-dir={folder / 'kubelet'}"),
            *(
                f"--kubeconfig={pki.folder / 'node.kubeconfig'}",
                f"--cert-dir={folder / 'kubelet-pki'}",
            ),
            *(f"--hostname-override={NODE}", "--node-ip=127.0.0.1"),
        ],
    }


def kubelet(folder: Path, pki: Pki, containerd: Path) -> dict[str, Any]:
    """The kubelet's configuration file; ``containerd`` is the socket."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": PORTS["kubelet"],
        "readOnlyPort": PORTS["kubelet read-only"],
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki.ca)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{containerd}",
        "staticPodPath": str(folder / "static-pods"),
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": CGROUP,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        "evictionHard": {},
        "maxPods": 300,
        "resolvConf": "",
    }


def network(folder: Path) -> dict[str, Any]:
    """The network plugins' configuration: one bridge, addresses noted below ``folder``."""
    return {
        "cniVersion": "0.4.0",
        "name": NETWORK,
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipam": {"type": "host-local", "dataDir": str(folder / "ipam"), "subnet": "10.244.96.0/22"},
    }
