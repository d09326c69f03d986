"""Keys, certificates and kubeconfigs of the test cluster, made with openssl."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

DAYS = "30"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
CLIENT = "extendedKeyUsage=clientAuth"


class Pki:
    """One authority and what it has signed, in a folder: ``NAME.crt`` and ``NAME.key``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = self.certificate("ca")

    def certificate(self, name: str) -> Path:
        """The certificate of this name."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The private key of this name."""
        return self.folder / f"{name}.key"

    def make_ca(self) -> None:
        """Make the authority, and the key that signs service accounts' tokens (``sa.key``, ``sa.pub``)."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # openssl's own configuration would make an authority of every certificate.
        (self.folder / "openssl.cnf").write_text("[req]\ndistinguished_name = empty\n[empty]\n")
        self._certificate("ca", "/CN=podtracer-test-ca", "basicConstraints=critical,CA:TRUE")
        _openssl("genpkey", "-algorithm", "EC", *NEW_KEY[2:4], "-out", self.key("sa"))
        _openssl("pkey", "-in", self.key("sa"), "-pubout", "-out", self.folder / "sa.pub")

    def sign(self, name: str, subject: str, *extensions: str) -> None:
        """Make a key and a certificate for ``subject`` (``/O=group/CN=user``); without extensions a client's."""
        signer = ("-CA", self.ca, "-CAkey", self.key("ca"))
        self._certificate(name, subject, *(extensions or (CLIENT,)), signer=signer)

    def _certificate(self, name: str, subject: str, *extensions: str, signer: tuple[str | Path, ...] = ()) -> None:
        added = [argument for extension in extensions for argument in ("-addext", extension)]
        where = ("-keyout", self.key(name), "-out", self.certificate(name), "-days", DAYS)
        config = ("-config", self.folder / "openssl.cnf")
        _openssl("req", "-x509", *config, *NEW_KEY, *signer, "-subj", subject, *added, *where)

    def kubeconfig(self, name: str, server: str) -> Path:
        """Write ``NAME.kubeconfig``: that API server, with the client certificate of this name."""
        path = self.folder / f"{name}.kubeconfig"
        user = {"client-certificate": str(self.certificate(name)), "client-key": str(self.key(name))}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(self.ca)}}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        return path


def _openssl(*args: str | Path) -> None:
    done = subprocess.run(["openssl", *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {' '.join(map(str, args))}: {done.stderr.strip()}")
