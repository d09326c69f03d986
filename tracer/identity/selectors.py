"""The selectors of a workload, as SPIRE's ``k8s`` workload attestor computes them.

The rule's source is SPIRE's ``pkg/agent/plugin/workloadattestor/k8s/k8s.go``. Every string is verbatim: no
digest, tag or prefix is normalised, and what is empty gives a selector with an empty value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tracer.model import Container, Pod

TYPE = "k8s"
_OF_CONTAINER = (f"{TYPE}:container-name:", f"{TYPE}:container-image:")


def selectors(
    pod: Pod,
    container: Container | None,
    *,
    disable_container_selectors: bool = False,
    namespace_labels: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """The selectors of a process in ``container`` of ``pod``: sorted, each once, as ``k8s:key:value``.

    ``container`` is ``None`` where only the pod is known; it and ``disable_container_selectors`` leave out
    ``container-name`` and ``container-image``. ``namespace_labels`` are the labels of the pod's namespace,
    where ``enable_namespace_labels`` is set. SPIRE promises a set and no order, so the order here is ours.
    """
    values = set(_pod(pod))
    if container is not None and not disable_container_selectors:
        values.add(f"container-name:{container.name}")
        values.update(_images("container-image", [container]))
    for key, value in (namespace_labels or {}).items():
        values.add(f"ns-label:{key}:{value}")
    return tuple(sorted(f"{TYPE}:{value}" for value in values))


def without_container(given: Iterable[str]) -> tuple[str, ...]:
    """The selectors but for those of the container: what ``disable_container_selectors`` leaves of them."""
    return tuple(text for text in given if not text.startswith(_OF_CONTAINER))


def _pod(pod: Pod) -> Iterator[str]:
    yield f"sa:{pod.service_account}"
    yield f"ns:{pod.namespace}"
    yield f"node-name:{pod.node}"
    yield f"pod-uid:{pod.uid}"
    yield f"pod-name:{pod.name}"
    # The counts are of statuses, two containers of one image are two; the images are a set.
    yield f"pod-image-count:{len(pod.containers)}"
    yield f"pod-init-image-count:{len(pod.init_containers)}"
    yield from _images("pod-image", pod.containers)
    yield from _images("pod-init-image", pod.init_containers)
    for key, value in pod.labels.items():
        yield f"pod-label:{key}:{value}"
    for owner in pod.owners:
        yield f"pod-owner:{owner.kind}:{owner.name}"
        yield f"pod-owner-uid:{owner.kind}:{owner.uid}"


def _images(key: str, containers: Iterable[Container]) -> Iterator[str]:
    for container in containers:
        yield f"{key}:{container.image_id}"
        yield f"{key}:{container.image}"
