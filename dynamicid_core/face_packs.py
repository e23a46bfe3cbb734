"""InsightFace packs: finds, downloads and opens them, and knows which recognition model each has.

InsightFace, OpenCV and onnxruntime are imported only when a pack is opened, so that every node exists without them.
"""

import fnmatch
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from . import downloads
from .downloads import Report
from .errors import InputError, check_range
from .face_analysis import DETECTION, RECOGNITION, FaceAnalysis
from .face_detection import DETECTION_SIZE, DETECTION_SIZES, DETECTION_THRESHOLD, DETECTION_THRESHOLDS
from .installed import import_failure, warn_about_two_onnxruntimes

DOWNLOADABLE = ("buffalo_l", "antelopev2", "buffalo_s")
"""Packs that InsightFace publishes and that have all four models."""

RECOGNITION_PACKS = {"w600k_r50": "buffalo_l", "glintr100": "antelopev2", "w600k_mbf": "buffalo_s"}
"""Recognition model, by file name -> the pack that has it. See ``check_recognition``."""

PROVIDERS = {
    "CPU": "CPUExecutionProvider",
    "CUDA": "CUDAExecutionProvider",
    "CoreML": "CoreMLExecutionProvider",
    "DirectML": "DmlExecutionProvider",
}

DEFAULT_PACK = Path.home() / ".insightface" / "models" / "buffalo_l"
"""InsightFace's own folder of the pack that DynamicID was trained with."""

_PACKAGE_PROVIDERS = {"onnxruntime-gpu": PROVIDERS["CUDA"], "onnxruntime-directml": PROVIDERS["DirectML"]}
_MODEL = "[!.]*.onnx"  # macOS puts a ._ file beside each file on foreign disks and into archives
_UNPACKING = ".unpacking"
_LOCK_PAUSE = 0.2  # seconds

_log = logging.getLogger(__name__)


def check_recognition(needed: str, given: str, whose: str) -> None:
    """Raises InputError if both recognition models are known by name and differ: their embeddings cannot be compared.

    A renamed file passes. whose: the beginning of the message, as in "The adapter was trained".
    """
    if needed in RECOGNITION_PACKS and given in RECOGNITION_PACKS and needed != given:
        raise InputError(
            f"{whose} with the recognition model {needed}; the InsightFace pack has {given}. Choose the "
            f"pack {RECOGNITION_PACKS[needed]}."
        )


