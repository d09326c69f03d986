"""Who a peer is, whether it may ask about others (decided at each request), and which process its request means."""

from __future__ import annotations

import os

from tracer import pidfd
from tracer.identity.index import gone
from tracer.model import Identity, State
from tracer.serve.access import Access, why_not
from tracer.serve.connection import Connection, Line
from tracer.serve.desk import Desk
from tracer.serve.requests import Refused, Request
from tracer.serve.standing import is_of_host, is_of_own_container

MAX_PID = 2**31 - 1
"""No process has a greater number; the desk is not asked about one."""


class Trust:
    """``access`` has the rules, and may be replaced at any time. ``refused`` counts the requests that it refuses."""

    def __init__(self, desk: Desk, access: Access) -> None:
        self.access = access
        self.refused = 0
        self._desk = desk

    def peer(self, connection: Connection) -> Identity:
        """Who the peer is now: the process that was pinned when it connected, never a later one with its PID."""
        peer = connection.peer
        if peer.fd < 0 or peer.nonce is not None:
            return gone(peer.pid)
        identity = self._desk.lookup(peer.pid, mode="strict")  # whatever the rule for others' answers is
        is_same = identity.key.ino == peer.ino if self._desk.pidfs else peer.is_alive()
        return identity if is_same and identity.key.pid == peer.pid else gone(peer.pid)

    def holds(self, connection: Connection) -> bool:
        """Whether the peer may ask about others; decided anew only if the rules or the peer's place have changed."""
        peer = connection.peer
        place = self._desk.mark(peer.pid) if peer.nonce is None else None
        mark = (self.access, place) if self._desk.pidfs else None
        if mark is not None and place is not None and mark == connection.trusted_by:
            return connection.is_trusted
        trusted = self._may_ask_about_others(connection, self.peer(connection), place)
        connection.is_trusted, connection.trusted_by = trusted, mark
        return trusted

    def _may_ask_about_others(self, connection: Connection, identity: Identity, place: object) -> bool:
        peer = connection.peer
        may = self.access.may_ask_about_others(identity, peer.uid, peer.gids)
        if may and identity.state is State.RESOLVED:
            return True  # a pod that --socket-allow names, in any namespaces
        if not peer.counts_alike or identity.state is State.GONE:
            return False
        if not may and (peer.uid != os.geteuid() or identity.workload.container_id is None):
            return False
        # The daemon reads the peer's files once for each place where the peer is: for most peers, once.
        if connection.stands is None or place is None or connection.stands[0] != (may, place):
            if may:
                agrees = is_of_host(peer)
            else:
                own = self._desk.lookup(os.getpid(), mode="strict")
                agrees = is_of_own_container(peer, identity, own)
            connection.stands = (may, place), agrees
        return connection.stands[1]

    def why_not(self, connection: Connection, identity: Identity) -> tuple[str, str]:
        """(message, hint) for a peer with this identity, which may not ask about others."""
        peer = connection.peer
        return why_not(identity, would_be=self.access.may_ask_about_others(identity, peer.uid, peer.gids))

    def authorise(self, connection: Connection, request: Request, *, about: int | None = None) -> None:
        """Lets a peer pass that may ask about others, or asks about itself, perhaps by the number of a thread."""
        if self.holds(connection):
            return
        peer = self.peer(connection)
        asks = about is not None and about <= MAX_PID and peer.state is not State.GONE
        if asks and (about == peer.key.pid or self._desk.lookup(about or 0, mode="strict").key == peer.key):
            return
        self.refused += 1
        message, hint = self.why_not(connection, peer)
        raise Refused("permission_denied", message, hint, id_=request.id)

    def check_numbers(self, connection: Connection, request: Request) -> None:
        """Refuses PIDs from a peer in another PID namespace: the same number means another process here."""
        if connection.peer.counts_alike:
            return
        pid = request.pid if request.pid is not None else next(iter(request.pids or ()), None)
        if pid is None or self.peer(connection).state is State.GONE:
            return
        message = f"PID {pid} is of another PID namespace than the daemon's"
        hint = "send a pidfd of the process with the request, or ask about yourself without a number"
        raise Refused("bad_request", message, hint, id_=request.id, wants_pidfd=True)

    def number_of(self, connection: Connection, request: Request, sent: Line) -> int:
        """Our number for the process behind the pidfd that came, 0 if it has none here. Refuses a peer that may not ask
        about others."""
        self.authorise(connection, request)
        if sent.is_stripped:
            # Never to be taken for a question about the peer itself.
            what = "the daemon did not take the descriptor: it did not know yet whether the caller may send one"
            raise Refused("not_ready", what, "send it again", id_=request.id)
        try:
            found = pidfd.numbers(sent.fds[0])
        except OSError as error:
            what = f"cannot read what the descriptor is: {error.strerror}"
            raise Refused("not_ready", what, "send it again", id_=request.id) from error
        if found is None:
            raise Refused("bad_request", "the descriptor is not a pidfd", "send one from pidfd_open", id_=request.id)
        return max(0, found[0])

    def peer_or_refuse(self, connection: Connection, request: Request) -> Identity:
        """Who the peer is, for a request about itself. Refuses a peer that has ended."""
        peer = self.peer(connection)
        if peer.state is State.GONE:
            raise Refused("permission_denied", "the process that connected has ended", "connect anew", id_=request.id)
        return peer


def check_descriptors(request: Request, sent: Line) -> None:
    """A request may have one descriptor, in place of a PID. Raises ``Refused`` if it names a process too, or several
    descriptors came."""
    if not sent.fds and not sent.is_stripped:
        return
    named = [key for key in ("pid", "pids", "container_id") if getattr(request, key) is not None]
    if request.itself:
        named.append("itself")
    if named:
        raise Refused("bad_request", f"{named[0]} and a descriptor are both given", "send one of them", id_=request.id)
    if len(sent.fds) > 1:
        raise Refused("bad_request", f"{len(sent.fds)} descriptors came", "send one for each request", id_=request.id)
