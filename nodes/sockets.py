"""The pack's own socket types."""

from comfy_api.latest import io

CATEGORY = "DynamicID"

DynamicIDType = io.Custom("DYNAMICID")
FaceAnalysisType = io.Custom("FACE_ANALYSIS")
FaceType = io.Custom("DYNAMICID_FACE")
PlacementsType = io.Custom("DYNAMICID_PLACEMENTS")
