"""The data set builder as a command, and photographs of people for it."""

import functools

from PIL import Image

from dynamicid_core.training.data import __main__ as command
from tests import photos
from tests.resources import insightface_pack


@functools.cache
def faces():
    """Name -> a portrait with a face of 150 pixels and more."""
    hopper = photos.photo("matplotlib", "mpl-data", "sample_data", "grace_hopper.jpg")
    plain = {"astronaut": photos.astronaut()[:320, 60:380], "actor": photos.actor()}
    scaled = {name: Image.fromarray(p).resize((p.shape[1] * 3 // 2, p.shape[0] * 3 // 2)) for name, p in plain.items()}
    return {**scaled, "hopper": Image.fromarray(hopper)}


def turned(picture, degrees=12):
    return picture.rotate(degrees, Image.Resampling.BICUBIC)


def mirrored(picture):
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


VIEWS = {"plain": lambda p: p, "mirrored": mirrored, "turned": turned, "both": lambda p: turned(mirrored(p))}


def save_person(folder, name, picture, views=("plain", "mirrored")):
    (folder / name).mkdir(parents=True)
    for view in views:
        VIEWS[view](picture).save(folder / name / f"{view}.jpg", quality=95)


def save_crowd(folder, people):
    """A number of people with two photos each; only their names differ."""
    portrait = faces()["actor"]
    for i in range(people):
        save_person(folder, f"person {i}", portrait)
    return folder


def run(source, out, *more, pack=None):
    """The exit code of the command, in this process. pack: by default that of ``resources``."""
    given = [f"--photos={source}", f"--out={out}", f"--pack={pack or insightface_pack()}"]
    return command.main(["build", *given, "--workers=1", "--provider=CPU", *more])


def contents(folder):
    """All files that must not depend on interruptions."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "contact_sheet.jpg"}
