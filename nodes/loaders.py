"""Nodes that load models: the adapter with its parts, the miniature, and the InsightFace pack."""

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..dynamicid_core import checkpoint, face_packs
from ..dynamicid_core.comfy_host import folders, loading, miniature
from ..dynamicid_core.comfy_host.progress import download_progress
from ..dynamicid_core.errors import InputError
from ..dynamicid_core.face_detection import DETECTION_SIZE, DETECTION_SIZES, DETECTION_THRESHOLD, DETECTION_THRESHOLDS
from .sockets import CATEGORY, DynamicIDType, FaceAnalysisType, search_aliases

NONE, AUTO = "none", "auto"
_PARTS = ("adapter", "imr", "keypoint_encoder")
# Pack -> the state of its files after a download. Until they change, the fingerprint stays that of before, so that
# ComfyUI does not encode all faces again. It lives as long as ComfyUI's own cache.
_DOWNLOADED: dict[str, list[Any]] = {}


class LoadDynamicID(io.ComfyNode):
    """Loads the adapter and, for editing, the IMR and the keypoint encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        own = folders.list_files(folders.MODELS)
        adapters = folders.file_choices(folders.MODELS, folders.IP_ADAPTERS)
        return io.Schema(
            node_id="DynamicIDLoader",
            display_name="Load DynamicID",
            category=CATEGORY,
            description="Loads an adapter: the face encoder and its semantic-activated attention.",
            inputs=[
                io.Combo.Input(
                    "adapter",
                    options=adapters,
                    default=next(filter(_has_adapter_name, adapters), None),
                    tooltip="The released SAA file or an IP-Adapter FaceID Plus file, from models/dynamicid or "
                    "models/ipadapter. Its type is read from the file itself.",
                ),
                io.Combo.Input(
                    "imr",
                    options=[NONE, *own],
                    default=NONE,
                    optional=True,
                    tooltip="The identity-motion reconfigurator. Only needed for changing expression and pose.",
                ),
                io.Combo.Input(
                    "keypoint_encoder",
                    options=[NONE, *own],
                    default=NONE,
                    optional=True,
                    tooltip="The keypoint encoder that was trained with the IMR. Not needed without an IMR.",
                ),
                io.Combo.Input(
                    "variant",
                    options=[AUTO, *checkpoint.VARIANTS],
                    default=AUTO,
                    optional=True,
                    tooltip="How the adapter was trained. auto reads it from the file where possible. Other files in "
                    "models/ipadapter count as FaceID Plus V2 if their name contains plusv2, as that of the published "
                    "file does, and otherwise as FaceID Plus: the tensors of the two look alike.",
                ),
            ],
            outputs=[
                DynamicIDType.Output(
                    display_name="dynamicid", tooltip="For Encode Face, Edit Expression & Pose and Apply DynamicID."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        """Reports a missing file before anything runs.

        Only for the adapter: the host would blame all inputs that are named here for any of them.
        """
        return adapter is None or folders.check_listed(_folder_of(adapter), adapter)

    @classmethod
    def fingerprint_inputs(cls, **files: Any) -> list[Any]:
        """Changes when a file is replaced under the same name, so that it is loaded again."""
        if any(files.get(part, NONE) is None for part in _PARTS):  # a name is linked
            return [files, *(folders.fingerprint(name, None) for name in (folders.MODELS, folders.IP_ADAPTERS))]
        paths = [_known_path(files.get(part)) for part in _PARTS]
        return [files.get("variant"), *((str(path), path.stat().st_mtime_ns) for path in paths if path is not None)]

    @classmethod
    def execute(cls, adapter: str, imr: str = NONE, keypoint_encoder: str = NONE, variant: str = AUTO) -> io.NodeOutput:
        if variant != AUTO and variant not in checkpoint.VARIANTS:
            raise InputError(f'"{variant}" is not a variant. Choose auto or one of: {", ".join(checkpoint.VARIANTS)}.')
        path = _adapter_path(adapter)
        loaded = checkpoint.read_checkpoint(
            path, checkpoint.ADAPTER, variant=checkpoint.VARIANTS.get(variant), fallback=_fallback_variant(path)
        )
        parts = {
            checkpoint.IMR: _read_part(imr, checkpoint.IMR),
            checkpoint.KEYPOINT_ENCODER: _read_part(keypoint_encoder, checkpoint.KEYPOINT_ENCODER),
        }
        return io.NodeOutput(loading.load_dynamicid(loaded, **parts))


class LoadMiniature(io.ComfyNode):
    """Loads the small model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size = f"{miniature.PICTURE_WIDTH} x {miniature.PICTURE_HEIGHT}"
        return io.Schema(
            node_id="DynamicIDMiniatureLoader",
            display_name="Load Miniature",
            category=CATEGORY,
            description="Loads a complete small model that comes with the pack, for trying every node on any computer "
            "without model files of your own; only the InsightFace pack buffalo_s is downloaded. The model makes "
            f"pictures of computer-rendered people, {size} pixels, and knows few words.",
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip=f"For Apply DynamicID. It works well only at {size} pixels per person.",
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="For CLIP Text Encode. It knows only the words of its training captions.",
                ),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode and VAE Encode."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="For Encode Face."),
                DynamicIDType.Output(
                    display_name="dynamicid",
                    tooltip="For Encode Face, Edit Expression & Pose and Apply DynamicID. It includes the IMR.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        loaded = miniature.load_miniature()
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae, loaded.clip_vision, loaded.dynamicid)


