"""Nodes that encode, mix, save and load faces."""

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..dynamicid_core import files, images
from ..dynamicid_core.comfy_host import encoding, folders
from ..dynamicid_core.comfy_host.loading import DynamicID
from ..dynamicid_core.face import MAX_WEIGHT, MIX_METHODS, Face, load_face, mix_faces, save_face
from ..dynamicid_core.face_analysis import FaceAnalysis
from .sockets import (
    CATEGORY,
    HAS_PREVIEW,
    DynamicIDType,
    FaceAnalysisType,
    FaceType,
    check_dynamicid,
    check_face,
    check_face_analysis,
    connected_faces,
    face_choice_inputs,
    face_inputs,
    search_aliases,
)

MAX_MIXED_FACES = 4


class EncodeFace(io.ComfyNode):
    """Encodes one person from one or several photos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDEncodeFace",
            display_name="Encode Face",
            category=CATEGORY,
            **search_aliases("face id", "insightface", "arcface", "face embedding"),
            description="Encodes the person in a photo as a face: identity tokens that the model can follow.",
            is_output_node=HAS_PREVIEW,
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="A photo of the person. A batch counts as several photos of one person, which are "
                    "averaged.",
                ),
                DynamicIDType.Input("dynamicid", tooltip="From Load DynamicID."),
                FaceAnalysisType.Input("face_analysis", tooltip="From Load Face Analysis."),
                io.ClipVision.Input("clip_vision", tooltip="CLIP ViT-H/14 (laion2B), from Load CLIP Vision."),
                *face_choice_inputs(),
                io.Combo.Input(
                    "crop",
                    options=list(encoding.CROPS),
                    default="auto",
                    tooltip="What CLIP sees: portrait (head and upper shoulders), aligned (the face alone, turned "
                    "upright), or the central square of the whole picture. auto is what the adapter was trained with.",
                ),
            ],
            outputs=[
                FaceType.Output(
                    display_name="face", tooltip="For Apply DynamicID, Edit Expression & Pose, Place Face or Save Face."
                ),
                io.Image.Output(
                    display_name="preview",
                    tooltip="For each photo: the faces found, what CLIP sees, and what ArcFace sees.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        dynamicid: DynamicID,
        face_analysis: FaceAnalysis,
        clip_vision: Any,
        order: str,
        index: int,
        crop: str,
    ) -> io.NodeOutput:
        check_dynamicid(dynamicid)
        check_face_analysis(face_analysis)
        photos = images.photos_from_image(image)
        face, previews = encoding.encode_photos(dynamicid, face_analysis, clip_vision, photos, order, index, crop)
        preview = images.to_image(previews)
        return io.NodeOutput(face, preview, ui=ui.PreviewImage(preview))


class MixFaces(io.ComfyNode):
    """Mixes several faces into one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        weights = [
            io.Float.Input(
                f"weight_{i}",
                default=1.0,
                min=0.0,
                max=MAX_WEIGHT,
                step=0.01,
                tooltip=f"How much of face {i}. 0 leaves it out; unconnected faces are ignored.",
            )
            for i in range(1, MAX_MIXED_FACES + 1)
        ]
        return io.Schema(
            node_id="DynamicIDAverageFaces",
            display_name="Mix Faces",
            category=CATEGORY,
            **search_aliases("average faces", "merge faces", "blend faces"),
            description="Mixes up to four faces into one: the average of several people, or of several photos of one "
            "person.",
            inputs=[
                *face_inputs(MAX_MIXED_FACES, "A face to mix."),
                *weights,
                io.Combo.Input(
                    "method",
                    options=list(MIX_METHODS),
                    default=MIX_METHODS[0],
                    tooltip="tokens: the weighted mean. attention: all tokens side by side, their attention scaled by "
                    "the unnormalised weights, which is the released model's identity mix (use 0.5 and 0.5).",
                ),
            ],
            outputs=[FaceType.Output(display_name="face", tooltip="For Apply DynamicID, Place Face or Save Face.")],
        )

    @classmethod
    def execute(cls, method: str, **inputs: Any) -> io.NodeOutput:
        faces = {name: face for name, face in inputs.items() if name.startswith("face_") and face is not None}
        names = [name.replace("face_", "weight_") for name in sorted(faces)]
        weights = [inputs[name] for name in names]
        return io.NodeOutput(mix_faces(connected_faces(faces), weights, method, names))


class SaveFace(io.ComfyNode):
    """Saves a face for other workflows and other users."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDSaveFace",
            display_name="Save Face",
            category=CATEGORY,
            **search_aliases("save face model", "save face embedding"),
            description="Saves a face to models/dynamicid/faces. The photo is then no longer needed.",
            is_output_node=True,
            inputs=[
                FaceType.Input("face", tooltip="From Encode Face, Mix Faces or Edit Expression & Pose."),
                io.String.Input(
                    "name",
                    default="face",
                    tooltip="File name without extension. If a different face already has the name, it is kept and "
                    "the new one gets a number.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name to choose in Load Face.")],
        )

    @classmethod
    def execute(cls, face: Face, name: str) -> io.NodeOutput:
        check_face(face)
        folder = folders.model_folders(folders.FACES)[0]
        file = save_face(face, folder, name).relative_to(folder).as_posix()
        return io.NodeOutput(file, ui=ui.PreviewText(f"Saved as {file}"))


class LoadFace(io.ComfyNode):
    """Loads a saved face."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDLoadFace",
            display_name="Load Face",
            category=CATEGORY,
            **search_aliases("load face model", "load face embedding"),
            description="Loads a face that Save Face wrote to models/dynamicid/faces.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folders.file_choices(folders.FACES),
                    tooltip="The file. Press R to refresh the list.",
                )
            ],
            outputs=[FaceType.Output(display_name="face", tooltip="For Apply DynamicID or Place Face.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """Reports a missing file before anything runs."""
        return folders.check_listed(folders.FACES, files.with_suffix(name))

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None) -> tuple[tuple[str, int], ...]:
        """Changes when the file is replaced, so that it is read again. name: None if it is linked."""
        return folders.fingerprint(folders.FACES, files.with_suffix(name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(load_face(folders.find_file(folders.FACES, files.with_suffix(name))))
