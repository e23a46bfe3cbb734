"""Folders for ComfyUI's --base-directory: the pack as the only custom node, and models of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import repository
from hosts import user_host
from third_party import INSIGHTFACE_PACK, insightface_pack

PACK_FOLDER = "ComfyUI-DynamicID"
NOT_IN_A_COPY = shutil.ignore_patterns(".*", "__pycache__", "output", "tests", "benchmarks")
# Kinds of model as ComfyUI names them -> folders under models/, where they are not one folder of the same name.
MODEL_FOLDERS = {
    "checkpoints": (),
    "configs": (),
    "loras": (),
    "vae": (),
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "clip_vision": (),
    "style_models": (),
    "embeddings": (),
    "diffusers": (),
    "vae_approx": (),
    "controlnet": ("controlnet", "t2i_adapter"),
    "gligen": (),
    "upscale_models": (),
    "hypernetworks": (),
    "photomaker": (),
    "classifiers": (),
    "model_patches": (),
    "audio_encoders": (),
    "dynamicid": (),
    "ipadapter": (),
    "insightface": (),
}
DOWNLOADED = ("insightface",)


def prepare(name: str) -> Path:
    """A folder for --base-directory: the pack as its only custom node, and models, input and output of its own."""
    base = repository.CACHE / "base" / name
    for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for kind, folders in MODEL_FOLDERS.items():
        for folder in folders or (kind,):
            (base / "models" / folder).mkdir(exist_ok=True)
    link_folder(repository.ROOT, base / "custom_nodes" / PACK_FOLDER)
    write_extra_paths(base, user_host())
    return base


def extra_paths_file(base: Path) -> Path:
    """The file in a base directory that lists other model folders to search."""
    return base / "extra_model_paths.yaml"


def write_extra_paths(base: Path, host: Path | None) -> None:
    """Let a host that runs in `base` find the models of another ComfyUI folder too."""
    if host is None:
        extra_paths_file(base).unlink(missing_ok=True)
        return
    # Downloads go into the first folder of their kind, which must not be the user's.
    sections = (("own", base, {kind: MODEL_FOLDERS[kind] for kind in DOWNLOADED}), ("user", host, MODEL_FOLDERS))
    lines = []
    for name, root, kinds in sections:
        # A JSON string is a YAML string too, whatever the path contains.
        lines += [f"{name}:", f"  base_path: {json.dumps(str(root / 'models'))}"]
        lines += [f"  {kind}: {json.dumps(chr(10).join(folders or (kind,)))}" for kind, folders in kinds.items()]
    extra_paths_file(base).write_text("\n".join(lines) + "\n", encoding="utf-8")


def host_arguments(base: Path) -> list[str]:
    """Command-line arguments that make a host use a base directory."""
    extra = extra_paths_file(base)
    return ["--base-directory", str(base)] + (["--extra-model-paths-config", str(extra)] if extra.exists() else [])


def link_folder(source: Path, link: Path) -> None:
    """Make `link` show `source`: a symbolic link, else a Windows junction, else a new copy each time."""
    if link.resolve() == source.resolve():
        return
    remove_link(link)
    try:
        link.symlink_to(source, target_is_directory=True)
    except OSError:
        if not make_junction(source, link):
            shutil.copytree(source, link, ignore=NOT_IN_A_COPY)


def remove_link(link: Path) -> None:
    """Remove what link_folder made, never its target."""
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        try:
            link.rmdir()  # a junction, or an empty folder
        except OSError:
            shutil.rmtree(link)


def make_junction(source: Path, link: Path) -> bool:
    """A Windows directory junction, which needs no privilege. False if it cannot be created."""
    if os.name != "nt":
        return False
    command = ["cmd", "/c", "mklink", "/J", str(link), str(source)]
    return subprocess.run(command, capture_output=True).returncode == 0


def add_insightface_pack(base: Path) -> None:
    """Put the pack where the host's face analysis loader looks in a base directory."""
    folder = base / "models" / "insightface" / "models" / INSIGHTFACE_PACK
    folder.mkdir(parents=True, exist_ok=True)
    for file in insightface_pack().iterdir():
        place_file(file, folder / file.name)


def place_file(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy where the file system has no hard links."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        partial = target.with_suffix(".part")
        shutil.copyfile(source, partial)
        os.replace(partial, target)
