"""Nodes that inspect results: where the identity acted, and how similar the people are."""

from typing import Any

import numpy as np
from comfy_api.latest import io, ui
from torch import Tensor

from ..dynamicid_core import comparison, drawing, images
from ..dynamicid_core.comfy_host import inspection
from ..dynamicid_core.comfy_host.progress import one_by_one
from ..dynamicid_core.errors import InputError
from ..dynamicid_core.face import Face, Placement
from ..dynamicid_core.face_analysis import FaceAnalysis
from ..dynamicid_core.face_packs import check_recognition
from ..dynamicid_core.layouts import MAX_PEOPLE
from ..dynamicid_core.regions import Region
from .sockets import (
    CATEGORY,
    FaceAnalysisType,
    PlacementsType,
    check_face_analysis,
    check_placements,
    connected_faces,
    face_inputs,
    search_aliases,
)


class ActivationMap(io.ComfyNode):
    """Shows where the gate let the identity act."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDActivationMap",
            display_name="Activation Map",
            category=CATEGORY,
            **search_aliases("attention map", "heat map"),
            description="Shows where each person acts in the picture, for the UNet's down, middle and up layers.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model output of Apply DynamicID that the sampler used."),
                io.Latent.Input("latent", tooltip="From the sampler that made the picture."),
                io.Image.Input("image", tooltip="The picture decoded from that latent, to draw the maps on."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="maps",
                    tooltip="One sheet per picture, with a row for each person: all layers, then the down, middle and "
                    "up layers.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any], image: Tensor) -> io.NodeOutput:
        photos = images.photos_from_image(image)
        maps = inspection.activation_maps(model, len(photos), latent["samples"])
        sheets = [
            _sheet(photo, {group: one[i].numpy() for group, one in maps.items()}) for i, photo in enumerate(photos)
        ]
        shown = images.to_image(sheets)
        return io.NodeOutput(shown, ui=ui.PreviewImage(shown))


class CompareFaces(io.ComfyNode):
    """Compares the faces of a picture with the people it should show."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDCompareFaces",
            display_name="Compare Faces",
            category=CATEGORY,
            **search_aliases("face similarity", "face distance", "face recognition"),
            description="Identifies the people in a picture by ArcFace similarity, and warns when they have swapped "
            "places, appear twice or cannot be recognised.",
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The picture, or a batch of them."),
                FaceAnalysisType.Input("face_analysis", tooltip="From Load Face Analysis."),
                *face_inputs(MAX_PEOPLE, "A person who should be in the picture, from left to right.", needed=0),
                PlacementsType.Input(
                    "placements",
                    optional=True,
                    tooltip="The people and their places, as Apply DynamicID has them, instead of the faces above.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture with each face labelled."),
                io.Float.Output(
                    display_name="similarity",
                    tooltip="Mean cosine similarity of the people to their faces; a missing person counts as 0.",
                ),
                io.String.Output(
                    display_name="table", tooltip="All similarities, with each person's match marked *, and warnings."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        face_analysis: FaceAnalysis,
        placements: tuple[Placement, ...] | None = None,
        **faces: Face,
    ) -> io.NodeOutput:
        check_face_analysis(face_analysis)
        if placements is not None:
            check_placements(placements)
            placements = tuple(placement for placement in placements if placement.weight != 0)
        people = connected_faces(faces) if placements is None else [placement.face for placement in placements]
        if not people:
            raise InputError("There are no faces to compare with. Connect faces or placements.")
        for number, face in enumerate(people, start=1):
            check_recognition(face.recognition, face_analysis.recognition, f"Face {number} was encoded")
        photos = images.photos_from_image(image)
        results = [_compare(photo, face_analysis, people, placements) for photo in one_by_one(photos)]
        drawn = images.to_image([drawing.draw_comparison(p, r) for p, r in zip(photos, results, strict=True)])
        similarity = float(np.mean([result.mean_similarity for result in results]))
        table = "\n\n".join(result.table() for result in results)
        return io.NodeOutput(drawn, similarity, table, ui=ui.PreviewImage(drawn))


def _sheet(photo: images.Photo, maps: dict[str, np.ndarray]) -> images.Photo:
    people = len(maps["all"])
    rows = [
        [drawing.draw_heatmap(photo, maps[group][person], f"face {person + 1}, {group}") for group in maps]
        for person in range(people)
    ]
    return drawing.image_grid(rows)


def _compare(
    photo: images.Photo, analysis: FaceAnalysis, people: list[Face], placements: tuple[Placement, ...] | None
) -> comparison.Comparison:
    found = analysis.detect(photo)
    seen = [analysis.embed(photo, face) for face in found]
    places = None if placements is None else [_place(placement.region, photo) for placement in placements]
    known = [face.require_embedding(f"Face {i}").numpy() for i, face in enumerate(people, start=1)]
    return comparison.compare(found, seen, known, places)


def _place(region: Region | None, photo: images.Photo) -> comparison.Place | None:
    if region is None:
        return None
    height, width = photo.shape[:2]
    x, y = region.on_picture(height, width).centre
    return x * width, y * height
