"""An encoded person, as nodes pass and files store it, and a person placed in a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import files
from .errors import InputError, check_range
from .images import Photo
from .keypoints import Keypoints, check_points, check_pose
from .regions import Region

_UNIT_TOLERANCE = 1e-3
FILES = files.FileKind(
    what="face",
    writer="Save Face",
    format="dynamicid-face",
    version="1",
    needed=("tokens", "uncond_tokens"),
    optional=("embedding", "keypoints", "pose", "key_scale"),
)
MIX_METHODS = ("tokens", "attention")
MAX_WEIGHT = 3.0
"""The largest weight of a person in a picture or in a mix."""


@dataclass(frozen=True, eq=False)
class Face:
    """One person.

    tokens, uncond_tokens: [1, T, D] float32, the face encoder's output for the photo and for no face. embedding: [512],
    length 1, ArcFace in its own channel order, for comparing faces; recognition: the name of the model that made it, ""
    if unknown. keypoints: [106, 2] (x, y) in fractions of the square crop. pose: [3] pitch, yaw, roll in
    degrees. base_model: the model family of this token size ("sd15", "sdxl"). key_scale: [T], for a mix of people,
    how strongly each token is attended to. face_prompt: the tokens' expression and pose, as a sentence. portrait: the
    square crop, for previews; not saved.
    """

    tokens: Tensor
    uncond_tokens: Tensor
    base_model: str
    embedding: Tensor | None = None
    keypoints: Tensor | None = None
    pose: Tensor | None = None
    key_scale: Tensor | None = None
    face_prompt: str | None = None
    recognition: str = ""
    portrait: Photo | None = None

    def __post_init__(self) -> None:
        if (
            self.tokens.ndim != 3
            or self.tokens.shape[0] != 1
            or self.tokens.shape != self.uncond_tokens.shape
            or 0 in self.tokens.shape
        ):
            raise InputError(
                f"A face needs tokens and uncond_tokens of one shape [1, count, size]; "
                f"found {list(self.tokens.shape)} and {list(self.uncond_tokens.shape)}."
            )
        if not (self.tokens.isfinite().all() and self.uncond_tokens.isfinite().all()):
            raise InputError("The face's tokens hold values that are not numbers. Encode the photo again.")
        self._check_optional()

    def _check_optional(self) -> None:
        count = self.tokens.shape[1]
        for name, tensor, fits in (
            ("embedding", self.embedding, lambda shape: len(shape) == 1 and 0 not in shape),
            ("key_scale", self.key_scale, lambda shape: shape == (count,)),
        ):
            if tensor is not None and not (fits(tensor.shape) and tensor.isfinite().all()):
                raise InputError(
                    f"The face's {name} has the shape {list(tensor.shape)} or holds values that are not numbers. "
                    "Encode the photo again."
                )
        if self.keypoints is not None:
            check_points(self.keypoints)
        check_pose(self.pose)

    @property
    def token_size(self) -> int:
        """D: 768 for SD1.5, 2048 for SDXL."""
        return self.tokens.shape[-1]

    def motion(self) -> Keypoints:
        """The face's keypoints and pose, for editing. Raises InputError for a face without keypoints."""
        if self.keypoints is None:
            raise InputError(
                "The face has no keypoints to start from. Encode the photo again with an InsightFace pack that has a "
                "landmark_2d_106 model, such as buffalo_l."
            )
        return Keypoints(self.keypoints, self.pose)

    def require_embedding(self, who: str = "The face") -> Tensor:
        """The embedding [512]. Raises InputError if there is none. who: names the face in the message."""
        if self.embedding is None:
            raise InputError(
                f"{who} has no ArcFace embedding to compare with. Encode the photo again and save it again."
            )
        return self.embedding


@dataclass(frozen=True)
class Placement:
    """A person in the picture. region: None for anywhere. weight: of the identity; 0 leaves the person out."""

    face: Face
    region: Region | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0, MAX_WEIGHT)


