"""Who we are to a server and whom we take it for: files that are read anew, since all of them rotate.

``Credentials`` are paths, ``Keys`` what stood there at one moment. What the options mean is what they mean to
SPIRE's ``k8s`` workload attestor (``pkg/agent/plugin/workloadattestor/k8s/k8s.go``): anonymous before a client
certificate before a token; with a host name the server's certificate has to bear it, without one its chain alone
is checked.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.errors import SourceError

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
CA_PATH = f"{SERVICE_ACCOUNT}/ca.crt"
TOKEN_PATH = f"{SERVICE_ACCOUNT}/token"
_MAX_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS. ``host_name`` is what the certificate has to bear; ``None``: any name will do."""

    context: ssl.SSLContext = field(repr=False)
    host_name: str | None


@dataclass(frozen=True, slots=True)
class Keys:
    """What the files of credentials held; equal digests are equal contents."""

    tls: Tls
    headers: Mapping[str, str] = field(repr=False)
    digest: bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the keys for one server are. Neither token nor certificate is anonymous.

    ``ca_path`` ``None`` trusts whoever answers. ``host_name`` is checked against the server's certificate where it
    is not ``None``. Certificate and private key come together.
    """

    ca_path: str | None = CA_PATH
    host_name: str | None = None
    token_path: str | None = None
    certificate_path: str | None = None
    private_key_path: str | None = None

    @property
    def own_paths(self) -> tuple[str, ...]:
        """The files that say who we are."""
        return tuple(path for path in (self.token_path, self.certificate_path, self.private_key_path) if path)

    @property
    def in_words(self) -> str:
        """Who we are, for people."""
        if self.certificate_path:
            return f"the client certificate in {self.certificate_path}"
        return f"the token in {self.token_path}" if self.token_path else "no credential (anonymous)"

    def load(self) -> Keys:
        """The keys as they are now. Raises SourceError, with the path, for a file that cannot be used."""
        digest = hashlib.sha256()
        context = self._context(digest)
        headers = {}
        if self.token_path:
            body = _read(self.token_path, "token")
            digest.update(body)
            headers["Authorization"] = f"Bearer {_token(self.token_path, body)}"
        return Keys(Tls(context, self.host_name), headers, digest.digest())

    def _context(self, digest: hashlib._Hash) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.host_name is not None and self.ca_path is not None
        # As in Go: a name stands in subjectAltName only, and whatever the file of authorities holds is trusted, be
        # it an authority or not.
        context.hostname_checks_common_name = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.ca_path is None:
            context.verify_mode = ssl.CERT_NONE
        else:
            body = _read(self.ca_path, "file of trusted authorities")
            digest.update(body)
            _trust(context, self.ca_path, body)
        if self.certificate_path and self.private_key_path:
            digest.update(_read(self.certificate_path, "client certificate"))
            digest.update(_read(self.private_key_path, "private key"))
            _identify(context, self.certificate_path, self.private_key_path)
        return context


def readable(path: str) -> bool:
    """Whether there is a file here that can be read and is not empty."""
    try:
        return bool(_read(path, "file").strip())
    except SourceError:
        return False


def _read(path: str, kind: str) -> bytes:
    try:
        # Not to hang on a pipe, which open() would do.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SourceError(
                    f"the {kind} is no regular file", path, "give a file that can be read again and again"
                )
            body = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"the {kind} cannot be read: {reason}", path, "check its path and mode") from error
    if len(body) > _MAX_FILE:
        raise SourceError(f"the {kind} is larger than 1 MiB", path, "is this the right file?")
    return body


def _token(path: str, body: bytes) -> str:
    token = body.strip()
    # Whatever could end a header, or hide in one, is no token.
    if not token or not all(0x21 <= byte <= 0x7E for byte in token):
        what = "the token is empty" if not token else "the file holds no token"
        raise SourceError(what, path, "it should hold one line, such as kubectl create token prints")
    return token.decode("ascii")


def _trust(context: ssl.SSLContext, path: str, body: bytes) -> None:
    hint = "it should hold the certificates, in PEM, of who signed the server's; it may hold the server's own"
    try:
        context.load_verify_locations(cadata=body.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise SourceError(f"no certificate can be read here: {_reason(error)}", path, hint) from error
    if not context.cert_store_stats()["x509"]:
        raise SourceError("no certificate can be read here", path, hint)


def _identify(context: ssl.SSLContext, certificate: str, key: str) -> None:
    pair = f"{certificate}, {key}"
    hint = "give a certificate and its private key, both in PEM and the key not encrypted"
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(certificate, key, password=b"")
    except (OSError, ValueError) as error:
        raise SourceError(f"the client certificate cannot be used: {_reason(error)}", pair, hint) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
