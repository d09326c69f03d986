"""Registration entries as ``spire-server entry show -output json`` prints them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

AGENT = "spiffe://example.org/spire/agent/x509pop/one"


def spiffe_id(text: str) -> dict[str, str]:
    """``spiffe://td/path`` as the server prints it."""
    domain, slash, path = text.removeprefix("spiffe://").partition("/")
    return {"path": slash + path, "trust_domain": domain}


def entry(path: str, *selectors: str, parent: str = AGENT, expires_at: int = 0, **more: Any) -> dict[str, Any]:
    """An entry for ``spiffe://example.org`` + ``path``, whose ID is the path's last word."""
    kinds = [selector.partition(":") for selector in selectors]
    return {
        "admin": False,
        "created_at": "1547583197",
        "dns_names": [],
        "expires_at": str(expires_at),
        "hint": "",
        "id": path.rpartition("/")[2],
        "parent_id": spiffe_id(parent),
        "revision_number": "0",
        "selectors": [{"type": kind, "value": value} for kind, _, value in kinds],
        "spiffe_id": {"path": path, "trust_domain": "example.org"},
        **more,
    }


def body(*entries: dict[str, Any]) -> bytes:
    """The whole list."""
    return json.dumps({"entries": entries, "next_page_token": ""}).encode()


def write(path: Path, *entries: dict[str, Any]) -> Path:
    """Puts a list in place of the file, all at once."""
    path.with_suffix(".new").write_bytes(body(*entries))
    os.replace(path.with_suffix(".new"), path)
    return path
