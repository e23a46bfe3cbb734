"""Nodes for expression and head pose: keypoints from pictures and sliders, and face editing."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..dynamicid_core import drawing, files, images, motion
from ..dynamicid_core.comfy_host import editing, folders
from ..dynamicid_core.comfy_host.loading import DynamicID
from ..dynamicid_core.errors import InputError
from ..dynamicid_core.expression import EXPRESSIONS
from ..dynamicid_core.face import Face
from ..dynamicid_core.face_analysis import FaceAnalysis
from ..dynamicid_core.face_prompt import face_prompt, find_expression
from ..dynamicid_core.keypoints import Keypoints, load_keypoints, save_keypoints
from ..dynamicid_core.portrait import measure_keypoints, portrait_square
from .sockets import (
    CATEGORY,
    HAS_PREVIEW,
    DynamicIDType,
    FaceAnalysisType,
    FaceKeypointsType,
    FaceType,
    check_dynamicid,
    check_face,
    check_face_analysis,
    face_choice_inputs,
    search_aliases,
)

_NO_START_MESSAGE = (
    "Pose Keypoints has nothing to start from: connect a face or keypoints (Encode Face, Face Keypoints)."
)
_UNCONNECTED = object()


class FaceKeypoints(io.ComfyNode):
    """Measures expression and pose in another picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDFaceKeypoints",
            display_name="Face Keypoints",
            category=CATEGORY,
            **search_aliases("facial landmarks", "face landmarks"),
            description="Measures the expression and head pose of a face in a driving picture, for Edit Expression & "
            "Pose.",
            is_output_node=HAS_PREVIEW,
            inputs=[
                io.Image.Input(
                    "image", tooltip="The driving picture, of any size: a face with the expression and pose you want."
                ),
                FaceAnalysisType.Input("face_analysis", tooltip="From Load Face Analysis."),
                *face_choice_inputs(),
            ],
            outputs=_keypoints_outputs(),
        )

    @classmethod
    def execute(cls, image: Tensor, face_analysis: FaceAnalysis, order: str, index: int) -> io.NodeOutput:
        check_face_analysis(face_analysis)
        photo = images.single_photo_from_image(image, "Face Keypoints takes one driving picture")
        found = face_analysis.choose(photo, order, index)
        keypoints = measure_keypoints(found.photo, found.chosen, portrait_square(found.photo, found.chosen))
        marked = drawing.draw_faces(found.photo, found.faces, found.chosen)
        return _keypoints_output(keypoints, [marked, drawing.draw_keypoints(keypoints)])


