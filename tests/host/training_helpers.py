"""Helpers of training tests: a few samples, both stages on tiny models, and numerical gradient checks."""

import csv
from itertools import cycle, islice

import comfy.model_management
import numpy as np
import torch

from tests.host.graphs import tiny_clip, tiny_vae
from tests.host.helpers import core, tiny_clip_vision, tiny_unet

SIDE = 64


def make_samples(people=3, photos=4):
    """People distinguished by colour, with photos distinguished by brightness."""
    rng = np.random.default_rng(0)
    make = core("training.data.sample").Sample
    samples = []
    for person in range(people):
        colour, embedding = rng.uniform(0.2, 0.8, 3), rng.normal(size=512).astype(np.float32)
        for number in range(photos):
            light = 0.6 + 0.2 * number
            expression = ("happy", "sad", "angry", "surprised")[(2 * person + number) % 4]  # no two people's alike
            picture = (colour * light * 255).clip(0, 255) * np.ones((SIDE, SIDE, 1))
            vector = embedding + 0.1 * rng.normal(size=512)
            vector = (vector / np.linalg.norm(vector)).astype(np.float32)
            samples.append(
                make(
                    key=f"{person}_{number}",
                    identity=str(person),
                    picture=picture.astype(np.uint8),
                    caption=f"a photo of a person, number {number}",
                    face_prompt=f"in a {expression} expression, in {('front', 'side')[number % 2]} view",
                    expression=expression,
                    pose=np.array([0, 30 * (number % 2), 0], np.float32),
                    keypoints=rng.uniform(0.2, 0.8, (106, 2)).astype(np.float32),
                    embedding=vector,
                    embedding_rgb=vector[::-1].copy(),
                    labels={},
                )
            )
    return samples


class ListSource:
    """Samples in the order of a list, repeated endlessly."""

    recognition = ""

    def __init__(self, samples):
        self._samples = samples

    def samples(self, process, processes, skip=0):
        return islice(cycle(self._samples), process + skip * processes, None, processes)

    def people(self, process, processes, photos, skip=0):
        groups = {}
        for one in self._samples:
            groups.setdefault(one.identity, []).append(one)
        people = cycle([group[:photos] for group in groups.values()])
        return islice(people, process + skip * processes, None, processes)


def make_models():
    """The trainable model and the encoders, as ``load_models`` returns them."""
    device = comfy.model_management.get_torch_device()
    module = core("comfy_host.differentiable")
    encoders = module.FrozenEncoders(tiny_vae(), tiny_clip(), tiny_clip_vision(), device)
    return module.DenoisingModel(tiny_unet(), device, torch.float32, gradient_checkpointing=False), encoders


def config(kind, output, **changes):
    given = {
        "output": str(output), "steps": 4, "batch_size": 2,
        "learning_rate": 1e-3, "warmup_steps": 1, "log_every": 1, "save_every": 2, "sample_every": 0,
    }  # fmt: skip
    return getattr(core("training.config"), kind)(**{**given, **changes})


def anchor_stage(models, output, **changes):
    settings = config("AnchorSettings", output, **{"rank": 4, **changes})
    return core("training.stages").AnchorStage(*models, ListSource(make_samples()), settings), settings


def reconfigure_stage(models, output, adapter_file, **changes):
    small = {"size": 64, "features": 64, "targets": 2, "adapter": str(adapter_file), **changes}
    settings = config("ReconfigureSettings", output, **small)
    return core("training.stages").ReconfigureStage(*models, ListSource(make_samples()), settings), settings


def train(stage, settings):
    core("training.loop").train(stage, settings, cpu=True)


def losses(output, name="loss"):
    with (output / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def first_batch(stage, seed=3):
    raw = next(stage.raw_batches(0, 1))
    return stage.make_batch(raw, torch.Generator().manual_seed(seed), torch.device("cpu"))


def randomise(network, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def slopes(stage, batch, parameter, direction, step):
    """Numerical slopes of the loss along a direction, forwards and backwards."""
    before, start = parameter.clone(), float(stage.network(batch)["loss"])
    found = []
    for way in (step, -step):
        parameter.copy_(before + way * direction)
        found.append((float(stage.network(batch)["loss"]) - start) / way)
    parameter.copy_(before)
    return found


def assert_gradient_is_the_slope(stage, parameters):
    batch = first_batch(stage)
    stage.network.eval()
    stage.network.zero_grad()
    stage.network(batch)["loss"].backward()
    for name in parameters:
        parameter = stage.network.get_parameter(name)
        direction = parameter.grad / parameter.grad.norm()
        expected = float((parameter.grad * direction).sum())
        assert expected > 0, name
        # Large steps leave the tangent, small ones drown in rounding, and on one side the loss may jump.
        steps = (1e-2, 5e-3, 3e-3, 2e-3, 1e-3)
        tried = [one for step in steps for one in slopes(stage, batch, parameter, direction, step)]
        assert min(abs(one / expected - 1) for one in tried) < 0.03, (name, expected, tried)
