"""The cases of an evaluation: which people, in which scenes, with which expressions and poses."""

import hashlib
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..expression import EXPRESSIONS
from ..face_prompt import face_prompt
from ..images import Photo, check_photo, is_photo, list_photos, open_photo
from ..keypoints import Keypoints
from ..layouts import MAX_PEOPLE
from ..motion import MAX_TURN, edit_motion
from .metrics import DOWN, FRONT, POSES, SIDE, UP
from .results import SEPARATOR

SCENES = (
    "a portrait photo of {who} on a beach at sunset",
    "a photo of {who} in a snowy forest, soft light",
    "a photo of {who} in a library, shelves of books behind",
    "a photo of {who} at a table in a street cafe",
    "a photo of {who} in a busy street at night, neon lights",
    "a film still of {who} in a desert, dust in the air",
    "a photo of {who} aboard a spaceship, control panels behind",
    "a photo of {who} in a garden full of roses",
    "an oil painting of {who} by a lake",
    "a pencil drawing of {who} in front of mountains",
)
"""The paper does not publish its prompts; these are ours."""

_log = logging.getLogger(__name__)
_WHO = ("a person", *(f"{n} people" for n in ("two", "three", "four", "five", "six", "seven", "eight")))
# Requested pitch and yaw in degrees: well beyond the 10 at which a class begins.
_ANGLES = {FRONT: (0.0, 0.0), SIDE: (0.0, 30.0), UP: (20.0, 0.0), DOWN: (-20.0, 0.0)}
_LONGEST_NAME, _LONGEST_KEY = 50, 200  # bytes; names of people become file names, whose length is limited
_SEPARATORS = ("+", SEPARATOR)  # in the names of pictures, and in tables
# Step from one person of a group to the next through MOTIONS: another expression and another pose.
_NEXT_MOTION = 9
# Step from one scene of a group to its next. It is coprime to the number of scenes, so that each group gets all of
# them, and more than 1, so that few groups, which start with neighbouring scenes, soon cover all scenes.
_NEXT_SCENE = 3


@dataclass(frozen=True)
class Reference:
    """A person, and the photo of them that is encoded and compared with."""

    name: str
    path: Path

    def read(self) -> Photo:
        """The photo, upright. Raises InputError when it is no picture."""
        return open_photo(self.path)


@dataclass(frozen=True)
class Motion:
    """An expression of EXPRESSIONS and a pose of POSES. right: whether a side view looks to the picture's right."""

    expression: str
    pose: str
    right: bool = True

    @property
    def key(self) -> str:
        """Its name, which differs from that of every other motion."""
        side = ("-right" if self.right else "-left") if self.pose == SIDE else ""
        return f"{self.expression}-{self.pose}{side}"

    @property
    def prompt(self) -> str:
        """The face prompt that asks for it."""
        pitch, yaw = self._angles()
        return face_prompt(self.expression, torch.tensor([pitch, yaw, 0.0]))

    def keypoints(self, own: Keypoints) -> Keypoints:
        """A person's own keypoints, turned to the pose, with the preset of the expression; roll is unchanged."""
        pitch, yaw = self._angles()
        still = edit_motion(own)
        start = (0.0, 0.0, 0.0) if still.pose is None else still.pose.tolist()
        turn, nod = (min(max(turn, -MAX_TURN), MAX_TURN) for turn in (yaw - start[1], pitch - start[0]))
        return edit_motion(own, self.expression, yaw=turn, pitch=nod)

    def _angles(self) -> tuple[float, float]:
        pitch, yaw = _ANGLES[self.pose]
        return pitch, yaw if self.right else -yaw


# The numbers of expressions (7) and poses (4) are coprime, so that counting both up meets each pair once, and
# neighbours differ in both.
MOTIONS = tuple((EXPRESSIONS[i % 7], POSES[i % 4]) for i in range(len(EXPRESSIONS) * len(POSES)))


@dataclass(frozen=True)
class Case:
    """One picture to paint. people: names, from left to right. motions: one each. scene: index into SCENES."""

    people: tuple[str, ...]
    motions: tuple[Motion, ...]
    scene: int
    seed: int

    @property
    def prompt(self) -> str:
        """The picture's prompt, without expression and pose: these come from the IMR alone."""
        return SCENES[self.scene].format(who=_WHO[len(self.people) - 1])

    @property
    def base_key(self) -> str:
        """The name of the base model's picture of it, which does not depend on who the people are."""
        return f"people{len(self.people)}_scene{self.scene}_seed{self.seed}"

    @property
    def key(self) -> str:
        """Its name, which differs from that of every other case."""
        asked = "+".join(motion.key for motion in self.motions)
        return self._key(f"{'+'.join(self.people)}_{asked}")

    @property
    def unedited_key(self) -> str:
        """The name of its picture without editing."""
        return self._key("+".join(self.people))

    def _key(self, who: str) -> str:
        if len(who.encode()) > _LONGEST_KEY:
            who = f"people{len(self.people)}_{hashlib.sha256(who.encode()).hexdigest()[:16]}"
        return f"{who}_scene{self.scene}_seed{self.seed}"


