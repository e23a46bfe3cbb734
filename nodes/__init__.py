"""The nodes: sockets, tooltips and clear errors around ``dynamicid_core``."""

from comfy_api.latest import ComfyExtension, io

from ..dynamicid_core.comfy_host.folders import register_model_folders
from .apply import ApplyDynamicID
from .face import EncodeFace, LoadFace, MixFaces, SaveFace
from .inspection import ActivationMap, CompareFaces
from .loaders import LoadDynamicID, LoadFaceAnalysis, LoadMiniature
from .motion import DescribeFace, EditFace, FaceKeypoints, LoadKeypoints, PoseKeypoints, SaveKeypoints
from .regions import AutoLayout, PlaceFace


class DynamicIDExtension(ComfyExtension):
    """The entry point by which ComfyUI gets the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_model_folders()
        return [
            LoadDynamicID,
            LoadFaceAnalysis,
            LoadMiniature,
            EncodeFace,
            MixFaces,
            SaveFace,
            LoadFace,
            DescribeFace,
            FaceKeypoints,
            PoseKeypoints,
            EditFace,
            SaveKeypoints,
            LoadKeypoints,
            PlaceFace,
            AutoLayout,
            ApplyDynamicID,
            ActivationMap,
            CompareFaces,
        ]
