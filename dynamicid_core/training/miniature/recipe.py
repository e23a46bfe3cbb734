"""The miniature from nothing: its data, every stage in order, and the files that are shipped.

Each stage goes on where it was interrupted, and is left out when it is done.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoint import ADAPTER_FILE, IMR_FILE, KEYPOINT_ENCODER_FILE
from ...comfy_host import miniature
from ...comfy_host.differentiable import DenoisingModel
from ...face_packs import pack_models
from ...saa import SaaSettings
from .. import stages
from ..config import AnchorSettings, LoopConfig, ReconfigureSettings
from ..data.shards import INDEX, SampleIndex
from ..loop import train
from ..order import ShardSource
from ..states import States
from ..synthetic import command
from .anchoring import RecognisedAnchorStage
from .autoencoder import AutoencoderStage
from .contrast import ContrastStage
from .decoder import DecoderStage
from .denoising import SCENES, DenoisingStage, read_scenes
from .edits import Editor, EditorStage
from .encoders import RememberingEncoders
from .finishing import FinishingStage
from .judge import JudgeStage
from .kitchen import OTHERS, PEOPLE, UNSEEN, Kitchen, denoising_model
from .likeness import ALONE_IN_LIKENESS, SCENES_IN_LIKENESS, LikenessStage, keep_self_attention
from .packing import pack, pack_file
from .perception import known_people, open_perception
from .pieces import Pieces
from .recogniser import RecogniserStage
from .together import PlacedAnchorStage, TogetherStage
from .weights import initialise

_log = logging.getLogger(__name__)
_TOLD = 0.1  # share of the adapter's captions that describe the person


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
    source, first = kitchen.source(PEOPLE, 0.5, 0.5), kitchen.first(miniature.VAE_FILE)
    _run(lambda timed: AutoencoderStage(source, timed, first), config, kitchen)


def train_decoder(kitchen: Kitchen) -> None:
    """Decoder of the VAE."""
    config = LoopConfig(
        output=str(kitchen.stage("decoder")),
        steps=kitchen.effort.decoder, batch_size=16, learning_rate=2e-4, ema_decay=0.99,
        log_every=20, save_every=200, sample_every=200,
    )  # fmt: skip

    def stage(timed: LoopConfig) -> DecoderStage:
        vae, encoders = kitchen.weights("autoencoder", miniature.VAE_FILE), kitchen.encoders("autoencoder")
        perception = open_perception(kitchen.pack, encoders.device)
        return DecoderStage(encoders, kitchen.source(PEOPLE, 0, 0), timed, perception, vae)

    _run(stage, config, kitchen)


def train_contrast(kitchen: Kitchen) -> None:
    """Text encoder and image encoder."""
    config = LoopConfig(
        output=str(kitchen.stage("contrast")),
        steps=kitchen.effort.contrast, batch_size=64, learning_rate=5e-4, weight_decay=0.05, ema_decay=0.99,
        log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: ContrastStage(kitchen.source(PEOPLE, 0.8, 0.8), timed), config, kitchen)


def train_judge(kitchen: Kitchen) -> None:
    """Judge."""
    config = LoopConfig(
        output=str(kitchen.stage("judge")),
        steps=kitchen.effort.judge, batch_size=32, learning_rate=1e-3, weight_decay=0.05,
        ema_decay=0.0, log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: JudgeStage(kitchen.source(OTHERS, 0.5, 0.5), timed), config, kitchen)


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
        return DenoisingStage(denoising_model(model), kitchen.encoders(), source, scenes, timed)

    _run(stage, config, kitchen)


def train_recogniser(kitchen: Kitchen) -> None:
    """What looks on while the adapter is anchored."""
    config = LoopConfig(
        output=str(kitchen.stage("recogniser")),
        steps=kitchen.effort.recogniser, batch_size=64, learning_rate=2e-3, weight_decay=0.05, ema_decay=0.9,
        log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: RecogniserStage(kitchen.encoders(), kitchen.source(PEOPLE, 0, 0), timed), config, kitchen)


def train_adapter(kitchen: Kitchen) -> None:
    """Anchoring: face encoder and SAA, on pictures of single people."""
    config = AnchorSettings(
        output=str(kitchen.stage("anchoring")),
        steps=kitchen.effort.anchoring, batch_size=16, learning_rate=2e-3, ema_decay=0.99,
        rates={"adapter.face_encoder": 0.05, "adapter.updates": 0.5},
        log_every=20, save_every=250, sample_every=500, rank=16, other_clothes=0.5,
        start_from=str(kitchen.first(ADAPTER_FILE) or ""),
    )  # fmt: skip

    def stage(timed: AnchorSettings) -> RecognisedAnchorStage:
        source = kitchen.source(PEOPLE, _TOLD, 0.0)
        denoiser, looking_on = kitchen.denoiser("denoising"), kitchen.recogniser()
        return RecognisedAnchorStage(denoiser, kitchen.encoders(), source, timed, looking_on)

    _run(stage, config, kitchen)


def train_together(kitchen: Kitchen) -> None:
    """UNet and adapter, until they paint what they were asked for."""
    config = AnchorSettings(
        output=str(kitchen.stage("together")),
        steps=kitchen.effort.together, batch_size=16, learning_rate=5e-4, ema_decay=0.995,
        rates={"anchoring.adapter.face_encoder": 0.1, "denoising": 0.6}, threshold=SaaSettings().threshold,
        log_every=19,  # each kind of batch comes up: one in five is of the other
        save_every=250, sample_every=500, other_clothes=0.5,
        start_from=str(kitchen.weights("anchoring", ADAPTER_FILE)),
    )  # fmt: skip

    def stage(timed: AnchorSettings) -> TogetherStage:
        denoiser, encoders = kitchen.denoiser("denoising"), kitchen.encoders()
        people = kitchen.source(PEOPLE, _TOLD, 0.0)
        anchoring = PlacedAnchorStage(denoiser, encoders, people, timed, kitchen.recogniser())
        return TogetherStage(denoiser, _alone(kitchen, denoiser, encoders, timed), anchoring)

    _run(stage, config, kitchen)


def train_editor(kitchen: Kitchen) -> None:
    """Reconfiguration: IMR and keypoint encoder."""
    config = ReconfigureSettings(
        output=str(kitchen.stage("reconfiguration")),
        adapter=str(kitchen.weights("together", ADAPTER_FILE)),
        imr=str(kitchen.first(IMR_FILE) or ""),
        keypoint_encoder=str(kitchen.first(KEYPOINT_ENCODER_FILE) or ""),
        steps=kitchen.effort.reconfiguration, batch_size=8, targets=4, learning_rate=5e-4, ema_decay=0.99,
        log_every=20, save_every=250, sample_every=500, size=192, features=64, width=4,
        diffusion_share=0.1, diffusion_weight=100.0,
    )  # fmt: skip

    def stage(timed: ReconfigureSettings) -> EditorStage:
        source = kitchen.source(PEOPLE, _TOLD, 0.0)
        return EditorStage(kitchen.denoiser("together"), kitchen.encoders(), source, timed)

    _run(stage, config, kitchen)


def train_likeness(kitchen: Kitchen) -> None:
    """UNet, adapter and IMR, until what they paint is like the people."""
    imr = kitchen.weights("reconfiguration", IMR_FILE)
    _train_likeness(kitchen, "likeness", "together", imr, kitchen.effort.likeness)


def train_more_likeness(kitchen: Kitchen) -> None:
    """The same three go on."""
    imr = kitchen.weights("likeness", IMR_FILE)
    _train_likeness(kitchen, "more_likeness", "likeness", imr, kitchen.effort.more_likeness)


def _train_likeness(kitchen: Kitchen, name: str, before: str, imr: Path, steps: int) -> None:
    """name: of this stage. before: the stage whose UNet and adapter go on."""
    config = AnchorSettings(
        output=str(kitchen.stage(name)),
        steps=steps, batch_size=16, learning_rate=4e-4, ema_decay=0.99,
        rates={"anchoring.editor": 0.5}, threshold=SaaSettings().threshold,
        log_every=19, save_every=180, sample_every=0, other_clothes=0.5,
        start_from=str(kitchen.weights(before, ADAPTER_FILE)),
    )  # fmt: skip

    def stage(timed: AnchorSettings) -> TogetherStage:
        denoiser, encoders = kitchen.denoiser(before), kitchen.encoders()
        people, perception = kitchen.source(PEOPLE, _TOLD, 0.0), open_perception(kitchen.pack, encoders.device)
        of_keypoints = kitchen.weights("reconfiguration", KEYPOINT_ENCODER_FILE)
        network, keypoint_encoder = stages.open_motion_networks(imr, of_keypoints)
        editor = Editor(network.to(encoders.device), keypoint_encoder.to(encoders.device))
        known = known_people(kitchen.data(PEOPLE))
        likeness = LikenessStage(denoiser, encoders, people, timed, editor, perception, known)
        alone = _alone(kitchen, denoiser, encoders, timed, SCENES_IN_LIKENESS)
        together = TogetherStage(denoiser, alone, likeness, ALONE_IN_LIKENESS)
        keep_self_attention(denoiser.network, likeness.network.adapter)
        return together

    _run(stage, config, kitchen)


def finish(kitchen: Kitchen) -> None:
    """Decoder of the VAE once more, on what the packed files paint; it takes the place of theirs."""
    config = LoopConfig(
        output=str(kitchen.stage("finishing")),
        steps=kitchen.effort.finishing, batch_size=16, learning_rate=2e-4, ema_decay=0.98,
        log_every=20, save_every=100, sample_every=100,
    )  # fmt: skip

    def stage(timed: LoopConfig) -> FinishingStage:
        from accelerate import PartialState

        from . import painted
        from .bench import open_bench

        encoders = kitchen.encoders()
        perception = open_perception(kitchen.pack, encoders.device)
        bench, data, folder = open_bench(kitchen), kitchen.data(PEOPLE), Path(timed.output) / "painted"
        with PartialState().main_process_first():
            pictures = painted.paint_people(bench, data, kitchen.effort.painted, folder)
        known = known_people(data).to(encoders.device)
        source, vae = kitchen.source(PEOPLE, 0, 0), kitchen.weights("decoder", miniature.VAE_FILE)
        return FinishingStage(encoders, source, timed, perception, vae, pictures, known)

    _run(stage, config, kitchen)
    _once(lambda kitchen: pack_file(kitchen, miniature.VAE_FILE, "finishing"), kitchen)


def measure_all(kitchen: Kitchen) -> None:
    """What the finished files can do with unseen people: tables, plots and sheets in the folder ``measured``.

    A measurement of the same files is not made again.
    """
    from . import measure, report
    from .bench import SETTINGS, open_bench

    folder, effort = kitchen.out / "measured", kitchen.effort
    looking = [*pack_models(kitchen.pack), kitchen.data(UNSEEN) / INDEX]
    files = [*(kitchen.out / "miniature").glob("*.safetensors"), *looking]
    pieces = Pieces(folder, files, [effort.ceiling, effort.few_steps])
    bench = open_bench(kitchen)
    index = SampleIndex(kitchen.data(UNSEEN))
    of_people = [index.samples(name) for name in index.people]
    people = [bench.person(first.identity, first.picture) for first, *_ in of_people]
    rest = [
        samples[1 + (turn + more) % (len(samples) - 1)]  # another number, so another expression, of each person
        for turn, samples in enumerate(of_people)
        for more in range(effort.ceiling)
    ]
    ceilings = measure.ceilings(bench, rest, people, pieces)
    findings = [
        finding
        for number, cases in effort.measured.items()
        for finding in measure.measure(bench, people, number, cases, SETTINGS, pieces)
    ]
    steps = measure.few_steps(bench, people, effort.few_steps, pieces)
    text = report.tables(ceilings, findings, steps, effort.few_steps)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    report.save_figures(ceilings, findings, steps, folder / "figures.json")
    report.draw_steps(steps, folder / "steps.png")
    for number in effort.measured:
        rows = [
            (setting.label, report.read_pictures(pieces.folder, number, place, 8 // number))
            for place, setting in enumerate(SETTINGS)
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
    "finishing": finish,
    "measure": measure_all,
}
"""Name -> what it does; each needs those before it."""
_ONCE = "data", "pack", "measure"


def cook(kitchen: Kitchen, only: list[str]) -> None:
    """The stages in order; ``only`` those named, or all."""
    for name, stage in STAGES.items():
        if not only or name in only:
            _log.info("--- %s", name)
            _once(stage, kitchen) if name in _ONCE else stage(kitchen)


def _once(stage: Callable[[Kitchen], None], kitchen: Kitchen) -> None:
    """Several processes would write the same files; only the first one does, and the others wait."""
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        stage(kitchen)
    state.wait_for_everyone()


def _run(stage: Callable[[Any], Any], config: LoopConfig, kitchen: Kitchen) -> None:
    """Trains what ``stage`` makes of the settings, with the learning rate rising at first and falling at last.

    Several processes (accelerate launch) share each batch.
    """
    from accelerate import PartialState

    steps = config.steps
    config = replace(
        config,
        warmup_steps=min(100, steps // 10),
        cooldown_steps=steps * 3 // 5,
        batch_size=max(1, config.batch_size // kitchen.effort.smaller // PartialState().num_processes),
    )
    if States(Path(config.output), config.keep).last_step() < steps:
        train(stage(config), config, kitchen.cpu)


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
