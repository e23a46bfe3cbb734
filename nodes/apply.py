"""The node that applies faces to a model."""

from typing import Any

from comfy_api.latest import io

from ..dynamicid_core.comfy_host.loading import DynamicID
from ..dynamicid_core.comfy_host.patching import MAX_LORA_STRENGTH, Conditioning, apply_dynamicid
from ..dynamicid_core.errors import InputError
from ..dynamicid_core.face import Face, Placement
from ..dynamicid_core.saa import MAX_SETTINGS, SaaSettings
from .sockets import CATEGORY, DynamicIDType, FaceType, PlacementsType, are_placements, check_dynamicid, search_aliases

_DEFAULT = SaaSettings()


class ApplyDynamicID(io.ComfyNode):
    """Applies faces to a model and its prompts, for a sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DynamicIDApply",
            display_name="Apply DynamicID",
            category=CATEGORY,
            **search_aliases("face id", "ip adapter", "instantid", "consistent character", "identity"),
            description="Makes the model generate the given people. Connect all three outputs to the sampler.",
            inputs=[
                io.Model.Input("model", tooltip="An SD1.5 model, or an SDXL one with an SDXL adapter."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                DynamicIDType.Input("dynamicid", tooltip="From Load DynamicID: the adapter that encoded the faces."),
                io.MultiType.Input(
                    "faces",
                    types=[FaceType, PlacementsType],
                    tooltip="One face, which the model places by itself, or several people with their places.",
                ),
                _setting("weight", "How strongly the identity shows. 0 leaves the model unchanged."),
                _number(
                    "lora_strength",
                    1.0,
                    MAX_LORA_STRENGTH,
                    "Strength of the adapter's low-rank updates, which were trained together with the faces.",
                ),
                _setting(
                    "threshold",
                    "Parts of the picture whose relevance to the face is below this are left alone. The paper uses 0, "
                    "the released model 0.3.",
                ),
                _setting(
                    "layout_boost",
                    "How strongly regions attract their faces. It has no effect without regions.",
                ),
                _setting("layout_end", "How long the regions attract faces, as a fraction of the schedule."),
                _setting("start_percent", "When the faces begin to act, as a fraction of the schedule."),
                _setting("end_percent", "When they stop. Below 1, the last details follow the prompt alone."),
                io.Boolean.Input(
                    "gate",
                    default=_DEFAULT.gate,
                    optional=True,
                    tooltip="Semantic activation. When off, the identity acts equally everywhere, and regions and the "
                    "weights of an attention mix are ignored. For comparison.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler. It carries the faces."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler. It carries the faces."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        dynamicid: DynamicID,
        faces: Face | tuple[Placement, ...],
        weight: float,
        lora_strength: float,
        **settings: Any,
    ) -> io.NodeOutput:
        check_dynamicid(dynamicid)
        saa = SaaSettings(weight=weight, **settings)
        return io.NodeOutput(
            *apply_dynamicid(model, positive, negative, dynamicid, _placements(faces), saa, lora_strength)
        )


def _setting(name: str, tooltip: str) -> Any:
    """The input for one of ``SaaSettings``."""
    return _number(name, getattr(_DEFAULT, name), MAX_SETTINGS[name], tooltip)


def _number(name: str, default: float, most: float, tooltip: str) -> Any:
    return io.Float.Input(name, default=default, min=0.0, max=most, step=0.01, tooltip=tooltip)


def _placements(faces: Face | tuple[Placement, ...]) -> tuple[Placement, ...]:
    if isinstance(faces, Face):
        return (Placement(faces),)
    if are_placements(faces):
        return faces
    raise InputError(
        f"faces must be a face or placed faces; found {type(faces).__name__}. Connect Encode Face, Load "
        "Face, Place Face or Auto Layout."
    )