class PoseKeypoints(io.ComfyNode):
    """Edits expression and pose with sliders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDPoseKeypoints",
            display_name="Pose Keypoints",
            category=CATEGORY,
            **search_aliases("head pose", "expression editor", "face landmarks"),
            description="Turns a head and changes its expression with sliders or a preset, for Edit Expression & Pose.",
            is_output_node=HAS_PREVIEW,
            inputs=[
                FaceKeypointsType.Input(
                    "keypoints",
                    optional=True,
                    tooltip="The keypoints to start from. Not needed when a face is connected.",
                ),
                FaceType.Input(
                    "face",
                    optional=True,
                    tooltip="The face whose keypoints to start from, when no keypoints are connected.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(motion.PRESETS),
                    default=motion.AS_IS,
                    tooltip="An expression that replaces the face's own. as is keeps it.",
                ),
                _angle("yaw", "Turn the head: positive to the right of the picture, negative to the left."),
                _angle("pitch", "Nod: positive looks up, negative down."),
                _angle("roll", "Tilt the head: positive clockwise, as you see it."),
                _amount("smile", "Raise the corners of the mouth; negative lowers them."),
                _amount("mouth_open", "Open the mouth; -1 closes it."),
                _amount("brow_raise", "Raise the eyebrows; negative lowers them and draws them together."),
                _amount("eyes_open", "Open the eyes wide; -1 closes them."),
            ],
            outputs=_keypoints_outputs(),
        )

    @classmethod
    def validate_inputs(cls, preset: str | None, keypoints: Any = _UNCONNECTED, face: Any = _UNCONNECTED) -> bool | str:
        """Without a start, the rest of the graph still runs.

        A connected input is None here: nothing has run yet. preset: ComfyUI reports an error at a named input.
        """
        return _NO_START_MESSAGE if keypoints is face is _UNCONNECTED else True

    @classmethod
    def execute(
        cls,
        preset: str,
        yaw: float,
        pitch: float,
        roll: float,
        keypoints: Keypoints | None = None,
        face: Face | None = None,
        **sliders: float,
    ) -> io.NodeOutput:
        start = _start(keypoints, face)
        edited = motion.edit_motion(start, preset, yaw, pitch, roll, motion.FeatureSliders(**sliders))
        return _keypoints_output(edited, [drawing.draw_keypoints(edited, start)])


class DescribeFace(io.ComfyNode):
    """Describes the photo's expression and pose as a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDDescribeFace",
            display_name="Describe Face",
            category=CATEGORY,
            **search_aliases("emotion", "facial expression"),
            description="Describes the expression and head pose of a face, in words that the released model knows.",
            is_output_node=True,
            inputs=[FaceType.Input("face", tooltip="From Encode Face, Load Face or Edit Expression & Pose.")],
            outputs=[
                io.String.Output(
                    display_name="face_prompt",
                    tooltip="For source_prompt of Edit Expression & Pose, which uses it automatically when that is "
                    "empty.",
                )
            ],
        )

    @classmethod
    def execute(cls, face: Face) -> io.NodeOutput:
        check_face(face)
        sentence = editing.describe_face(face)
        return io.NodeOutput(sentence, ui=ui.PreviewText(sentence))


class EditFace(io.ComfyNode):
    """Edits a face with the identity-motion reconfigurator (IMR)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDEditFace",
            display_name="Edit Expression & Pose",
            category=CATEGORY,
            **search_aliases("expression editor", "facial expression", "head pose", "emotion"),
            description="Gives a face another expression and head pose, from words and keypoints. The identity stays.",
            inputs=[
                FaceType.Input("face", tooltip="The face to edit. From Encode Face or Load Face."),
                DynamicIDType.Input("dynamicid", tooltip="From Load DynamicID, with imr and keypoint_encoder chosen."),
                io.Clip.Input("clip", tooltip="The text encoder of the SD1.5 checkpoint. It reads the prompts."),
                io.String.Input(
                    "target_prompt",
                    default="in a happy expression",
                    multiline=True,
                    tooltip="The new expression, in words, such as: in a very surprised expression. Without "
                    f"keypoints, one of these words moves the face's own: {', '.join(EXPRESSIONS)}. If it does not "
                    "mention the pose, that of the keypoints is used.",
                ),
                io.String.Input(
                    "source_prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The face's current expression and pose, in words. Empty: what Describe Face says.",
                ),
                FaceKeypointsType.Input(
                    "keypoints",
                    optional=True,
                    tooltip="The new expression and pose, as keypoints, from Face Keypoints or Pose Keypoints. "
                    "Unconnected: the face's own, with the expression named in the target prompt.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Strength of the edit, from 0 (the face unchanged, bit for bit) to 1 (the full edit).",
                ),
            ],
            outputs=[
                FaceType.Output(display_name="face", tooltip="For Apply DynamicID, Place Face or Save Face."),
            ],
        )

    @classmethod
    def execute(
        cls,
        face: Face,
        dynamicid: DynamicID,
        clip: Any,
        target_prompt: str,
        source_prompt: str = "",
        keypoints: Keypoints | None = None,
        strength: float = 1.0,
    ) -> io.NodeOutput:
        check_face(face)
        check_dynamicid(dynamicid)
        if keypoints is not None:
            _check_keypoints(keypoints)
        return io.NodeOutput(
            editing.edit_face(dynamicid, clip, face, target_prompt, keypoints, source_prompt, strength)
        )


class SaveKeypoints(io.ComfyNode):
    """Saves an expression and pose for other faces."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDSaveKeypoints",
            display_name="Save Keypoints",
            category=CATEGORY,
            description="Saves keypoints to models/dynamicid/keypoints, for use with any face.",
            is_output_node=True,
            inputs=[
                FaceKeypointsType.Input("keypoints", tooltip="From Face Keypoints or Pose Keypoints."),
                io.String.Input(
                    "name",
                    default="keypoints",
                    tooltip="File name without extension. If different keypoints already have the name, they are kept "
                    "and the new ones get a number.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name to choose in Load Keypoints.")],
        )

    @classmethod
    def execute(cls, keypoints: Keypoints, name: str) -> io.NodeOutput:
        _check_keypoints(keypoints)
        folder = folders.model_folders(folders.KEYPOINTS)[0]
        file = save_keypoints(keypoints, folder, name).relative_to(folder).as_posix()
        return io.NodeOutput(file, ui=ui.PreviewText(f"Saved as {file}"))


