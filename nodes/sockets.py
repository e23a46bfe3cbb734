"""The pack's own socket types, and inputs and checks shared by nodes."""

from typing import Any, TypeGuard

from comfy_api.latest import io

from ..dynamicid_core.comfy_host.loading import DynamicID
from ..dynamicid_core.errors import InputError
from ..dynamicid_core.face import Face, Placement
from ..dynamicid_core.face_analysis import ORDERS, FaceAnalysis

CATEGORY = "DynamicID"
HAS_PREVIEW = True
"""For is_output_node of nodes with a preview: a page loaded after a run gets results of cached output nodes only."""

DynamicIDType = io.Custom("DYNAMICID")
FaceAnalysisType = io.Custom("FACE_ANALYSIS")
FaceType = io.Custom("DYNAMICID_FACE")
FaceKeypointsType = io.Custom("FACE_KEYPOINTS")
PlacementsType = io.Custom("DYNAMICID_PLACEMENTS")
BoundingBoxType = io.Custom("BOUNDING_BOX")  # ComfyUI's own on later hosts


def search_aliases(*words: str) -> dict[str, Any]:
    """For a schema: words under which ComfyUI's search finds the node, too. Older hosts have none."""
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}


def face_inputs(count: int, tooltip: str, needed: int = 1) -> list[Any]:
    """Sockets face_1 .. face_N, the first ``needed`` of which must be connected."""
    return [FaceType.Input(f"face_{i}", optional=i > needed, tooltip=tooltip) for i in range(1, count + 1)]


def face_choice_inputs() -> list[Any]:
    """The inputs order and index, which choose a face of a photo."""
    return [
        io.Combo.Input(
            "order",
            options=list(ORDERS),
            default="largest",
            tooltip="The order in which the faces of a photo are numbered, for index.",
        ),
        io.Int.Input(
            "index",
            default=0,
            min=0,
            max=99,
            tooltip="Which face in that order, from 0. The preview of index 0 shows the numbers.",
        ),
    ]


def check_face_analysis(given: Any) -> None:
    """Raises InputError for a face analysis of another pack, whose socket has the same name."""
    if not isinstance(given, FaceAnalysis):
        raise InputError(
            "The face analysis comes from another node pack. Connect Load Face Analysis of the DynamicID category."
        )


def check_face(given: Any) -> None:
    """Raises InputError for anything but a face, which nodes with sockets of any type can pass on."""
    if not isinstance(given, Face):
        raise InputError(
            f"A face is needed; found {type(given).__name__}. Connect Encode Face, Load Face or Edit Expression & Pose."
        )


def check_dynamicid(given: Any) -> None:
    """Raises InputError for anything but an adapter."""
    if not isinstance(given, DynamicID):
        raise InputError(
            f"An adapter is needed at dynamicid; found {type(given).__name__}. Connect Load DynamicID or Load "
            "Miniature."
        )


def are_placements(given: Any) -> TypeGuard[tuple[Placement, ...]]:
    """Whether these are placed faces."""
    return isinstance(given, tuple) and all(isinstance(placement, Placement) for placement in given)


def check_placements(given: Any) -> None:
    """Raises InputError for anything but placed faces."""
    if not are_placements(given):
        raise InputError(
            f"Placed faces are needed at placements; found {type(given).__name__}. Connect Place Face or Auto Layout."
        )


def connected_faces(faces: dict[str, Face | None]) -> list[Face]:
    """The connected faces of ``face_inputs`` in order. Raises InputError as ``check_face`` does."""
    found = [face for _, face in sorted(faces.items()) if face is not None]
    for face in found:
        check_face(face)
    return found
