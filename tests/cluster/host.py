"""What the test cluster changes on the machine outside its folder, and how that is put back."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests import machine
from tests.cluster.config import BRIDGE, NETWORK, PORTS
from tests.waiting import until

# Set by the kubelet, all but the last, which is set by the bridge plugin.
SYSCTLS = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward"),
)
# Made by the kubelet or the network plugins whatever they are told; removed at the end unless there before.
OUTSIDE = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers")
# Made by mount(8), which the kubelet runs; removed only when nobody keeps anything there.
SHARED = ("/run/mount",)


class ClusterError(Exception):
    """The cluster cannot be started, or is not there; the message is for people."""


def state() -> dict[str, Any]:
    """What ``restore`` puts back: the values of sysctls, and which paths were not there."""
    settings = {name: Path("/proc/sys", name) for name in SYSCTLS}
    return {
        "sysctls": {name: path.read_text().strip() for name, path in settings.items() if path.exists()},
        "missing": [path for path in (*OUTSIDE, *SHARED) if not Path(path).exists()],
    }


def restore(recorded: dict[str, Any], folder: Path) -> None:
    """Put back what ``state`` recorded, and remove what points into the cluster's ``folder``."""
    for name, value in recorded["sysctls"].items():
        setting = Path("/proc/sys", name)
        if setting.read_text().strip() != value:
            setting.write_text(value)
    for path in recorded["missing"]:
        if path in SHARED:
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        else:
            machine.unmount_below(Path(path))
            shutil.rmtree(path, ignore_errors=True)
    for result in Path("/var/lib/cni/results").glob(f"{NETWORK}-*"):
        result.unlink()
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(folder):
            link.unlink()


def check_ports() -> None:
    """Raise ``ClusterError`` when another program, another cluster say, listens where we have to."""
    for name, port in PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise ClusterError(
                    f"port {port} is in use, and {name} needs it: is another cluster up? ({error.strerror})"
                ) from None


def remove_bridge() -> None:
    """Remove the bridge, once the kernel has removed the pods' network namespaces and with them its ports."""
    bridge = Path("/sys/class/net", BRIDGE)
    if bridge.exists():
        until(
            lambda: not any((bridge / "brif").iterdir()),
            30,
            f"the pods' network interfaces on {BRIDGE} to go",
        )
        subprocess.run(["ip", "link", "delete", BRIDGE], check=True)
