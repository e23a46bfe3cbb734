"""Both stages as the loop runs them: their networks, their data, what they save and draw."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint import (
    ADAPTER,
    ADAPTER_FILE,
    DYNAMICID,
    IMR,
    IMR_FILE,
    KEYPOINT_ENCODER,
    KEYPOINT_ENCODER_FILE,
    VARIANTS,
    Checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from ..comfy_host.differentiable import DenoisingModel, FrozenEncoders
from ..comfy_host.identity_patch import text_attention
from ..errors import InputError
from ..face_encoder import FaceEncoderSizes
from ..images import Photo, to_photos
from ..imr import Imr, ImrSizes, KeypointEncoder, KeypointEncoderSizes
from ..saa import SaaSettings
from .anchoring import AnchorBatch, AnchorCollator, Anchoring
from .config import AnchorSettings, LoopConfig, ReconfigureSettings
from .data.sample import Sample
from .inputs import face_inputs, pictures
from .networks import TrainableAdapter, init_as_identity
from .reconfiguration import Reconfiguration, ReconfigureBatch, ReconfigureCollator

SHEET_ROWS = 4
_SHEET_CFG = 5.0
_FEED_FORWARD = 4  # times the size of the IMR, as in the released one


class SampleSource(Protocol):
    """Endless training data in an order fixed by a seed."""

    @property
    def recognition(self) -> str:
        """The recognition model of the embeddings, see ``Checkpoint.recognition``."""

    def samples(self, process: int, processes: int, skip: int = 0) -> Iterator[Sample]:
        """Every picture of every person, for one of several processes, without its first ``skip``."""

    def people(self, process: int, processes: int, photos: int, skip: int = 0) -> Iterator[list[Sample]]:
        """Every person with this many photos, the first of which differs from the others."""


def sample_batches(source: SampleSource, size: int, process: int, processes: int, skip: int) -> Iterator[list[Sample]]:
    """Endless lists of ``size`` pictures, without the first ``skip`` lists."""
    samples = source.samples(process, processes, skip * size)
    while True:
        yield list(islice(samples, size))


class SampleStage:
    """The common part of stages that learn from single pictures."""

    def __init__(self, source: SampleSource, config: LoopConfig) -> None:
        self._source, self._config = source, config

    def raw_batches(self, process: int, processes: int, skip: int = 0) -> Iterator[list[Sample]]:
        """Lists of ``batch_size`` pictures, without the first ``skip`` lists."""
        return sample_batches(self._source, self._config.batch_size, process, processes, skip)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Does nothing, for stages that have nothing to show."""

    def _first(self, count: int = SHEET_ROWS) -> list[Sample]:
        return list(islice(self._source.samples(0, 1), count))


