"""The miniature's captions: parts are left out at random, so that each part acquires a meaning of its own."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.sample import Sample
from ..order import ShardSource
from ..synthetic import people
from ..synthetic.people import Identity
from ..synthetic.shots import BACKGROUNDS

_PICTURES = ("a portrait of", "a photo of")


def random_caption(sample: Sample, rng: np.random.Generator, describe_share: float, motion_share: float) -> str:
    """A caption of a synthetic picture that mentions clothes and background three times out of four each.

    describe_share: of captions that describe the person; others say "a man", "a woman" or "a person". motion_share: of
    captions that end with the face prompt.
    """
    identity = _identity(sample.labels["person"])
    shot = sample.labels["shot"]
    plain = ("a man" if identity.male else "a woman", "a person")[int(rng.random() < 0.7)]
    who = people.describe(identity) if rng.random() < describe_share else plain
    parts = [f"{rng.choice(_PICTURES)} {who}"]
    if rng.random() < 0.75:
        parts.append(f"wearing {people.describe_clothes(identity)}")
    if rng.random() < 0.75:
        parts.append(BACKGROUNDS[shot["background"]].format(shot["background_colour"]))
    if rng.random() < motion_share:
        parts.append(sample.face_prompt)
    return ", ".join(parts)


class CaptionSource(ShardSource):
    """A data set of synthetic people whose captions change each epoch."""

    def __init__(self, folder: Path, seed: int, describe_share: float, motion_share: float) -> None:
        """describe_share, motion_share: see ``random_caption``."""
        super().__init__(folder, seed)
        self._shares = {"describe_share": describe_share, "motion_share": motion_share}

    def samples(self, process: int, processes: int, skip: int = 0) -> Iterator[Sample]:
        """As in ``ShardSource``."""
        for turn, sample in enumerate(super().samples(process, processes, skip), start=skip):
            rng = np.random.default_rng((self._seed, process, turn))
            yield replace(sample, caption=random_caption(sample, rng, **self._shares))

    def people(self, process: int, processes: int, photos: int, skip: int = 0) -> Iterator[list[Sample]]:
        """As in ``ShardSource``."""
        for turn, samples in enumerate(super().people(process, processes, photos, skip), start=skip):
            rng = np.random.default_rng((self._seed, process, turn))
            yield [replace(sample, caption=random_caption(sample, rng, **self._shares)) for sample in samples]


def _identity(labels: dict[str, Any]) -> Identity:
    return Identity(**{field.name: labels[field.name] for field in fields(Identity)})