class LoadFaceAnalysis(io.ComfyNode):
    """Loads an InsightFace pack, which detects, recognises and measures faces."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        found = list(_packs())
        packs = found + [name for name in face_packs.DOWNLOADABLE if name not in found]
        return io.Schema(
            node_id="DynamicIDFaceAnalysisLoader",
            display_name="Load Face Analysis",
            category=CATEGORY,
            **search_aliases("insightface", "buffalo_l", "antelopev2"),
            description="Loads an InsightFace pack, which finds and recognises faces in photos.",
            inputs=[
                io.Combo.Input(
                    "pack",
                    options=packs,
                    default="buffalo_l" if "buffalo_l" in packs else packs[0],
                    tooltip="A pack anywhere below models/insightface. DynamicID was trained with buffalo_l. "
                    "InsightFace's own packs are downloaded if they are not there yet (buffalo_s 130 MB, buffalo_l "
                    "290 MB, antelopev2 360 MB; the weights are for non-commercial research).",
                ),
                io.Combo.Input(
                    "provider",
                    options=[AUTO, *face_packs.PROVIDERS],
                    default=AUTO,
                    tooltip="What the pack runs on. auto uses CUDA where onnxruntime-gpu is installed, otherwise the "
                    "CPU, which is fast enough for photos.",
                ),
                io.Int.Input(
                    "detection_size",
                    default=DETECTION_SIZE,
                    min=DETECTION_SIZES[0],
                    max=DETECTION_SIZES[1],
                    step=32,
                    tooltip="The longer side of the photo is shrunk to this many pixels to look for faces. Smaller "
                    "sizes are also tried, for close-ups, and larger ones when nothing is found. Raise it for small "
                    "faces in large group photos.",
                ),
                io.Float.Input(
                    "detection_threshold",
                    default=DETECTION_THRESHOLD,
                    min=DETECTION_THRESHOLDS[0],
                    max=DETECTION_THRESHOLDS[1],
                    step=0.05,
                    optional=True,
                    tooltip="How certain the detector must be. Lower it when a painted or partly covered face is not "
                    "found.",
                ),
            ],
            outputs=[
                FaceAnalysisType.Output(
                    display_name="face_analysis",
                    tooltip="For Encode Face, Face Keypoints, Auto Layout and Compare Faces.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, pack: str, **_: Any) -> list[Any]:
        """Changes when files of the pack are added or replaced, so that it is opened again."""
        packs = _packs()
        states = {name: _state(packs.get(name)) for name in (packs if pack is None else [pack])}  # a link brings None
        return [state for name, state in states.items() if state and state != _DOWNLOADED.get(name)]

    @classmethod
    def execute(
        cls, pack: str, provider: str, detection_size: int, detection_threshold: float = DETECTION_THRESHOLD
    ) -> io.NodeOutput:
        folder = _packs().get(pack)
        if folder is None and pack in face_packs.DOWNLOADABLE:
            folder = face_packs.download_pack(
                pack, folders.model_folders(folders.FACE_ANALYSIS)[0], download_progress()
            )
            _DOWNLOADED[pack] = _state(folder)
        if folder is None:
            raise InputError(
                f'There is no InsightFace pack "{pack}". Looked for folders with .onnx files below '
                f"{', '.join(folders.model_folders(folders.FACE_ANALYSIS))}. Choose buffalo_l to have it downloaded."
            )
        return io.NodeOutput(face_packs.open_pack(folder, provider, detection_size, detection_threshold))


def _state(folder: Path | None) -> list[Any]:
    """The files of a pack with their modification times."""
    files = face_packs.pack_models(folder) if folder else []
    return [(str(file), file.stat().st_mtime_ns) for file in files]


def _packs() -> dict[str, Path]:
    return face_packs.find_packs(folders.model_folders(folders.FACE_ANALYSIS))


def _adapter_path(file: str) -> Path:
    return folders.find_file(_folder_of(file), file)


def _folder_of(file: Any) -> str:
    is_own = file in folders.list_files(folders.MODELS) or file not in folders.list_files(folders.IP_ADAPTERS)
    return folders.MODELS if is_own else folders.IP_ADAPTERS


def _has_adapter_name(file: str) -> bool:
    """For the default of a new node: the files are too large to read them all."""
    return any(word in file.lower() for word in ("saa", "adapter", "faceid"))


def _fallback_variant(path: Path) -> checkpoint.Variant:
    """The variant of an adapter whose tensors do not show it."""
    if not any(path.is_relative_to(folder) for folder in folders.model_folders(folders.IP_ADAPTERS)):
        return checkpoint.DYNAMICID
    is_v2 = "plusv2" in path.name.lower().replace("-", "").replace("_", "")
    return checkpoint.FACEID_PLUS_V2 if is_v2 else checkpoint.FACEID_PLUS


def _known_path(file: str | None) -> Path | None:
    try:
        return None if file in (None, NONE) else _adapter_path(str(file))
    except InputError:
        return None  # execute reports it


def _read_part(file: str, part: str) -> checkpoint.Checkpoint | None:
    return None if file == NONE else checkpoint.read_checkpoint(folders.find_file(folders.MODELS, file), part)
