"""Faces in photographs, by InsightFace: where they are, whose they are, their 106 keypoints and their head pose.

InsightFace, OpenCV and onnxruntime are imported when a pack is opened, so that a machine without them still has every
node.
"""

import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, not_importable
from .images import Photo

DETECTION, RECOGNITION, KEYPOINTS, POSE = "detection", "recognition", "landmark_2d_106", "landmark_3d_68"
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
ALIGNED_SIZE = 112
_BORDER = 0.5  # of the longer side, for faces that fill the picture
_SMALLEST_DETECTION = 160
_GRAIN = 32  # pixels: the detector takes multiples of it
_SMALL_FACE = 40  # pixels of width, below which ArcFace tells people apart less well

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """A face found in a photo, in pixels of that photo.

    box: [4] x0, y0, x1, y1. score: the detector's certainty, 0 to 1. landmarks: [5, 2] eyes, nose, mouth corners.
    keypoints: [106, 2] or None, when the pack has no model for them. pose: [3] pitch, yaw, roll in degrees, likewise.
    """

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    keypoints: NDArray[np.float32] | None = None
    pose: NDArray[np.float32] | None = None

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))

    @property
    def centre(self) -> tuple[float, float]:
        """Of the box, (x, y)."""
        return float(self.box[0] + self.box[2]) / 2, float(self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, eq=False)
class ChosenFace:
    """All faces of a photo in the order asked for, and the one at the index asked for."""

    faces: list[DetectedFace]
    chosen: DetectedFace


ORDERS = ("largest", "left to right", "right to left", "top to bottom", "nearest to the centre", "most certain")


def in_order(faces: Iterable[DetectedFace], order: str, photo: Photo) -> list[DetectedFace]:
    """The faces sorted by one of ORDERS."""
    middle = (photo.shape[1] / 2, photo.shape[0] / 2)
    keys = {
        "largest": lambda face: -face.area,
        "left to right": lambda face: face.centre[0],
        "right to left": lambda face: -face.centre[0],
        "top to bottom": lambda face: face.centre[1],
        "nearest to the centre": lambda face: math.dist(face.centre, middle),
        "most certain": lambda face: -face.score,
    }
    if order not in keys:
        raise InputError(f'"{order}" is no order of faces. Choose one of: {", ".join(ORDERS)}.')
    return sorted(faces, key=keys[order])


