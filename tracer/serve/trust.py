"""Who a peer is and whether it is trusted with others, decided at each request; and whom its question means."""

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
"""Greater ones are no process's, and not to be asked the desk about."""


class Trust:
    """``access`` has the rules, and may be replaced at any time. Counts whom it refuses in ``refused``."""

    def __init__(self, desk: Desk, access: Access) -> None:
        self.access = access
        self.refused = 0
        self._desk = desk

    def peer(self, connection: Connection) -> Identity:
        """Who the peer is now: whoever was pinned when it connected, and nobody else who has its number."""
        peer = connection.peer
        if peer.fd < 0 or peer.nonce is not None:
            return gone(peer.pid)
        identity = self._desk.lookup(peer.pid, mode="strict")  # by whatever rule others are answered
        is_same = identity.key.ino == peer.ino if self._desk.pidfs else peer.is_alive()
        return identity if is_same and identity.key.pid == peer.pid else gone(peer.pid)

    def holds(self, connection: Connection) -> bool:
        """Whether the peer may ask about others; looked at anew only where something of it has changed."""
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
            return True  # a pod that was named, in whichever namespaces
        if not peer.counts_alike or identity.state is State.GONE:
            return False
        if not may and (peer.uid != os.geteuid() or identity.workload.container_id is None):
            return False
        # The peer's files are read once for each place where it is: for most peers, once.
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
        """Lets pass who may ask about others, and who asks about itself, by the number of a thread perhaps."""
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
        """A number of another PID namespace than ours is another process's here, a stranger's perhaps."""
        if connection.peer.counts_alike:
            return
        pid = request.pid if request.pid is not None else next(iter(request.pids or ()), None)
        if pid is None or self.peer(connection).state is State.GONE:
            return
        message = f"PID {pid} is a number of another PID namespace: send a pidfd"
        hint = "send a pidfd of each process beside its request, or ask about yourself without a number"
        raise Refused("bad_request", message, hint, id_=request.id, wants_pidfd=True)

    def number_of(self, connection: Connection, request: Request, sent: Line) -> int:
        """Our number for the process behind the pidfd that came, 0 where it has none; of a peer that may ask about
        others."""
        self.authorise(connection, request)
        if sent.is_stripped:
            # Never to be taken for a question about the peer itself.
            what = "the descriptor was not taken: who sent it was not known to be allowed to"
            raise Refused("not_ready", what, "send it again", id_=request.id)
        try:
            found = pidfd.numbers(sent.fds[0])
        except OSError as error:
            what = f"the descriptor cannot be looked at: {error.strerror}"
            raise Refused("not_ready", what, "send it again", id_=request.id) from error
        if found is None:
            raise Refused("bad_request", "the descriptor is no pidfd", "send what pidfd_open gives", id_=request.id)
        return max(0, found[0])

    def peer_or_refuse(self, connection: Connection, request: Request) -> Identity:
        """Who the peer is, for whoever asks about itself; refuses where it has ended."""
        peer = self.peer(connection)
        if peer.state is State.GONE:
            raise Refused("permission_denied", "the process that connected has ended", "connect anew", id_=request.id)
        return peer


def check_descriptors(request: Request, sent: Line) -> None:
    """One descriptor stands for a PID, and for one only; raises where the request names another one, or several
    came."""
    if not sent.fds and not sent.is_stripped:
        return
    named = [key for key in ("pid", "pids", "container_id") if getattr(request, key) is not None]
    if request.itself:
        named.append("itself")
    if named:
        raise Refused("bad_request", f"{named[0]} and a descriptor are both given", id_=request.id)
    if len(sent.fds) > 1:
        raise Refused("bad_request", f"{len(sent.fds)} descriptors came", "send one a request", id_=request.id)
