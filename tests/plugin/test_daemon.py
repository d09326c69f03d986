"""The plugin under a real host, with the real daemon behind it: whose answers it gives, and what it does without it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.node import FakePod
from tests.plugin.conftest import Node, Rolled
from tests.plugin.host import Host
from tests.waiting import SLOW, until

pytestmark = [pytest.mark.plugin, pytest.mark.root]
ALONE = "fallback = false"


def configure(host: Host, daemon: Rolled, node: Node, more: str = "") -> None:
    """The plugin asks this daemon, and without it this kubelet."""
    text = f'socket_path = "{daemon.path}"\nkubelet_read_only_port = {node.kubelet.port}\n{more}'
    assert host.configure(text).answer == {}


def counted(host: Host, message: str, key: str) -> list[int]:
    """A count in each of the plugin's lines with these words."""
    return [int(line[key]) for line in host.log if line["@message"].startswith(message)]


def descriptors(pid: int) -> int:
    """How many descriptors the process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_process_is_attested_by_the_daemon_as_spire_attests_it(host: Host, node: Node, daemon: Rolled) -> None:
    pid = node.run(FakePod("cart-1", labels={"app": "cart", "tier": "web"}))
    node.publish()
    configure(host, daemon, node)
    without = host.attest(pid).selectors
    daemon.start()
    configure(host, daemon, node, ALONE)
    until(lambda: host.attest(pid).end.startswith("{"), 10, "the daemon to be asked")
    many = host.attest(pid, count=1000, workers=16)
    assert many.selectors == without
    assert {"pod-label:tier:web", "container-name:app", "sa:cart"} < without
    assert host.attest(os.getpid()).answer == {}
    # What is not a container's and what is gone are answers too.
    assert host.attest(2**30).answer == {}
    configure(host, daemon, node, f"{ALONE} disable_container_selectors = true")
    less = {selector for selector in without if not selector.startswith("container-")}
    assert host.attest(pid).selectors == less


def test_an_ephemeral_container_has_the_pods_identity_only_where_both_say_so(
    host: Host, node: Node, daemon: Rolled
) -> None:
    """Daemon and plugin each have a word, and the stricter one counts: SPIRE's error, and without its 30 s."""
    target = FakePod("cart-1", ephemeral={"debug": "de" * 32})
    pid, app = node.run(target, "debug"), node.run(target)
    node.publish()
    refused = "DeadlineExceeded no selectors found after max poll attempts"
    taken = "ephemeral_containers = true"
    daemon.start()
    for more in ("", taken):
        configure(host, daemon, node, f"{ALONE} {more}")
        until(lambda: "container-name:app" in host.attest(app).end, 10, "the daemon to be asked")
        began = time.monotonic()
        assert host.attest(pid).end == refused
        assert time.monotonic() - began < 5 * SLOW
    configure(host, daemon, node, f"{ALONE} disable_container_selectors = true")
    assert "pod-name:cart-1" in host.attest(pid).selectors
    daemon.end()

    daemon.start("--ephemeral-containers")
    configure(host, daemon, node, ALONE)
    until(lambda: "container-name:app" in host.attest(app).end, 10, "the daemon to be asked")
    assert host.attest(pid).end == refused
    configure(host, daemon, node, f"{ALONE} {taken}")
    assert {"pod-name:cart-1", "container-name:debug"} < host.attest(pid).selectors


def test_configure_needs_no_daemon_and_attest_none_with_a_fallback(host: Host, node: Node, daemon: Rolled) -> None:
    pid = node.run(FakePod("cart-1"))
    node.publish()
    configure(host, daemon, node, ALONE)
    assert host.attest(pid).end.startswith("Unavailable ")
    configure(host, daemon, node)
    assert "pod-name:cart-1" in host.attest(pid).selectors
    assert host.attest(host.pid).answer == {}


def test_strict_is_the_default_and_parity_what_spire_says(host: Host, node: Node, daemon: Rolled) -> None:
    """A workload that names a cgroup of its own after another pod is taken for it by SPIRE's rules, not by ours."""
    mine, victim = FakePod("mine-1"), FakePod("victim-1", "vault", "admin")
    node.run(victim)
    pid = node.run(mine, below=f"/pod{victim.uid}/{victim.containers['app']}")
    node.publish()
    daemon.start()
    configure(host, daemon, node, ALONE)
    assert {"pod-name:mine-1", "ns:shop"} < host.attest(pid).selectors
    configure(host, daemon, node, f'{ALONE} mode = "parity"')
    assert {"pod-name:victim-1", "ns:vault"} < host.attest(pid).selectors


def test_waits_hold_nobody_up(host: Host, node: Node, daemon: Rolled) -> None:
    """500 Attests wait for a pod that is not listed; meanwhile others are answered, and at the end all 500."""
    late = FakePod("late-1", listed=False)
    here, waiting = node.run(FakePod("cart-1")), node.run(late)
    node.publish()
    daemon.start()
    configure(host, daemon, node, ALONE)
    assert "pod-name:cart-1" in host.attest(here).selectors
    before = descriptors(host.plugin_pid)
    pending = host.start_attest(waiting, count=500, workers=500)
    until(lambda: daemon.status()["socket"]["waiting"] == 500, 20, "500 to wait")
    while_waiting = host.attest(here, count=200)
    assert "pod-name:cart-1" in while_waiting.selectors
    assert not pending.done()
    print(f"answered while 500 wait: p50 {while_waiting.p50:.0f} µs, p99 {while_waiting.p99:.0f} µs")
    late.listed = True
    node.publish()
    assert "pod-name:late-1" in host.finish(pending).selectors
    until(lambda: descriptors(host.plugin_pid) <= before, 10, "the plugin to have no more open than before")


