"""InsightFace packs: finding, downloading and opening them, and which recognition model belongs to which.

InsightFace, OpenCV and onnxruntime are imported when a pack is opened, so that a machine without them still has every
node.
"""

import fnmatch
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import downloads
from .downloads import Report
from .errors import InputError, check_between
from .face_analysis import DETECTION, RECOGNITION, FaceAnalysis
from .face_detection import DETECTION_SIZE, DETECTION_SIZES, DETECTION_THRESHOLD, DETECTION_THRESHOLDS
from .installed import not_importable, warn_of_two_onnxruntimes

DOWNLOADABLE = ("buffalo_l", "antelopev2", "buffalo_s")
"""Packs that InsightFace publishes and that have all four models."""

PACK_OF = {"w600k_r50": "buffalo_l", "glintr100": "antelopev2", "w600k_mbf": "buffalo_s"}
"""Recognition models by the names of their files -> the pack that has them. See ``check_recognition``."""

PROVIDERS = {
    "CPU": "CPUExecutionProvider",
    "CUDA": "CUDAExecutionProvider",
    "CoreML": "CoreMLExecutionProvider",
    "DirectML": "DmlExecutionProvider",
}

OWN_PACK = Path.home() / ".insightface" / "models" / "buffalo_l"
"""Where InsightFace itself keeps the pack that DynamicID was trained with."""

_BROUGHT_BY = {"onnxruntime-gpu": PROVIDERS["CUDA"], "onnxruntime-directml": PROVIDERS["DirectML"]}
_MODEL = "[!.]*.onnx"  # macOS puts a ._ file beside each file on disks that are not its own, and into archives
_UNPACKING = ".unpacking"

_log = logging.getLogger(__name__)


def check_recognition(needed: str, given: str, whose: str) -> None:
    """Embeddings of two recognition models have nothing in common: raises InputError when both are known by name, and
    differ. A file that somebody renamed passes.

    whose: the beginning of the message, as in "The adapter was trained".
    """
    if needed in PACK_OF and given in PACK_OF and needed != given:
        raise InputError(
            f"{whose} with the recognition model {needed}; the InsightFace pack has {given}. Choose the "
            f"pack {PACK_OF[needed]}."
        )


def find_packs(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Pack name -> folder that holds its .onnx files directly, at any depth below the given folders.

    The name is the folder's own; where two share it, the path below the given folder is used. A given folder is a pack
    itself when none is below it: beside packs, other tools put single models there.
    """
    packs: dict[str, Path] = {}
    for root in map(Path, folders):
        found = sorted(_with_models(root))
        for folder in [folder for folder in found if folder != root] or found:
            name = folder.name if folder.name not in packs else folder.relative_to(root).as_posix()
            packs.setdefault(name, folder)
    return packs


def _with_models(root: Path) -> Iterator[Path]:
    """Folders with models, but for those of ``_unpack`` and macOS' own."""
    for place, below, files in os.walk(root, followlinks=True):  # model folders are often links to another disk
        below[:] = [name for name in below if not name.endswith((_UNPACKING, "__MACOSX"))]
        if fnmatch.filter(files, _MODEL):
            yield Path(place)


def pack_models(folder: Path) -> list[Path]:
    """The model files of a pack."""
    return sorted(folder.glob(_MODEL))


def find_pack(folder: str | Path) -> Path:
    """The one InsightFace pack in a folder, at any depth. Raises InputError when there is none, or more than one."""
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
    """The model files of a pack and their bytes, by which a data set knows with what it was measured."""
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
    check_between("detection_size", detection_size, *DETECTION_SIZES)
    check_between("detection_threshold", threshold, *DETECTION_THRESHOLDS)
    get_model = _import_insightface()
    folder = Path(folder)
    providers = choose_providers(provider)
    session = {} if threads is None else {"sess_options": _session_options(threads)}
    models: dict[str, Any] = {}
    for file in sorted(pack_models(folder), key=lambda file: file.stem not in PACK_OF):
        try:
            model = get_model(str(file), providers=providers, **session)
        except Exception as error:  # onnxruntime raises its own types, which are no public API
            if not type(error).__module__.startswith("onnxruntime"):
                _log.warning("%s is left out: InsightFace does not know such models (%s)", file, error)
                continue
            raise InputError(
                f"{file.name} could not be opened; usually a download was cut off. Delete the .onnx files in {folder} "
                f"and run again: InsightFace's own packs are then downloaded again. Copy other packs again. ({error})"
            ) from error
        if model is not None and models.setdefault(model.taskname, model) is not model:
            _log.warning("%s is left out: the pack has a model for %s already", file, model.taskname)
    _check_whole(folder, models)
    models[DETECTION].prepare(0, input_size=(detection_size, detection_size), det_thresh=threshold)
    used = models[DETECTION].session.get_providers()[0]
    if used != providers[0]:
        _log.warning("onnxruntime could not start %s (its own messages say why); using %s", providers[0], used)
    _log.info("InsightFace pack %s opened on %s with %s", folder.name, used, ", ".join(sorted(models)))
    return FaceAnalysis(models, detection_size)


def _check_whole(folder: Path, models: Mapping[str, Any]) -> None:
    """Raises InputError unless the opened models of a pack, by their tasks, find and recognise faces."""
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

    An archive that is there already, of InsightFace or from a browser, is not fetched again. report: see
    ``downloads.fetch``; what it raises stops the download, which goes on the next time.
    """
    _import_insightface()
    from insightface.utils import storage

    folder = Path(root) / "models" / name
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
    except (InputError, OSError) as error:  # of requests and of the disk: there is one thing to do about all of them
        raise InputError(
            f"The InsightFace pack {name} could not be downloaded ({error}). Run again to resume the download, or "
            f"download {theirs.name} by hand from InsightFace's release page and put it into {folder.parent}."
        ) from error
    with suppress(OSError):  # somebody may be looking at it
        ours.unlink(missing_ok=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Puts the models in an archive, at whatever depth, into a folder: all of them or none."""
    unpacking = folder.with_name(folder.name + _UNPACKING)
    everything, models = unpacking / "everything", unpacking / "models"
    shutil.rmtree(unpacking, ignore_errors=True)
    try:
        _extract(archive, everything)
        models.mkdir()
        for place in _with_models(everything):
            for model in pack_models(place):
                os.replace(model, models / model.name)
        if not pack_models(models):
            raise zipfile.BadZipFile("it has no .onnx file")
        _move_all(models, folder)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    """Raises BadZipFile for whatever is wrong with an archive."""
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    except (zlib.error, EOFError, RuntimeError) as error:  # the last: a password, or a compression that Python lacks
        raise zipfile.BadZipFile(str(error) or "it ends too early") from error


def _move_all(source: Path, target: Path) -> None:
    """Moves a folder's files to where a folder is to have them. When one cannot be moved, none is there."""
    with suppress(OSError):  # an empty one that a download left
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
    """The onnxruntime providers to ask for, the CPU always last. Raises InputError for an unknown name."""
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
    warn_of_two_onnxruntimes({of: lost for of, lost in _BROUGHT_BY.items() if lost not in available})
    return [cpu]


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options


def _import_insightface() -> Any:
    try:
        from insightface.model_zoo import get_model
    except Exception as error:  # packages that do not fit each other, or of which parts are missing, raise anything
        raise not_importable("Face analysis", "insightface", error) from error
    return get_model