def find_packs(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Pack name -> folder with its .onnx files, at any depth below the given folders.

    The name is the folder's own; if another pack has it, the path below the given folder. A given folder is a pack
    itself only if there is none below it, since other tools put single models beside packs.
    """
    packs: dict[str, Path] = {}
    for root in map(Path, folders):
        found = sorted(_folders_with_models(root))
        for folder in [folder for folder in found if folder != root] or found:
            name = folder.name if folder.name not in packs else folder.relative_to(root).as_posix()
            packs.setdefault(name, folder)
    return packs


def _folders_with_models(root: Path) -> Iterator[Path]:
    """Folders with models, except those of ``_unpack`` and macOS, each once."""
    visited = set()
    for place, below, files in os.walk(root, followlinks=True):  # model folders are often links to another disk
        real = os.path.realpath(place)
        if real in visited:  # a link may lead back up
            below.clear()
            continue
        visited.add(real)
        below[:] = [name for name in below if not name.endswith((_UNPACKING, "__MACOSX"))]
        if fnmatch.filter(files, _MODEL):
            yield Path(place)


def pack_models(folder: Path) -> list[Path]:
    """The model files of a pack."""
    return sorted(folder.glob(_MODEL))


def find_pack(folder: str | Path) -> Path:
    """The only InsightFace pack in a folder, at any depth. Raises InputError if there is none or more than one."""
    packs = find_packs([folder])
    if len(packs) == 1:
        return next(iter(packs.values()))
    if packs:
        raise InputError(f"{folder} holds several InsightFace packs: {', '.join(sorted(packs))}. Name one with --pack.")
    raise InputError(
        f"There is no InsightFace pack in {folder}. Name the folder of one with --pack; ComfyUI's are in "
        "models/insightface/models, and InsightFace's release page has buffalo_l to download."
    )


def model_sizes(folder: Path) -> dict[str, int]:
    """The sizes of a pack's model files in bytes, by which a data set identifies the pack that measured it."""
    return {file.name: file.stat().st_size for file in pack_models(folder)}


def open_pack(
    folder: str | Path,
    provider: str,
    detection_size: int = DETECTION_SIZE,
    threshold: float = DETECTION_THRESHOLD,
    threads: int | None = None,
) -> FaceAnalysis:
    """Opens the models in a folder, whatever their file names are.

    provider: "auto" or one of PROVIDERS; one that is not installed falls back to the CPU with a warning. threshold: the
    detector's certainty below which a face does not count. threads: how many each model uses on the CPU; None for one
    per core, which is too many when several processes do the same.
    """
    check_range("detection_size", detection_size, *DETECTION_SIZES)
    check_range("detection_threshold", threshold, *DETECTION_THRESHOLDS)
    get_model = _import_insightface()
    folder = Path(folder)
    providers = choose_providers(provider)
    session = {} if threads is None else {"sess_options": _session_options(threads)}
    models: dict[str, Any] = {}
    for file in sorted(pack_models(folder), key=lambda file: file.stem not in RECOGNITION_PACKS):
        try:
            model = get_model(str(file), providers=providers, **session)
        except Exception as error:  # onnxruntime's own types are not public
            if not type(error).__module__.startswith("onnxruntime"):
                _log.warning("%s is left out: InsightFace does not know such models (%s)", file, error)
                continue
            raise InputError(
                f"{file.name} could not be opened; usually a download was cut off. Delete the .onnx files in {folder} "
                f"and run again: InsightFace's own packs are then downloaded again. Copy other packs again. ({error})"
            ) from error
        if model is not None and models.setdefault(model.taskname, model) is not model:
            _log.warning("%s is left out: the pack has a model for %s already", file, model.taskname)
    _check_complete(folder, models)
    models[DETECTION].prepare(0, input_size=(detection_size, detection_size), det_thresh=threshold)
    used = models[DETECTION].session.get_providers()[0]
    if used != providers[0]:
        _log.warning("onnxruntime could not start %s (its own messages say why); using %s", providers[0], used)
    _log.info("InsightFace pack %s opened on %s with %s", folder.name, used, ", ".join(sorted(models)))
    return FaceAnalysis(models, detection_size)


def _check_complete(folder: Path, models: Mapping[str, Any]) -> None:
    """Raises InputError unless the opened models of a pack, by task, can detect and recognise faces."""
    missing = [task for task in (DETECTION, RECOGNITION) if task not in models]
    if not missing:
        return
    again = f"Delete the .onnx files in {folder} and run again to fetch a new copy."
    raise InputError(
        f"The InsightFace pack in {folder} has no {' and no '.join(missing)} model (found: "
        f"{', '.join(sorted(models)) or 'none'}). "
        f"{again if folder.name in DOWNLOADABLE else 'Use a whole pack, such as buffalo_l.'}"
    )


def download_pack(name: str, root: str | Path, report: Report = lambda done, whole: None) -> Path:
    """Fetches a pack that InsightFace publishes into ``root``/models/``name`` and returns that folder.

    An archive that is already there, from InsightFace or a browser, is not downloaded again. report: see
    ``downloads.fetch``; an exception from it stops the download, which resumes next time. While another process
    downloads the same pack, this one waits for it.
    """
    _import_insightface()
    folder = Path(root) / "models" / name
    with _only_one_at_a_time(folder, report):
        return folder if pack_models(folder) else _download_pack(name, folder, report)


@contextmanager
def _only_one_at_a_time(folder: Path, report: Report) -> Iterator[None]:
    """Keeps other processes from downloading the pack meanwhile. If a process is killed, its lock is released."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    waits = False
    with suppress(OSError):  # the download says what is wrong with the folder
        folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not waits:
                _log.info("Waiting: another process is downloading the InsightFace pack %s", folder.name)
            waits = True
        except (OSError, NotImplementedError) as error:  # a file system without locks, as on some network disks
            _log.debug("%s cannot be locked: %s", folder.parent, error)
            break
        report(0, 0)
        time.sleep(_LOCK_PAUSE)
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows deletes no open file
                os.unlink(lock.lock_file)
            lock.release()


def _download_pack(name: str, folder: Path, report: Report) -> Path:
    from insightface.utils import storage

    theirs, ours = (folder.with_name(file) for file in (f"{name}.zip", f".{name}.zip"))
    archive = theirs if zipfile.is_zipfile(theirs) else ours
    try:
        if not zipfile.is_zipfile(archive):
            _log.info("Downloading the InsightFace pack %s (its weights are for non-commercial research)", name)
            downloads.fetch(f"{storage.BASE_REPO_URL}/{theirs.name}", ours, report)
        _unpack(archive, folder)
    except zipfile.BadZipFile as error:
        ours.unlink(missing_ok=True)
        raise InputError(
            f"{theirs.name} is damaged ({error}). Delete it if it is in {folder.parent}, and run again to fetch a new "
            "copy."
        ) from error
    except (InputError, OSError) as error:  # of requests and of the disk: the remedy is the same
        raise InputError(
            f"The InsightFace pack {name} could not be downloaded ({error}). Run again to resume the download, or "
            f"download {theirs.name} by hand from InsightFace's release page and put it into {folder.parent}."
        ) from error
    with suppress(OSError):  # another program may have it open
        ours.unlink(missing_ok=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Puts the models of an archive, at any depth, into a folder: all of them or none."""
    unpacking = folder.with_name(folder.name + _UNPACKING)
    everything, models = unpacking / "everything", unpacking / "models"
    shutil.rmtree(unpacking, ignore_errors=True)
    try:
        _extract(archive, everything)
        models.mkdir()
        for place in _folders_with_models(everything):
            for model in pack_models(place):
                os.replace(model, models / model.name)
        if not pack_models(models):
            raise zipfile.BadZipFile("it has no .onnx file")
        _move_all(models, folder)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    """Extracts an archive. Raises BadZipFile for anything wrong with it."""
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    except (OSError, zipfile.BadZipFile):
        raise
    except Exception as error:  # a damaged archive makes zipfile raise nearly anything; RuntimeError: a password
        raise zipfile.BadZipFile(str(error) or "it ends too early") from error


def _move_all(source: Path, target: Path) -> None:
    """Moves a folder's files into another folder, which may not exist yet: all of them or none."""
    with suppress(OSError):  # an empty one, left by a download
        target.rmdir()
    if not os.path.lexists(target):
        os.replace(source, target)
        return
    moved: list[Path] = []
    try:
        for file in sorted(source.iterdir()):
            moved.append(target / file.name)
            shutil.move(file, moved[-1])  # the folder may be a link to another disk
    except BaseException:
        for file in moved:
            with suppress(OSError):
                file.unlink()
        raise


def choose_providers(provider: str) -> list[str]:
    """The onnxruntime providers to use, the CPU last. Raises InputError for an unknown name."""
    if provider != "auto" and provider not in PROVIDERS:
        raise InputError(f'"{provider}" is not an execution provider. Choose auto or one of: {", ".join(PROVIDERS)}.')
    _import_insightface()
    import onnxruntime

    available = set(onnxruntime.get_available_providers())
    cpu = PROVIDERS["CPU"]
    # CoreML and DirectML compile for each input size, which costs more than it saves on single photos.
    wanted = PROVIDERS["CUDA"] if provider == "auto" else PROVIDERS[provider]
    if wanted in available:
        return [wanted, cpu] if wanted != cpu else [cpu]
    if provider != "auto":
        _log.warning("onnxruntime has no %s here (it has %s); using the CPU", wanted, ", ".join(sorted(available)))
    warn_about_two_onnxruntimes({of: lost for of, lost in _PACKAGE_PROVIDERS.items() if lost not in available})
    return [cpu]


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options


def _import_insightface() -> Any:
    try:
        from insightface.model_zoo import get_model
    except Exception as error:  # incompatible or incomplete packages may raise anything
        raise import_failure("Face analysis", "insightface", error) from error
    return get_model
