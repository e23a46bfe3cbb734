"""Nodes that place people in the picture."""

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..dynamicid_core import drawing, images, layouts, regions
from ..dynamicid_core.errors import InputError
from ..dynamicid_core.face import MAX_WEIGHT, Face, Placement
from ..dynamicid_core.face_analysis import FaceAnalysis
from .sockets import (
    CATEGORY,
    HAS_PREVIEW,
    BoundingBoxType,
    FaceAnalysisType,
    FaceType,
    PlacementsType,
    check_face,
    check_face_analysis,
    check_placements,
    connected_faces,
    face_inputs,
    search_aliases,
)


class PlaceFace(io.ComfyNode):
    """Places one person. Nodes can be chained: each adds a person to the earlier ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDPlaceFace",
            display_name="Place Face",
            category=CATEGORY,
            **search_aliases("regional", "region", "bounding box", "several people"),
            description="Places a face in a region of the picture: a box drawn here, or a mask.",
            inputs=[
                FaceType.Input("face", tooltip="The face to place. From Encode Face or Load Face."),
                _fraction("x", 0.25, "Left edge of the box, as a fraction of the picture's width."),
                _fraction("y", 0.1, "Top edge of the box, as a fraction of the picture's height."),
                _fraction("width", 0.5, "Width of the box, as a fraction of the picture's."),
                _fraction("height", 0.8, "Height of the box, as a fraction of the picture's."),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=MAX_WEIGHT,
                    step=0.01,
                    tooltip="How strongly this person shows. Multiplied by the weight in Apply DynamicID. 0 leaves "
                    "them out.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A painted region of any size, instead of the box. Values between 0 and 1 weaken the "
                    "person; places with at least half the largest value count as inside.",
                ),
                BoundingBoxType.Input(
                    "bounding_box",
                    optional=True,
                    tooltip="A box in pixels of the generated picture, instead of the one drawn here.",
                    # Later interfaces make number fields of this type, whose defaults would take the place of the box.
                    extra_dict={"forceInput": True},
                ),
                PlacementsType.Input(
                    "placements", optional=True, tooltip="The people placed so far. This node adds one more."
                ),
            ],
            outputs=[
                PlacementsType.Output(
                    display_name="placements", tooltip="For Apply DynamicID, or the next Place Face."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        face: Face,
        x: float,
        y: float,
        width: float,
        height: float,
        weight: float,
        mask: Tensor | None = None,
        bounding_box: Any = None,
        placements: tuple[Placement, ...] = (),
    ) -> io.NodeOutput:
        check_face(face)
        check_placements(placements)
        if mask is not None and bounding_box is not None:
            raise InputError(
                "Place Face has both a mask and a bounding box. Disconnect one: each person has one region."
            )
        region: regions.Region
        if mask is not None:
            region = regions.from_mask(mask)
        elif bounding_box is not None:
            region = regions.from_bounding_box(bounding_box)
        else:
            region = regions.Box.at(x, y, width, height)
        return io.NodeOutput((*placements, Placement(face, region, weight)))


class AutoLayout(io.ComfyNode):
    """Places up to eight people automatically."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDAutoLayout",
            display_name="Auto Layout",
            category=CATEGORY,
            **search_aliases("regional", "regions", "several people"),
            description="Places several people automatically, from left to right in the order of the inputs.",
            is_output_node=HAS_PREVIEW,
            inputs=[
                *face_inputs(layouts.MAX_PEOPLE, "A person; they stand from left to right in the order of the inputs."),
                io.Combo.Input(
                    "layout",
                    options=list(layouts.LAYOUTS),
                    default=layouts.COLUMNS,
                    tooltip="Equal columns; rows, as in a group photograph (two rows for four or more people, the "
                    "back row first); or where the faces in the reference image are.",
                ),
                io.Image.Input(
                    "reference_image", optional=True, tooltip="A picture with people where yours should be."
                ),
                FaceAnalysisType.Input(
                    "face_analysis", optional=True, tooltip="Finds the faces in the reference image."
                ),
            ],
            outputs=[
                PlacementsType.Output(display_name="placements", tooltip="For Apply DynamicID or Place Face."),
                io.Image.Output(display_name="preview", tooltip="Who is where."),
            ],
        )

    @classmethod
    def execute(
        cls,
        layout: str,
        reference_image: Tensor | None = None,
        face_analysis: FaceAnalysis | None = None,
        **faces: Face,
    ) -> io.NodeOutput:
        people = connected_faces(faces)
        picture = None
        if layout == layouts.REFERENCE:
            picture, boxes = _boxes_from_reference(reference_image, face_analysis, len(people))
        elif layout == layouts.ROWS:
            boxes = layouts.head_and_shoulder_rows(len(people))
        elif layout == layouts.COLUMNS:
            boxes = layouts.equal_columns(len(people))
        else:
            raise InputError(f'"{layout}" is not a layout. Choose one of: {", ".join(layouts.LAYOUTS)}.')
        preview = images.to_image([drawing.draw_layout(boxes, picture)])
        placements = tuple(Placement(face, box) for face, box in zip(people, boxes, strict=True))
        return io.NodeOutput(placements, preview, ui=ui.PreviewImage(preview))


def _boxes_from_reference(
    reference_image: Tensor | None, analysis: FaceAnalysis | None, people: int
) -> tuple[images.Photo, list[regions.Box]]:
    if reference_image is None or analysis is None:
        raise InputError(f'The layout "{layouts.REFERENCE}" needs a reference image and Load Face Analysis connected.')
    check_face_analysis(analysis)
    picture = images.single_photo_from_image(reference_image, "Auto Layout takes one reference image")
    height, width = picture.shape[:2]
    return picture, layouts.from_faces([face.box for face in analysis.detect(picture)], height, width, people)


def _fraction(name: str, default: float, tooltip: str) -> Any:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=tooltip)
