"""Who appears in the demo, and when: a shop, its payments, and a job that comes and goes."""

from __future__ import annotations

import itertools
import secrets

from tracer.demo.pods import Container, Pod
from tracer.demo.stage import Stage

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def _suffix(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _replica(namespace: str, app: str, *containers: Container) -> Pod:
    template = _suffix(9)
    labels = {"app": app, "pod-template-hash": template}
    owner = ("ReplicaSet", f"{app}-{template}")
    return Pod(namespace, f"{app}-{template}-{_suffix(5)}", app, labels, owner, containers)


class Play:
    """What happens on a stage: ``prologue`` before anybody looks, ``begin`` from then on."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._web = Container("web", "shop/web:2.4")
        self._web_pod = _replica("shop", "web", self._web)
        self._ledger = Container("db", "payments/ledger:16.3")
        self._ledger_pod = Pod(
            "payments", "ledger-0", "ledger", {"app": "ledger"}, ("StatefulSet", "ledger"), (self._ledger,)
        )
        self._scorer = Container("scorer", "payments/fraud:0.9")
        self._fraud_pod = _replica("payments", "fraud", self._scorer)
        self._migrate = Container("migrate", "shop/cart:1.8", "init")
        self._cart = Container("app", "shop/cart:1.8")
        self._proxy = Container("proxy", "mesh/proxy:1.31")
        self._cart_pod = _replica("shop", "cart", self._migrate, self._cart, self._proxy)
        self._crashes = itertools.cycle(("exit 1", "kill -KILL $$"))
        self._reports = itertools.count(29_100_480)

    def prologue(self) -> None:
        """Three pods run, and the list knows them."""
        stage = self._stage
        for pod, container, program in (
            (self._web_pod, self._web, "web"),
            (self._ledger_pod, self._ledger, "ledger"),
            (self._fraud_pod, self._scorer, "scorer"),
        ):
            stage.add(pod)
            again = self._restart if container is self._scorer else None
            stage.start(pod, container, program, at_once=True, at_end=again)
        worker = stage.program("worker")
        stage.order(self._web, f"{worker} infinity & {worker} infinity &")
        stage.publish()

    def begin(self) -> None:
        """The cart's pod is started, its init container first; everything else takes its course."""
        stage = self._stage
        stage.after(0.3, self._start_cart)
        stage.every(3.1, lambda: stage.order(self._web, f"{stage.program('render')} 0.2"), first=1.2)
        stage.every(4.3, lambda: stage.order(self._cart, f"{stage.program('price')} 0.25"), first=3.0)
        stage.every(5.9, lambda: stage.order(self._proxy, "(:)"), first=5.1)
        stage.every(6.7, lambda: stage.enter(self._ledger_pod, self._ledger, "pg_isready", 0.1), first=0.8)
        stage.every(8.9, lambda: stage.order(self._scorer, next(self._crashes)), first=2.2)
        stage.every(10.3, self._start_report, first=3.6)

    def _start_cart(self) -> None:
        self._stage.add(self._cart_pod)
        steps = f"{self._stage.program('apply')} 0.4; {self._stage.program('verify')} 0.3; exit 0"
        self._stage.after(
            0.2,
            lambda: self._stage.start(
                self._cart_pod, self._migrate, "migrate", script=steps, at_end=self._start_cart_containers
            ),
        )

    def _start_cart_containers(self) -> None:
        self._stage.start(self._cart_pod, self._cart, "cart")
        self._stage.start(self._cart_pod, self._proxy, "proxy")

    def _restart(self) -> None:
        self._stage.after(1.2, lambda: self._stage.start(self._fraud_pod, self._scorer, "scorer", at_end=self._restart))

    def _start_report(self) -> None:
        stage = self._stage
        job = f"report-{next(self._reports)}"
        container = Container("report", "batch/report:3.0")
        pod = Pod("batch", f"{job}-{_suffix(5)}", "reporter", {"job-name": job}, ("Job", job), (container,))
        steps = f"{stage.program('query')} 1.6; {stage.program('mail')} 0.4; exit 0"
        stage.add(pod)
        stage.after(
            0.2,
            lambda: stage.start(
                pod, container, "report", script=steps, at_end=lambda: stage.after(2.0, lambda: stage.remove(pod))
            ),
        )