def motions_for(first: int, people: int, right: bool) -> tuple[Motion, ...]:
    """What is asked of the people of a picture: neighbours differ in expression and pose, and side views of them look
    to opposite sides. first: index into MOTIONS, counting on; 28 in a row ask for each pair once. right: for the first
    person.
    """
    pairs = [MOTIONS[(first + _NEXT_MOTION * i) % len(MOTIONS)] for i in range(people)]
    return tuple(Motion(*pair, right == (i % 2 == 0)) for i, pair in enumerate(pairs))


def looks_right(number: int) -> bool:
    """Whether the first person of a picture looks to the right in a side view, by the picture's number.

    Four in a row ask for one side view, so the side changes after four; 56 ask for each expression once to each side.
    """
    return number // len(POSES) % 2 == 0


def find_references(folder: Path) -> list[Reference]:
    """The people in a folder, sorted by name: a photo of each, or a folder for each, whose first photo is used.

    Photos are recognised as in the data set builder, see ``is_photo``.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give one with a photo, or a folder of photos, of each person.")
    found: dict[str, Reference] = {}
    for entry in sorted(folder.iterdir()):
        photo = _first_photo(entry)
        if photo is None:
            if entry.is_dir() and not entry.name.startswith("."):
                _log.info("%s has no photo in it and is left out.", entry)
            continue
        name = entry.name if entry.is_dir() else entry.stem
        if name in found:
            raise InputError(f"{folder} has two people named {name}: {found[name].path} and {photo}. Rename one.")
        found[name] = Reference(name, photo)
    if not found:
        raise InputError(
            f"{folder} has no photos, neither in it nor in its folders. Put a photo, or a folder of photos, of each "
            "person there."
        )
    for reference in found.values():
        _check(reference)
    return list(found.values())


def plan(names: Sequence[str], people: int, seeds: int, limit: int | None = None) -> list[Case]:
    """The cases with ``people`` people per picture: every group, scene, seed and motion, at most ``limit`` of them.

    Groups are neighbours in the list of names, which goes round: as many groups as people. The order is fixed and
    even: each 28 in a row ask for each expression and pose once, side views look to the right and to the left in turn,
    any first ones have each group equally often (give or take one), in scene after scene and with seed after seed, and
    no group, scene and seed again before all have come. So a higher limit keeps the cases of a lower one. Raises
    InputError when there are fewer names than people.
    """
    if not 1 <= people <= MAX_PEOPLE:
        raise InputError(f"{people} people were asked for; it can be 1 to {MAX_PEOPLE}.")
    if len(names) < people:
        raise InputError(
            f"Pictures of {people} people need {people} references; found {len(names)}. Add photos of more people, or "
            "leave that number out of --people."
        )
    if seeds < 1 or (limit is not None and limit < 1):
        raise InputError("--seeds and --limit must be at least 1.")
    groups = [tuple(names[(first + i) % len(names)] for i in range(people)) for first in range(len(names))]
    settings = _settings(groups, seeds)
    # Counting up both lists at once gives new pairs until both end together; from there on, each setting is paired with
    # the motion after the one it started with.
    period = math.lcm(len(MOTIONS), len(settings))
    cases = [
        _case(*settings[i % len(settings)], (i + i // period) % len(MOTIONS), looks_right(i))
        for i in range(len(MOTIONS) * len(settings))
    ]
    return cases[:limit]


def _settings(groups: Sequence[tuple[str, ...]], seeds: int) -> list[tuple[tuple[str, ...], int, int]]:
    """Every group in every scene with every seed: rounds in which each group comes once, in another scene and with
    another seed each time, so that few cases have all seeds, too.

    The order within each round is random, so that nobody always gets the same few motions.
    """
    rng = random.Random(0)
    return [
        (group, (number + _NEXT_SCENE * turn) % len(SCENES), (number + turn + more) % seeds)
        for more in range(seeds)
        for turn in range(len(SCENES))
        for number, group in rng.sample(list(enumerate(groups)), len(groups))
    ]


def _case(group: tuple[str, ...], scene: int, seed: int, first: int, right: bool) -> Case:
    return Case(group, motions_for(first, len(group), right), scene, seed)


def _check(reference: Reference) -> None:
    """Raises InputError for a file that is not a picture, before any model is loaded, and for a name that cannot be
    part of file names.
    """
    name = reference.name
    try:
        check_photo(reference.path)
    except InputError as error:
        raise InputError(f"{error}. It is taken for the photo of {name}: remove it, or put a picture there.") from error
    if len(name.encode()) > _LONGEST_NAME:
        raise InputError(
            f"The name {name} takes {len(name.encode())} bytes; {_LONGEST_NAME} are allowed. Rename the photo."
        )
    if any(sign in name for sign in _SEPARATORS):
        raise InputError(f"The name {name} has one of {' '.join(_SEPARATORS)} in it. Rename the photo.")


def _first_photo(entry: Path) -> Path | None:
    """The first photo of a person's folder, unless it is hidden; or the entry itself, if it is a photo."""
    if not entry.is_dir():
        return entry if is_photo(entry) else None
    photos = [] if entry.name.startswith(".") else list_photos(entry)
    return entry / photos[0] if photos else None
