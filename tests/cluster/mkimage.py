"""A container image of one static busybox, made without a registry or a builder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
FOLDERS = ("bin", "dev", "etc", "opt", "proc", "sys", "tmp")
FOREVER = ("/bin/sleep", "1000000")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def rootfs(*, extra: Sequence[Path] = ()) -> bytes:
    """The image's one layer, a tar: in ``/bin`` busybox, a link for each of its commands, and ``extra``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in FOLDERS:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for program in (BUSYBOX, *extra):
            tar.add(os.path.realpath(program), arcname=f"bin/{program.name}")
        for name in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if name == BUSYBOX.name:
                continue
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return buffer.getvalue()


def write_image(out: Path, name: str, *, command: Sequence[str] = FOREVER, extra: Sequence[Path] = ()) -> None:
    """Write the image ``name`` (``localhost/app:1``) to ``out``, in the form that ``docker save`` gives.

    ``command`` is what it runs, ``extra`` are static executables to add.
    """
    layer = rootfs(extra=extra)
    layer_digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            # The name makes the configuration, whose digest is the image's ID, another one for each image.
            "config": {"Cmd": list(command), "Env": ["PATH=/bin"], "Labels": {"name": name}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            "history": [{"created_by": "mkimage"}],
        }
    ).encode()
    config_name, layer_name = f"{hashlib.sha256(config).hexdigest()}.json", f"{layer_digest}/layer.tar"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]).encode()
    with tarfile.open(out, "w") as tar:
        for path, content in ((config_name, config), (layer_name, layer), ("manifest.json", manifest)):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