class AnchorStage:
    """Face encoder and SAA."""

    def __init__(
        self, denoiser: DenoisingModel, encoders: FrozenEncoders, source: SampleSource, config: AnchorSettings
    ) -> None:
        adapter = make_adapter(denoiser, encoders, config)
        adapter.recognition = _matching_recognition(adapter.recognition, source.recognition)
        self._denoiser, self._encoders, self._source, self._config = denoiser, encoders, source, config
        self.network = self._anchoring(adapter)
        self._batches = AnchorCollator(encoders, denoiser, config, adapter.variant)

    def _anchoring(self, adapter: TrainableAdapter) -> Anchoring[Any]:
        return Anchoring(self._denoiser, adapter, self._config)

    def raw_batches(self, process: int, processes: int, skip: int = 0) -> Iterator[Any]:
        """Lists of ``batch_size`` pictures, without the first ``skip`` lists."""
        return sample_batches(self._source, self._config.batch_size, process, processes, skip)

    def target_samples(self, raw: Any) -> list[Sample]:
        """The samples of a raw batch that are to be painted."""
        samples: list[Sample] = raw
        return samples

    def make_batch(self, raw: Any, generator: torch.Generator, device: torch.device) -> AnchorBatch:
        """What ``network`` takes."""
        return self._batches.make(self.target_samples(raw), generator, device)

    def save_weights(self, folder: Path) -> None:
        """adapter.safetensors."""
        save_checkpoint(self.network.adapter.checkpoint(), folder / ADAPTER_FILE)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Draws photos of the data beside what is painted from their captions and tokens."""
        samples = list(islice(self._source.samples(0, 1), SHEET_ROWS))
        painted = paint_samples(self._denoiser, self._encoders, samples, steps, self.network.adapter)
        save_sheet(path, [[sample.picture, picture] for sample, picture in zip(samples, painted, strict=True)])


class ReconfigureStage:
    """IMR and keypoint encoder."""

    def __init__(
        self, denoiser: DenoisingModel, encoders: FrozenEncoders, source: SampleSource, config: ReconfigureSettings
    ) -> None:
        adapter = _open_adapter(config.adapter, config.variant, denoiser, encoders)
        _matching_recognition(adapter.recognition, source.recognition)
        self._adapter = adapter.to(encoders.device)
        imr, keypoint_encoder = _motion_networks(self._adapter, encoders, config)
        self.network = Reconfiguration(denoiser, self._adapter, imr, keypoint_encoder, config)
        self._denoiser, self._encoders, self._source, self._config = denoiser, encoders, source, config
        share = config.diffusion_share if config.diffusion_weight else 0.0
        self._batches = ReconfigureCollator(encoders, denoiser, self._adapter, share)

    def raw_batches(self, process: int, processes: int, skip: int = 0) -> Iterator[list[list[Sample]]]:
        """Lists of ``batch_size`` people, each a source and its targets, without the first ``skip`` lists."""
        people = self._source.people(process, processes, 1 + self._config.targets, skip * self._config.batch_size)
        while True:
            yield list(islice(people, self._config.batch_size))

    def make_batch(self, raw: list[list[Sample]], generator: torch.Generator, device: torch.device) -> ReconfigureBatch:
        """What ``network`` takes."""
        return self._batches.make(raw, generator, device)

    def save_weights(self, folder: Path) -> None:
        """imr.safetensors and keypoint_encoder.safetensors."""
        save_motion_network(IMR, self.network.imr, folder / IMR_FILE)
        save_motion_network(KEYPOINT_ENCODER, self.network.keypoint_encoder, folder / KEYPOINT_ENCODER_FILE)

    def draw_sheet(self, path: Path, steps: int) -> None:
        """Draws source photos, target photos, and what is painted with the source's and with the edited tokens."""
        people = list(islice(self._source.people(0, 1, 2), SHEET_ROWS))
        sources, targets = [pair[0] for pair in people], [pair[1] for pair in people]
        batch = self._batches.make(people, torch.Generator().manual_seed(0), self._encoders.device)
        self.network.eval()
        try:
            with torch.no_grad():
                edited = self.network.edit(batch)
        finally:  # a sheet that fails ends no training
            self.network.train()
        own, _ = _tokens(self._adapter, self._encoders, sources)
        columns = [
            paint_samples(self._denoiser, self._encoders, targets, steps, self._adapter, tokens)
            for tokens in (own, edited)
        ]
        save_sheet(
            path,
            [[s.picture, t.picture, *painted] for s, t, *painted in zip(sources, targets, *columns, strict=True)],
        )


def make_adapter(denoiser: DenoisingModel, encoders: FrozenEncoders, config: AnchorSettings) -> TrainableAdapter:
    """The adapter that anchoring starts from: a new one, or that of ``start_from``."""
    if config.start_from:
        return _open_adapter(config.start_from, config.variant, denoiser, encoders)
    token_size = next(layer.context for layer in denoiser.layers if layer.is_cross)
    sizes = FaceEncoderSizes(token_size, clip_size=encoders.clip_size)
    torch.manual_seed(config.seed)
    adapter = TrainableAdapter(denoiser.layers, sizes, config.rank, VARIANTS.get(config.variant, DYNAMICID))
    adapter.init_from_text(denoiser.network.state_dict())
    adapter.init_embedding_layer()
    return adapter


def _open_adapter(file: str, variant: str, denoiser: DenoisingModel, encoders: FrozenEncoders) -> TrainableAdapter:
    """Raises InputError for a file that does not fit the UNet or the CLIP vision model."""
    adapter = TrainableAdapter.of(read_checkpoint(file, ADAPTER, variant=VARIANTS.get(variant)), denoiser.layers)
    needed = adapter.face_encoder.sizes.clip_size
    if needed != encoders.clip_size:
        raise InputError(
            f"The file of clip_vision has hidden size {encoders.clip_size}; {file} was trained with one of {needed}. "
            "Give that one."
        )
    return adapter


def _matching_recognition(of_adapter: str, of_data: str) -> str:
    """The one that is known. Raises InputError when both are known and differ."""
    if of_adapter and of_data and of_adapter != of_data:
        raise InputError(
            f"The adapter was trained with the recognition model {of_adapter}; the data set has embeddings of "
            f"{of_data}. Build it with the InsightFace pack of the adapter, or start a new adapter."
        )
    return of_adapter or of_data


