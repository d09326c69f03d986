"""Hypothesis strategies that several tests share: what a cluster makes, and what a hostile workload makes of
it."""

from __future__ import annotations

from hypothesis import strategies as st

HEX = "0123456789abcdef"

container_ids = st.text(HEX, min_size=64, max_size=64)
"""Container IDs as runtimes write them."""

dashed_uids = st.uuids().map(str)
"""Pod UIDs as the API server makes them."""

static_uids = st.text(HEX, min_size=32, max_size=32)
"""UIDs of static pods."""

pod_uids = st.one_of(dashed_uids, static_uids)

ROOTS = (
    "/kubepods",
    "/kubepods.slice",
    "/kubelet.slice/kubelet-kubepods.slice",
    "/kubelet/kubepods",
    "/docker/" + "d" * 64 + "/kubelet/kubepods",
    "/system.slice/docker-" + "d" * 64 + ".scope/kubelet.slice/kubelet-kubepods.slice",
)
"""Roots as drivers, ``--cgroup-root`` and KIND make them."""


def pod_segment(uid: str, systemd: bool) -> str:
    """A pod's own cgroup, as the driver names it."""
    return f"kubepods-burstable-pod{uid.replace('-', '_')}.slice" if systemd else f"pod{uid}"


leaf_forms = st.sampled_from(
    ["{}", "cri-containerd-{}.scope", "crio-{}", "crio-{}.scope", "docker-{}.scope", "{} (deleted)"]
)
"""How runtimes name a container's cgroup; to be formatted with its ID."""

names = st.text(st.characters(exclude_characters="/"), max_size=24)
"""Any name that a cgroup might have, and some that it cannot."""


@st.composite
def hostile_segments(draw: st.DrawFn) -> str:
    """One segment that a workload may put below its own cgroup to look like another pod or container."""
    uid, container = draw(pod_uids), draw(container_ids)
    segment: str = draw(
        st.one_of(
            names,
            st.sampled_from(["kubepods", "kubepods.slice", "x-kubepods.slice", "..", "", "init"]),
            leaf_forms.map(lambda form: form.format(container)),
            st.booleans().map(lambda systemd: pod_segment(uid, systemd)),
            st.just(f"kubepods-pod{uid}.slice:cri-containerd:{container}"),
            st.just(f"crio-conmon-{container}.scope"),
        )
    )
    return segment


hostile_suffixes = st.lists(hostile_segments(), max_size=6).map(lambda parts: "".join("/" + p for p in parts))
"""A path below a container's cgroup, of the container's own making."""
