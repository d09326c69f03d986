"""Which way to the kubelet: a decision from the settings and what is there, without I/O of its own.

a port was given ─────────────────────▶ that one
none, and a credential can be read ───▶ the secure port, 10250
none, but 10255 answers ──────────────▶ the read-only port
else ─────────────────────────────────▶ nothing; the read-only port is tried all the same, it may come later

A port that nobody named has to prove that it is the kubelet's: by its certificate, or, where none is checked, by being
root's, which is looked at for each connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from tracer.settings import Settings
from tracer.sources.credentials import Credentials, readable
from tracer.sources.kubelet import READ_ONLY_PORT, SECURE_PORT, KubeletEndpoint, find_read_only
from tracer.sources.ownership import NotRoots, RootCheck


@dataclass(frozen=True, slots=True)
class Choice:
    """Where to ask. ``found`` is whether there is reason to think that somebody answers; ``note`` says, for people,
    what was chosen for them, and is ``None`` where they said it themselves or where nothing was found. What was found
    and is refused, the client says."""

    endpoint: KubeletEndpoint
    found: bool = True
    note: str | None = None


def credentials(settings: Settings) -> Credentials:
    """What to show the kubelet's secure port: anonymous before a client certificate before a token, as in SPIRE."""
    ca = None if settings.skip_kubelet_verification else settings.kubelet_ca_path
    if settings.use_anonymous_authentication:
        return Credentials(ca)
    if settings.certificate_path is not None:
        return Credentials(ca, certificate_path=settings.certificate_path, private_key_path=settings.private_key_path)
    return Credentials(ca, token_path=settings.token_path)


def choose(
    settings: Settings,
    *,
    can_read: Callable[[str], bool] = readable,
    answers: Callable[[int], bool] | None = None,
) -> Choice:
    """The way to the kubelet. ``can_read`` tells whether a file can be read, ``answers`` whether loopback's port
    does (it may raise NotRoots); neither is asked where a port was given. Raises UsageError for a node name that is
    none."""
    if settings.kubelet_read_only_port is not None:
        return Choice(KubeletEndpoint.read_only(settings.kubelet_read_only_port))
    shown = credentials(settings)
    port = settings.kubelet_secure_port
    if port is not None:
        return Choice(KubeletEndpoint.secure(port, credentials=shown, node_name=settings.node_name))
    if all(can_read(path) for path in shown.own_paths):
        secure = KubeletEndpoint.secure(SECURE_PORT, credentials=shown, node_name=settings.node_name)
        if shown.ca_path is None:
            secure = replace(secure, check=RootCheck(f"--kubelet-secure-port {SECURE_PORT}", settings.procfs))
        return Choice(secure, note=f"asking the kubelet at {secure.url}, with {shown.in_words}")
    check = RootCheck(f"--kubelet-read-only-port {READ_ONLY_PORT}", settings.procfs)
    read_only = replace(KubeletEndpoint.read_only(), check=check)
    unreadable = f"{shown.in_words} cannot be read"
    try:
        if (answers or partial(find_read_only, check=check))(READ_ONLY_PORT):
            return Choice(read_only, note=f"asking the kubelet at {read_only.url}, since {unreadable}")
    except NotRoots:
        return Choice(read_only, found=False)
    hint = f"no kubelet was found: {unreadable} and port {READ_ONLY_PORT} is closed; name another one, or a port"
    return Choice(replace(read_only, peer=replace(read_only.peer, refused=hint)), found=False)