def _motion_networks(
    adapter: TrainableAdapter, encoders: FrozenEncoders, config: ReconfigureSettings
) -> tuple[Imr, KeypointEncoder]:
    torch.manual_seed(config.seed)
    if bool(config.imr) != bool(config.keypoint_encoder):
        raise InputError("To start from an IMR, give both files that were trained together: imr and keypoint_encoder.")
    token_size = adapter.face_encoder.sizes.token_size
    if config.imr:
        imr, keypoint_encoder = open_motion_networks(config.imr, config.keypoint_encoder)
        _check_motion_networks(imr.sizes, keypoint_encoder.sizes, token_size, encoders.pooled_size)
        return imr, keypoint_encoder
    feature_size = config.features + encoders.pooled_size
    feed_forward = _FEED_FORWARD * config.size
    sizes = ImrSizes(token_size, feature_size, config.size, config.queries, feed_forward, config.depth, config.depth)
    imr = Imr(sizes)
    init_as_identity(imr)
    return imr, KeypointEncoder(KeypointEncoderSizes(config.features, config.width))


def open_motion_networks(imr: str | Path, keypoint_encoder: str | Path) -> tuple[Imr, KeypointEncoder]:
    """The networks that reconfiguration saved. Raises InputError for other files."""
    weights = read_checkpoint(imr, IMR).modules[IMR]
    encoder_weights = read_checkpoint(keypoint_encoder, KEYPOINT_ENCODER).modules[KEYPOINT_ENCODER]
    network, encoder = (
        Imr(ImrSizes.from_state_dict(weights)),
        KeypointEncoder(KeypointEncoderSizes.from_state_dict(encoder_weights)),
    )
    network.load_state_dict(weights)
    encoder.load_state_dict(encoder_weights)
    return network, encoder


def _check_motion_networks(
    imr: ImrSizes, keypoint_encoder: KeypointEncoderSizes, token_size: int, text_size: int
) -> None:
    """Raises InputError for networks that were not trained together, or with another adapter or text encoder."""
    if imr.token_size != token_size:
        raise InputError(
            f"The IMR edits tokens of {imr.token_size}, the adapter makes tokens of {token_size}. Give an IMR for it."
        )
    features = keypoint_encoder.features + text_size
    if imr.feature_size != features:
        raise InputError(
            f"The IMR takes motions of {imr.feature_size}; keypoint encoder and text encoder give {features} together "
            f"({keypoint_encoder.features} and {text_size}). Give a keypoint encoder that was trained with this IMR."
        )


def save_motion_network(part: str, network: nn.Module, file: Path) -> None:
    """Saves a network in the loader's format. part: IMR or KEYPOINT_ENCODER."""
    weights = {key: tensor.detach().cpu().clone() for key, tensor in network.state_dict().items()}
    save_checkpoint(Checkpoint(part, {part: weights}), file)


@torch.no_grad()
def _tokens(adapter: TrainableAdapter, encoders: FrozenEncoders, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Tokens [B, T, D] of samples, and the unconditional ones [1, T, D]."""
    embeddings, features = face_inputs(samples, encoders, adapter.variant)
    return adapter.tokens(embeddings.to(encoders.device), features), unconditional_tokens(adapter, encoders)


@torch.no_grad()
def unconditional_tokens(adapter: TrainableAdapter, encoders: FrozenEncoders) -> Tensor:
    """The tokens [1, T, D] of no face, for negative prompts."""
    embedding = torch.zeros(1, adapter.face_encoder.sizes.embedding_size, device=encoders.device)
    return adapter.tokens(embedding, encoders.no_face_features())


def paint_samples(
    denoiser: DenoisingModel,
    encoders: FrozenEncoders,
    samples: list[Sample],
    steps: int,
    adapter: TrainableAdapter | None = None,
    tokens: Tensor | None = None,
) -> list[Photo]:
    """Pictures that the base model paints from the samples' captions, in the size of their latents.

    adapter: adds the people, by their own tokens or the given ones, [B, T, D].
    """
    shape = encoders.latents(pictures(samples[:1])).shape[1:]
    noise = torch.randn((len(samples), *shape), generator=torch.Generator().manual_seed(0))
    context = encoders.contexts([sample.caption for sample in samples] + [""] * len(samples))
    attention: Mapping[Any, Any] = {}
    if adapter is not None:
        own, unconditional = _tokens(adapter, encoders, samples)
        both = torch.cat((own if tokens is None else tokens, unconditional.expand(len(own), -1, -1)))
        attention = adapter.patches(both, SaaSettings(), text_attention)
    latents = denoiser.paint(noise.to(encoders.device), steps, _SHEET_CFG, context, attention)
    return to_photos(encoders.pictures(latents))


def save_sheet(path: Path, rows: Sequence[Sequence[Photo]]) -> None:
    """Saves rows of pictures, uint8 [H, W, 3] each, as a JPEG with cells of the size of the largest."""
    height = max(picture.shape[0] for row in rows for picture in row)
    width = max(picture.shape[1] for row in rows for picture in row)
    sheet = Image.new("RGB", (width * max(len(row) for row in rows), height * len(rows)), "white")
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (across * width, down * height))
    sheet.save(path, quality=90)