def mix_faces(
    faces: Sequence[Face], weights: Sequence[float], method: str = "tokens", names: Sequence[str] = ()
) -> Face:
    """One face from several: photos of one person, or several people.

    method "tokens": the weighted mean of the tokens. "attention": the tokens side by side, their attention logits
    scaled by the weights, which is the released model's identity mix. The embedding is the weighted mean of theirs;
    keypoints, pose and face prompt are those of the face with the largest weight. names: of the weights, for messages.
    Raises InputError if no weight is above 0 and for faces of different models.
    """
    if method not in MIX_METHODS:
        raise InputError(f'"{method}" is not a mixing method. Choose one of: {", ".join(MIX_METHODS)}.')
    for name, weight in zip(names or [f"weight_{i}" for i in range(1, len(weights) + 1)], weights, strict=True):
        check_range(name, weight, 0, MAX_WEIGHT)
    mixed = [(face, weight) for face, weight in zip(faces, weights, strict=True) if weight > 0]
    if not mixed:
        raise InputError("All weights are 0: at least one must be more than 0.")
    sizes = sorted({face.token_size for face, _ in mixed})
    if len(sizes) > 1:
        raise InputError(
            f"The faces were encoded for different models (token sizes {', '.join(map(str, sizes))}). Encode them with "
            "the same adapter."
        )
    models = sorted({face.recognition for face, _ in mixed if face.embedding is not None and face.recognition})
    if len(models) > 1:
        raise InputError(
            f"The faces were recognised by different models ({', '.join(models)}). Encode them with the same "
            "InsightFace pack."
        )
    embeddings = {len(face.embedding) for face, _ in mixed if face.embedding is not None}
    if len(embeddings) > 1:
        raise InputError(
            f"The faces have embeddings of different sizes ({', '.join(map(str, sorted(embeddings)))}). Encode them "
            "with the same InsightFace pack."
        )
    main = max(mixed, key=lambda pair: pair[1])[0]
    tokens, uncond_tokens, key_scale = _mean_tokens(mixed) if method == "tokens" else _tokens_side_by_side(mixed)
    return replace(
        main,
        tokens=tokens,
        uncond_tokens=uncond_tokens,
        embedding=_mean_embedding(mixed),
        recognition=models[0] if models else "",
        key_scale=key_scale,
    )


def average_faces(faces: Sequence[Face]) -> Face:
    """One face from several photos of a person, with equal weights."""
    return faces[0] if len(faces) == 1 else mix_faces(faces, [1.0] * len(faces))


def save_face(face: Face, folder: str | Path, name: str) -> Path:
    """Writes ``name``.safetensors into the folder and returns its path; see ``files.save``."""
    tensors = {key: getattr(face, key) for key in (*FILES.needed, *FILES.optional) if getattr(face, key) is not None}
    metadata = {"base_model": face.base_model}
    if face.face_prompt is not None:
        metadata["face_prompt"] = face.face_prompt
    if face.recognition:
        metadata["recognition"] = face.recognition
    return files.save(FILES, tensors, metadata, folder, name)


def load_face(path: str | Path) -> Face:
    """Reads a face file. Raises InputError if it is missing, damaged or of another kind."""
    tensors, metadata = files.load(FILES, path)
    if (embedding := tensors.get("embedding")) is not None and abs(embedding.norm() - 1) > _UNIT_TOLERANCE:
        # InsightFace's own embeddings, which other programs may have written, are not of length 1.
        tensors["embedding"] = torch.nn.functional.normalize(embedding, dim=0)
    return Face(
        tensors["tokens"],
        tensors["uncond_tokens"],
        metadata.get("base_model", "sd15"),
        embedding=tensors.get("embedding"),
        keypoints=tensors.get("keypoints"),
        pose=tensors.get("pose"),
        key_scale=tensors.get("key_scale"),
        face_prompt=metadata.get("face_prompt"),
        recognition=metadata.get("recognition", ""),
    )


def _mean_tokens(mixed: Sequence[tuple[Face, float]]) -> tuple[Tensor, Tensor, None]:
    if len({face.tokens.shape for face, _ in mixed}) > 1 or any(face.key_scale is not None for face, _ in mixed):
        raise InputError(
            'A face that was mixed by "attention" cannot be mixed by "tokens" again. Mix all faces in one node.'
        )
    total = sum(weight for _, weight in mixed)
    means = (
        sum(getattr(face, name) * (weight / total) for face, weight in mixed) for name in ("tokens", "uncond_tokens")
    )
    return *means, None


def _tokens_side_by_side(mixed: Sequence[tuple[Face, float]]) -> tuple[Tensor, Tensor, Tensor]:
    scales = [
        weight * (torch.ones(face.tokens.shape[1]) if face.key_scale is None else face.key_scale)
        for face, weight in mixed
    ]
    return (
        torch.cat([face.tokens for face, _ in mixed], dim=1),
        torch.cat([face.uncond_tokens for face, _ in mixed], dim=1),
        torch.cat(scales),
    )


def _mean_embedding(mixed: Sequence[tuple[Face, float]]) -> Tensor | None:
    known = [face.embedding * weight for face, weight in mixed if face.embedding is not None]
    return torch.nn.functional.normalize(torch.stack(known).sum(dim=0), dim=0) if known else None