class FaceAnalysis:
    """An opened InsightFace pack."""

    def __init__(self, models: dict[str, Any], detection_size: int = 640) -> None:
        """models: InsightFace models by task; detection and recognition are needed (``open_pack`` checks).

        detection_size: pixels, rounded down to a multiple of 32.
        """
        self._models = models
        self._detection_size = max(_GRAIN, detection_size // _GRAIN * _GRAIN)

    @property
    def recognition(self) -> str:
        """The name of the recognition model's file, without its ending."""
        return self.recognition_file.stem

    @property
    def recognition_file(self) -> Path:
        """The recognition model's file."""
        return Path(getattr(self._models[RECOGNITION], "model_file", ""))

    def detect(self, photo: Photo) -> list[DetectedFace]:
        """All faces of a photo; tries smaller detection sizes, then a border around the picture, before giving up."""
        bgr = _bgr(photo)
        for size in self._sizes():
            found = self._detect_at(bgr, size)
            if found:
                return found
        return self._detect_with_border(bgr)

    def choose(self, photo: Photo, order: str, index: int, number: int = 1, total: int = 1) -> ChosenFace:
        """The face at ``index`` in the given order. number, total: which photo of how many this is, for messages."""
        faces = in_order(self.detect(photo), order, photo)
        which = f"photo {number} of {total}" if total > 1 else "the photo"
        height, width = photo.shape[:2]
        if not faces:
            sizes = ", ".join(str(size) for size in self._sizes())
            raise InputError(
                f"No face found in {which} ({width} x {height}). Tried detection at {sizes} pixels and with a border "
                f"added. Use a picture in which one face is sharp and at least {_SMALL_FACE} pixels wide, or lower the "
                "detection threshold in Load Face Analysis."
            )
        if not 0 <= index < len(faces):
            raise InputError(
                f"There is no face {index} in {which} ({width} x {height}): {len(faces)} found, so the index goes from "
                f"0 to {len(faces) - 1} ({order}). Index 0 shows their numbers in the preview."
            )
        if len(faces) > 1:
            _log.info("%s shows %d faces; took number %d, %s", which.capitalize(), len(faces), index, order)
        across = float(faces[index].box[2] - faces[index].box[0])
        if across < _SMALL_FACE:
            _log.warning("The face in %s is only %d pixels wide: too few to know a person well by", which, across)
        return ChosenFace(faces, faces[index])

    def embed(self, photo: Photo, face: DetectedFace, channel_order: str = "bgr") -> NDArray[np.float32]:
        """The ArcFace embedding [512] of a face, of length 1.

        channel_order: "bgr" as ArcFace was trained, "rgb" with red and blue swapped, as the released DynamicID saw it.
        """
        seen = _bgr(photo) if channel_order == "bgr" else np.ascontiguousarray(photo)
        feature = self._models[RECOGNITION].get_feat(_norm_crop(seen, face.landmarks, ALIGNED_SIZE)).flatten()
        return (feature / np.linalg.norm(feature)).astype(np.float32)

    def _sizes(self) -> list[int]:
        sizes = [self._detection_size]
        while (half := sizes[-1] // 2 // _GRAIN * _GRAIN) >= _SMALLEST_DETECTION:
            sizes.append(half)
        return sizes

    def _detect_at(self, bgr: Photo, size: int) -> list[DetectedFace]:
        if min(bgr.shape[:2]) * size < max(bgr.shape[:2]):
            return []  # so narrow that nothing would be left of it
        boxes, landmarks = self._models[DETECTION].detect(bgr, input_size=(size, size))
        return [self._measure(bgr, box, points) for box, points in zip(boxes, landmarks, strict=True)]

    def _detect_with_border(self, bgr: Photo) -> list[DetectedFace]:
        margin = round(max(bgr.shape[:2]) * _BORDER)
        bordered = np.pad(bgr, ((margin, margin), (margin, margin), (0, 0)))
        boxes, landmarks = self._models[DETECTION].detect(bordered, input_size=(self._detection_size,) * 2)
        shift = np.array([margin, margin, margin, margin, 0], np.float32)
        return [self._measure(bgr, box - shift, points - margin) for box, points in zip(boxes, landmarks, strict=True)]

    def _measure(self, bgr: Photo, box: NDArray[np.float32], landmarks: NDArray[np.float32]) -> DetectedFace:
        from insightface.app.common import Face as InsightFace

        face = InsightFace(bbox=box[:4], kps=landmarks, det_score=float(box[4]))
        for task in (KEYPOINTS, POSE):
            if task in self._models:
                self._models[task].get(bgr, face)
        return DetectedFace(box[:4], float(box[4]), landmarks, face.get(KEYPOINTS), face.get("pose"))


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


def align(photo: Photo, face: DetectedFace, size: int) -> Photo:
    """The face turned upright and scaled as ArcFace wants it, [size, size, 3]; what FaceID Plus shows to CLIP."""
    return _norm_crop(photo, face.landmarks, size)


def find_packs(folders: Iterable[str | Path]) -> dict[str, Path]:
    """Pack name -> folder that holds its .onnx files directly, at any depth below the given folders.

    The name is the folder's own; where two share it, the path below the given folder is used. A given folder is a pack
    itself when none is below it: beside packs, other tools put single models there.
    """
    packs: dict[str, Path] = {}
    for root in map(Path, folders):
        walk = os.walk(root, followlinks=True)  # model folders are often links to another disk
        found = sorted(Path(place) for place, _, files in walk if any(name.endswith(".onnx") for name in files))
        for folder in [folder for folder in found if folder != root] or found:
            name = folder.name if folder.name not in packs else folder.relative_to(root).as_posix()
            packs.setdefault(name, folder)
    return packs


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


def open_pack(
    folder: str | Path, provider: str, detection_size: int = 640, threshold: float = 0.5, threads: int | None = None
) -> FaceAnalysis:
    """Opens the models in a folder, whatever their file names are.

    provider: "auto" or one of PROVIDERS; one that is not installed falls back to the CPU with a warning. threshold: the
    detector's certainty below which a face does not count. threads: how many each model uses on the CPU; None for one
    per core, which is too many when several processes do the same.
    """
    get_model = _import_insightface()
    folder = Path(folder)
    providers = choose_providers(provider)
    session = {} if threads is None else {"sess_options": _session_options(threads)}
    models: dict[str, Any] = {}
    for file in sorted(folder.glob("*.onnx"), key=lambda file: (file.stem not in PACK_OF, file.name)):
        try:
            model = get_model(str(file), providers=providers, **session)
        except Exception as error:  # onnxruntime raises its own types, which are no public API
            if not type(error).__module__.startswith("onnxruntime"):
                _log.warning("%s is left out: InsightFace does not know such models (%s)", file, error)
                continue
            raise InputError(
                f"{file.name} could not be opened; most often a download was cut off. Delete the .onnx files in "
                f"{folder} and run again, which downloads packs of InsightFace anew; copy other packs again. ({error})"
            ) from error
        if model is not None and models.setdefault(model.taskname, model) is not model:
            _log.warning("%s is left out: the pack has a model for %s already", file, model.taskname)
    missing = [task for task in (DETECTION, RECOGNITION) if task not in models]
    if missing:
        raise InputError(
            f"The InsightFace pack in {folder} has no {' and no '.join(missing)} model (found: "
            f"{', '.join(sorted(models)) or 'none'}). Use a whole pack, such as buffalo_l."
        )
    models[DETECTION].prepare(0, input_size=(detection_size, detection_size), det_thresh=threshold)
    used = models[DETECTION].session.get_providers()[0]
    if used != providers[0]:
        _log.warning("onnxruntime could not start %s (its own messages say why); it uses %s", providers[0], used)
    _log.info("InsightFace pack %s opened on %s with %s", folder.name, used, ", ".join(sorted(models)))
    return FaceAnalysis(models, detection_size)


def download_pack(name: str, root: str | Path) -> Path:
    """Fetches a pack with InsightFace's own downloader into ``root``/models/``name`` and returns the folder with its
    models.
    """
    _import_insightface()
    from insightface.utils.storage import download

    _log.info("Downloading the InsightFace pack %s (its weights are for non-commercial research)", name)
    try:
        # Forced: a download that was cut off leaves an empty folder, which it would take for the pack.
        download("models", name, force=True, root=str(root))
    except Exception as error:  # requests, zipfile and OSError alike: there is one thing to do about all of them
        raise InputError(
            f"The InsightFace pack {name} could not be downloaded ({error}). Download it by hand from InsightFace's "
            f"release page and unpack it into {Path(root) / 'models' / name}."
        ) from error
    found = find_packs([Path(root) / "models" / name])
    if not found:
        raise InputError(f"InsightFace's download of {name} left no .onnx file in {Path(root) / 'models' / name}.")
    return next(iter(found.values()))


def choose_providers(provider: str) -> list[str]:
    """The onnxruntime providers to ask for, the CPU always last. Raises InputError for an unknown name."""
    if provider != "auto" and provider not in PROVIDERS:
        raise InputError(f'"{provider}" is no execution provider. Choose auto or one of: {", ".join(PROVIDERS)}.')
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
    return [cpu]


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options


def _import_insightface() -> Any:
    try:
        from insightface.model_zoo import get_model
    except ImportError as error:
        raise not_importable("Face analysis", "insightface", error) from error
    return get_model


def _norm_crop(image: Photo, landmarks: Sequence[Any] | NDArray[np.float32], size: int) -> Photo:
    from insightface.utils import face_align

    return face_align.norm_crop(image, landmark=np.asarray(landmarks), image_size=size)


def _bgr(photo: Photo) -> Photo:
    return np.ascontiguousarray(photo[..., ::-1])
