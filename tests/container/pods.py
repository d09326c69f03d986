"""What tests with containers say of a pod's processes."""

from __future__ import annotations

from collections.abc import Mapping

from tests.node import FakePod


def is_the_pods(event: Mapping[str, object], pod: FakePod) -> bool:
    """Whether an event or an identity has all that the pod's only container has."""
    return (
        event["state"] == "resolved"
        and event["namespace"] == pod.namespace
        and event["service_account"] == pod.service_account
        and event["pod"] == pod.name
        and event["pod_uid"] == pod.uid
        and event["container"] == "app"
        and event["container_id"] == pod.containers["app"]
    )