def test_who_asks_no_more_is_forgotten_by_the_daemon_too(host: Host, node: Node, daemon: Rolled) -> None:
    pid = node.run(FakePod("late-1", listed=False))
    node.publish()
    daemon.start()
    configure(host, daemon, node, ALONE)
    pending = host.start_attest(pid, count=50, workers=50, timeout_ms=2000)
    until(lambda: daemon.status()["socket"]["waiting"] == 50, 20, "50 to wait")
    assert all(end.startswith("DeadlineExceeded ") for end in host.finish(pending).ends)
    until(lambda: daemon.status()["socket"]["waiting"] == 0, 10, "the daemon to forget them")


def test_a_wait_ends_in_spires_words(host: Host, node: Node, daemon: Rolled) -> None:
    pid = node.run(FakePod("late-1", listed=False))
    node.publish()
    daemon.start()
    configure(host, daemon, node, f'{ALONE} max_poll_attempts = 4 poll_retry_interval = "50ms"')
    assert host.attest(pid, count=3).end == "DeadlineExceeded no selectors found after max poll attempts"


def test_a_daemon_that_is_rolled_under_load_costs_no_error(host: Host, node: Node, daemon: Rolled) -> None:
    """100 Attests a second while the daemon is killed and started again: all of them right, some SPIRE's way. Those who
    wait for a pod wait on."""
    late = FakePod("late-1", listed=False)
    here, waiting = node.run(FakePod("cart-1")), node.run(late)
    node.publish()
    daemon.start()
    configure(host, daemon, node)
    wanted = host.attest(here).selectors
    pending = host.start_attest(waiting, count=20, workers=20)
    load = host.start_attest(here, count=600, workers=10, pause_ms=100)
    until(lambda: daemon.status()["socket"]["waiting"] == 20, 20, "20 to wait")
    daemon.signal(signal.SIGKILL)
    until(lambda: counted(host, "the daemon cannot be asked", "by_daemon"), 10, "the plugin to take note")
    daemon.start()
    until(lambda: daemon.status()["socket"]["waiting"] == 20, 20, "20 to wait again")
    late.listed = True
    node.publish()
    assert "pod-name:late-1" in host.finish(pending).selectors
    assert host.finish(load).selectors == wanted
    assert len(counted(host, "the daemon cannot be asked", "by_daemon")) == 1
    assert counted(host, "asking the daemon", "by_fallback")[-1] >= 20


def test_a_daemon_that_is_stopped_holds_nobody_up(host: Host, node: Node, daemon: Rolled) -> None:
    pid = node.run(FakePod("cart-1"))
    node.publish()
    daemon.start()
    configure(host, daemon, node)
    wanted = host.attest(pid).selectors
    daemon.signal(signal.SIGSTOP)
    assert host.attest(pid, count=50, workers=5).selectors == wanted
    daemon.signal(signal.SIGCONT)
    until(lambda: len(counted(host, "asking the daemon", "by_daemon")) == 2, 10, "the daemon to be asked again")
    assert host.attest(pid).selectors == wanted


def test_a_plugin_that_is_killed_leaves_the_daemon_as_it_was(host: Host, node: Node, daemon: Rolled) -> None:
    pid = node.run(FakePod("late-1", listed=False))
    node.publish()
    daemon.start()
    socket: dict[str, Any] = daemon.status()["socket"]
    configure(host, daemon, node, ALONE)
    pending = host.start_attest(pid, count=50, workers=50)
    until(lambda: daemon.status()["socket"]["waiting"] == 50, 20, "50 to wait")
    os.kill(host.plugin_pid, signal.SIGKILL)
    assert host.finish(pending).end.startswith("Unavailable ")
    until(lambda: daemon.status()["socket"]["waiting"] == 0, 10, "the daemon to forget them")
    assert daemon.status()["socket"]["connections"] == socket["connections"]


def test_nothing_is_left_open_by_daemons_that_come_and_go(
    host: Host, node: Node, daemon: Rolled, tmp_path: Path
) -> None:
    pid = node.run(FakePod("cart-1"))
    node.publish()
    daemon.start()
    configure(host, daemon, node)
    assert "ns:shop" in host.attest(pid).selectors
    configure(host, daemon, node, 'mode = "parity"')  # which opens all that there is
    host.attest(pid)
    configure(host, daemon, node)
    host.attest(pid)
    before = descriptors(host.plugin_pid)
    for number in range(30):
        path = daemon.path if number % 2 else tmp_path / "nobody.sock"
        host.configure(f'socket_path = "{path}"\nkubelet_read_only_port = {node.kubelet.port}')
        assert "ns:shop" in host.attest(pid).selectors
    configure(host, daemon, node)
    assert "ns:shop" in host.attest(pid).selectors
    until(lambda: descriptors(host.plugin_pid) <= before, 10, "the plugin to have no more open than before")