class LoadKeypoints(io.ComfyNode):
    """Loads saved keypoints."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDLoadKeypoints",
            display_name="Load Keypoints",
            category=CATEGORY,
            description="Loads keypoints that Save Keypoints wrote to models/dynamicid/keypoints.",
            is_output_node=HAS_PREVIEW,
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folders.file_choices(folders.KEYPOINTS),
                    tooltip="The file. Press R to refresh the list.",
                )
            ],
            outputs=_keypoints_outputs(),
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """Reports a missing file before anything runs."""
        return folders.check_listed(folders.KEYPOINTS, files.with_suffix(name))

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None) -> tuple[tuple[str, int], ...]:
        """Changes when the file is replaced, so that it is read again. name: None if it is linked."""
        return folders.fingerprint(folders.KEYPOINTS, files.with_suffix(name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        keypoints = load_keypoints(folders.find_file(folders.KEYPOINTS, files.with_suffix(name)))
        return _keypoints_output(keypoints, [drawing.draw_keypoints(keypoints)])


def _angle(name: str, tooltip: str) -> Any:
    return io.Float.Input(
        name,
        default=0.0,
        min=-motion.MAX_TURN,
        max=motion.MAX_TURN,
        step=1.0,
        tooltip=f"{tooltip} In degrees, added to the pose of the face.",
    )


def _amount(name: str, tooltip: str) -> Any:
    return io.Float.Input(name, default=0.0, min=-1.0, max=1.0, step=0.05, tooltip=f"{tooltip} 0 leaves it unchanged.")


def _keypoints_outputs() -> list[Any]:
    return [
        FaceKeypointsType.Output(
            display_name="keypoints", tooltip="For Edit Expression & Pose, Pose Keypoints or Save Keypoints."
        ),
        io.Image.Output(
            display_name="preview", tooltip="The keypoints on the face, and as the keypoint encoder sees them."
        ),
        io.String.Output(
            display_name="face_prompt", tooltip="The same in words, for target_prompt of Edit Expression & Pose."
        ),
    ]


def _keypoints_output(keypoints: Keypoints, pictures: list[images.Photo]) -> io.NodeOutput:
    preview = images.to_image([*pictures, drawing.draw_raster(keypoints)])
    sentence = face_prompt(keypoints.expression, keypoints.pose)
    return io.NodeOutput(keypoints, preview, sentence, ui=ui.PreviewImage(preview))


def _start(keypoints: Keypoints | None, face: Face | None) -> Keypoints:
    if keypoints is not None:
        _check_keypoints(keypoints)
        return keypoints
    if face is None:
        raise InputError(_NO_START_MESSAGE)
    check_face(face)
    return replace(face.motion(), expression=find_expression(face.face_prompt or ""), portrait=face.portrait)


def _check_keypoints(given: Any) -> None:
    if not isinstance(given, Keypoints):
        raise InputError(
            f"Face keypoints are needed; found {type(given).__name__}. Connect Face Keypoints, Pose Keypoints or Load "
            "Keypoints of the DynamicID category."
        )
