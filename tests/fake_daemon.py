"""A daemon that answers what it is told to, for tests of whoever asks: lines in, lines out, in the test's own loop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

NOTHING: Answer = {
    "pid": None, "asked": None, "start_time": None, "ppid": None, "comm": None, "state": "host", "reason": None,
    "reason_text": None, "settled": None, "source": None, "age_ms": None, "pods_from": None, "pods_age_ms": None,
    "namespace": None, "service_account": None, "pod": None, "pod_uid": None, "container": None, "kind": None,
    "container_id": None, "image": None, "node": None, "cgroup": None, "cgroup_id": None, "mode": "strict",
    "parity": None, "spiffe_ids": None, "selectors": [],
}  # fmt: skip
SELECTORS = ["k8s:container-name:app", "k8s:ns:shop", "k8s:pod-name:cart"]


def resolved(*selectors: str, **more: Any) -> Answer:
    """The answer for a process of a pod."""
    return {
        "state": "resolved",
        "settled": True,
        "kind": "container",
        "selectors": list(selectors or SELECTORS),
        **more,
    }


class FakeDaemon:
    """``answer`` is what a look-up is answered, over ``NOTHING``; while it is pending, a look-up that waits waits until
    ``tell`` says otherwise, or its time is over. An answer that is a string is the code of an error; ``wants_pidfd`` is
    what a number of another PID namespace gets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Answer | str = resolved()
        self.status: Answer = {"namespace_labels": False, "disable_container_selectors": False}
        self.asked: list[Answer] = []
        self.is_silent = False
        self.garbage: bytes | None = None  # sent in place of any answer
        self.waiting = 0
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def lookups(self) -> list[Answer]:
        """The look-ups so far, but for those of a probe."""
        return [asked for asked in self.asked if asked["op"] == "lookup" and "wait_ms" in asked]

    async def tell(self, answer: Answer | str) -> None:
        """From now on, this is the answer, also to who waits."""
        async with self._changed:
            self.answer = answer
            self._changed.notify_all()

    async def start(self) -> None:
        """Listens."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Ends as one that is killed: every connection breaks, and nobody listens."""
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._writers):
            writer.close()
        for task in tuple(self._tasks):
            task.cancel()
        self.path.unlink(missing_ok=True)

    async def __aenter__(self) -> FakeDaemon:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                task = asyncio.create_task(self._reply(json.loads(line), writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _reply(self, asked: Answer, writer: asyncio.StreamWriter) -> None:
        self.asked.append(asked)
        if self.is_silent or asked["op"] == "cancel":
            return
        if self.garbage is not None:
            writer.write(self.garbage)
            return
        said: Any = {"version": {"version": "0"}, "status": self.status}.get(asked["op"])
        if asked["op"] == "lookup":
            said = await self._lookup(asked)
        if isinstance(said, str):
            error: Answer = {"code": said, "message": "no", "hint": None}
            if said == "wants_pidfd":  # whoever asks is in another PID namespace
                error |= {"code": "bad_request", "wants_pidfd": True}
            line = json.dumps({"id": asked["id"], "ok": False, "error": error})
        else:
            line = json.dumps({"id": asked["id"], "ok": True, "result": said})
        writer.write(line.encode() + b"\n")

    async def _lookup(self, asked: Answer) -> Answer | str:
        if self._is_pending() and asked.get("wait_ms"):
            self.waiting += 1
            try:
                async with asyncio.timeout(asked["wait_ms"] / 1000), self._changed:
                    await self._changed.wait_for(lambda: not self._is_pending())
            except TimeoutError:
                pass
            finally:
                self.waiting -= 1
        return self.answer if isinstance(self.answer, str) else {**NOTHING, "pid": asked.get("pid"), **self.answer}

    def _is_pending(self) -> bool:
        return not isinstance(self.answer, str) and self.answer["state"] == "pending"
