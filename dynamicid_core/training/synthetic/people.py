"""People who do not exist: random shape, colours, hair and clothes, and the words that describe them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .mesh import HeadMesh, person
from .render import Colour

SKIN_TONES: tuple[Colour, ...] = (
    (0.74, 0.52, 0.42), (0.66, 0.43, 0.32), (0.58, 0.36, 0.24), (0.46, 0.27, 0.17), (0.32, 0.17, 0.10),
    (0.20, 0.10, 0.06), (0.12, 0.06, 0.035),
)  # fmt: skip
"""From light to dark, linear RGB."""
HAIR_COLOURS: dict[str, Colour] = {
    "black": (0.012, 0.010, 0.010),
    "dark brown": (0.035, 0.020, 0.013),
    "brown": (0.10, 0.055, 0.030),
    "blond": (0.46, 0.30, 0.13),
    "red": (0.26, 0.070, 0.022),
    "grey": (0.26, 0.25, 0.25),
    "white": (0.62, 0.60, 0.58),
}
EYE_COLOURS: dict[str, Colour] = {
    "brown": (0.085, 0.040, 0.018),
    "hazel": (0.16, 0.10, 0.035),
    "green": (0.12, 0.17, 0.075),
    "blue": (0.10, 0.19, 0.34),
    "grey": (0.22, 0.25, 0.28),
}
CLOTH_COLOURS: dict[str, Colour] = {
    "white": (0.75, 0.75, 0.74),
    "black": (0.018, 0.018, 0.02),
    "grey": (0.22, 0.22, 0.23),
    "red": (0.50, 0.030, 0.035),
    "orange": (0.72, 0.22, 0.02),
    "yellow": (0.78, 0.55, 0.05),
    "green": (0.04, 0.25, 0.07),
    "blue": (0.03, 0.13, 0.48),
    "purple": (0.18, 0.045, 0.32),
    "pink": (0.75, 0.27, 0.38),
    "brown": (0.17, 0.08, 0.035),
}
HAIR_STYLES: dict[str, str] = {
    "bald": "a bald head",
    "buzz": "very short {} hair",
    "short": "short {} hair",
    "side": "short {} hair with a side parting",
    "curly": "curly {} hair",
    "afro": "an afro of {} hair",
    "bun": "{} hair in a bun",
    "bob": "chin-length {} hair",
    "long": "long {} hair",
}
"""Style -> its wording in captions."""
BEARDS: dict[str, str] = {"none": "", "stubble": "stubble", "moustache": "a moustache", "goatee": "a goatee",
                          "full": "a full beard"}  # fmt: skip
GARMENTS = ("T-shirt", "V-neck sweater", "turtleneck", "striped jumper", "jacket")

_MALE_STYLES = {"bald": 0.10, "buzz": 0.16, "short": 0.30, "side": 0.22, "curly": 0.10, "afro": 0.04, "long": 0.08}
_FEMALE_STYLES = {"short": 0.07, "side": 0.08, "curly": 0.12, "afro": 0.06, "bun": 0.15, "bob": 0.22, "long": 0.30}
_BEARD_SHARES = (0.45, 0.20, 0.10, 0.10, 0.15)

# Standard deviations of the detail targets by feature; at twice these values, faces are caricatures.
_SPREAD = {"head": 0.13, "cheek": 0.30, "chin": 0.26, "ear": 0.30, "eyebrows": 0.25, "eye": 0.26, "forehead": 0.20,
           "mouth": 0.26, "nose": 0.26, "neck": 0.12, "measure": 0.08}  # fmt: skip
_GAIN = 1.6
# Axes that shift a whole feature far out of place.
_GENTLE = ("mouth-trans", "neck-trans", "head-trans", "nose-trans", "ear-flap", "eye-push1", "eye-push2")
_OPPOSITES = {"incr": "decr", "up": "down", "out": "in", "forward": "backward", "convex": "concave",
              "uncompress": "compress"}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """One person. age, muscle, weight: 0 to 1. race: shares of mesh.RACES. Colours are linear RGB.

    skin_darkness: position in SKIN_TONES, 0 to 1. freckles: 0 to 1. moles: how many. hairline: how much higher than
    usual, mesh units. fringe: whether hair covers the forehead. parting: -1 (picture's left) to 1. brow_arch,
    brow_thickness: see render.Look. cloth_second: of stripes, or under a jacket.
    """

    seed: int
    male: bool
    age: float
    muscle: float
    weight: float
    race: tuple[float, ...]
    skin: Colour
    skin_darkness: float
    lips: Colour
    freckles: float
    moles: int
    brow_arch: float
    brow_thickness: float
    eye_colour: str
    hair_style: str
    hair_colour: str
    hairline: float
    hair_length: float
    fringe: bool
    parting: float
    beard: str
    garment: str
    cloth_colour: str
    cloth_second: str


def random_identity(seed: int) -> Identity:
    """The person with this number, any sex, age from about 18 on, and origin."""
    rng = np.random.default_rng([1, seed])
    male = bool(rng.random() < 0.5)
    age = float(rng.beta(1.1, 2.0) * 0.95)
    muscle, weight = (float(value) for value in rng.normal(0.5, 0.2, 2).clip(0, 1))
    race = rng.dirichlet([0.35] * 3)
    darkness = float((race @ [0.80, 0.33, 0.15] + rng.normal(0, 0.10)).clip(0, 1))
    skin = np.array(_between(SKIN_TONES, darkness)) * rng.normal(1, 0.03, 3)
    redness = rng.uniform(0, 0.3) if male else rng.uniform(0.1, 1)
    lips = skin * (0.80, 0.52, 0.52) * (1 - redness) + np.array((0.42, 0.06, 0.08)) * (0.4 + skin[0]) * redness
    styles = _MALE_STYLES if male else _FEMALE_STYLES
    beard = str(rng.choice(list(BEARDS), p=_BEARD_SHARES)) if male else "none"
    cloth, second = rng.choice(list(CLOTH_COLOURS), 2, replace=False)
    return Identity(
        seed=seed,
        male=male,
        age=age,
        muscle=muscle,
        weight=weight,
        race=tuple(float(share) for share in race),
        skin=_colour(skin),
        skin_darkness=darkness,
        lips=_colour(lips),
        freckles=float(max(0, rng.normal(-0.15, 0.5)) * (1 - darkness)),
        moles=int(rng.poisson(1.5)),
        brow_arch=float(rng.uniform(-0.9, 0.0)),
        brow_thickness=float(rng.uniform(0.5, 1.15) + 0.2 * male),
        eye_colour=_eye_colour(rng, european=race[2] > 0.5),
        hair_style=str(rng.choice(list(styles), p=list(styles.values()))),
        hair_colour=_hair_colour(rng, age, european=race[2] > 0.5),
        hairline=float(rng.normal(0, 0.06) + (0.22 * age * rng.random() if male else 0)),
        hair_length=float(rng.uniform(0.75, 1.2)),
        fringe=bool(rng.random() < (0.1 if male else 0.3)),
        parting=float(rng.choice([-1, 1]) * rng.uniform(0.3, 1)),
        beard=beard,
        garment=str(rng.choice(GARMENTS)),
        cloth_colour=str(cloth),
        cloth_second=str(second),
    )


def random_clothes(identity: Identity, seed: int) -> Identity:
    """The same person in random clothes."""
    rng = np.random.default_rng([7, seed])
    cloth, second = rng.choice(list(CLOTH_COLOURS), 2, replace=False)
    return replace(identity, garment=str(rng.choice(GARMENTS)), cloth_colour=str(cloth), cloth_second=str(second))


def shape_of(identity: Identity, mesh: HeadMesh) -> dict[str, float]:
    """The weights of the mesh's shapes for a person, details included."""
    rng = np.random.default_rng([2, identity.seed])
    weights = person(
        male=0.93 if identity.male else 0.07,
        age=identity.age,
        muscle=identity.muscle,
        weight=identity.weight,
        race=identity.race,
    )
    for stem, (positive, negative) in _axes(mesh.details).items():
        amount = float(np.clip(rng.normal(0, _SPREAD[stem.split("-")[0]] * _GAIN), -1, 1))
        amount *= 0.3 if stem in _GENTLE else 1
        amount = abs(amount) * 0.6 if not negative else amount
        weights |= {name: abs(amount) for name in (positive if amount >= 0 else negative)}
    return weights


def describe(identity: Identity) -> str:
    """The person in words without clothes, such as "a young woman with long red hair"."""
    years = "young" if identity.age < 0.3 else "middle-aged" if identity.age < 0.6 else "elderly"
    hair = HAIR_STYLES[identity.hair_style].format(identity.hair_colour)
    fringe = " and a fringe" if identity.fringe and identity.hair_style in ("bob", "long") else ""
    beard = f" and {BEARDS[identity.beard]}" if identity.beard != "none" else ""
    noun = "man" if identity.male else "woman"
    return f"{article(years)} {years} {noun} with {hair}{fringe}{beard}"


def describe_clothes(identity: Identity) -> str:
    """The garment in words, such as "a blue and white striped jumper"."""
    colour = identity.cloth_colour
    if identity.garment == "striped jumper":
        colour = f"{colour} and {identity.cloth_second}"
    return f"{article(colour)} {colour} {identity.garment}"


def _axes(names: Iterable[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Detail targets as axes: stem -> targets of its positive and of its negative end, left and right together."""
    axes: dict[str, tuple[list[str], list[str]]] = {}
    negative = {end: positive for positive, end in _OPPOSITES.items()}
    for name in names:
        plain = name[2:] if name[:2] in ("l-", "r-") else name
        stem, _, end = plain.rpartition("-")
        if end in _OPPOSITES or end in negative:
            axes.setdefault(stem, ([], []))[end in negative].append(name)
        else:
            axes.setdefault(plain, ([], []))[0].append(name)
    return dict(sorted(axes.items()))


def _eye_colour(rng: np.random.Generator, european: bool) -> str:
    shares = (0.35, 0.15, 0.15, 0.25, 0.10) if european else (0.92, 0.05, 0.01, 0.01, 0.01)
    return str(rng.choice(list(EYE_COLOURS), p=shares))


def _hair_colour(rng: np.random.Generator, age: float, european: bool) -> str:
    if rng.random() < 1.5 * (age - 0.35):
        return "white" if rng.random() < age - 0.3 else "grey"
    shares = (0.16, 0.24, 0.24, 0.22, 0.14, 0, 0) if european else (0.66, 0.22, 0.08, 0.02, 0.02, 0, 0)
    return str(rng.choice(list(HAIR_COLOURS), p=shares))


def _between(colours: tuple[Colour, ...], place: float) -> Colour:
    """The colour at a place of 0 to 1 in a row of colours."""
    table = np.array(colours)
    steps = np.linspace(0, 1, len(table))
    return _colour([np.interp(place, steps, table[:, channel]) for channel in range(3)])


def _colour(values: Iterable[float]) -> Colour:
    red, green, blue = (float(min(max(value, 0.005), 0.95)) for value in values)
    return red, green, blue


def article(word: str) -> str:
    """The indefinite article of a word, "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"
