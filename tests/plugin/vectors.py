"""The vectors of HCL 1: texts, and what the Go module that SPIRE's agent uses makes of them.

``python -m tests.plugin.vectors`` writes them anew; to add one, put its text into the file first.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.plugin.host import build

FILE = Path(__file__).parents[1] / "vectors" / "hcl.json"


def load() -> list[dict[str, Any]]:
    """The vectors as they are in the file."""
    vectors: list[dict[str, Any]] = json.loads(FILE.read_text())
    return vectors


def decode(texts: list[str]) -> list[dict[str, Any]]:
    """The vectors of these texts, made now."""
    child = subprocess.run([build("hcl")], input=json.dumps(texts), capture_output=True, text=True, check=True)
    return [{"text": text, **made} for text, made in zip(texts, json.loads(child.stdout), strict=True)]


def write() -> None:
    """The file holds what its texts are now."""
    vectors = decode([vector["text"] for vector in load()])
    FILE.write_text(json.dumps(vectors, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    write()
