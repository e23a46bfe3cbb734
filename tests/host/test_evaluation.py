"""Pictures as the nodes paint them, CLIP for CLIP-T, and a whole evaluation of tiny models with real InsightFace."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests import photos
from tests.host.graphs import tiny_clip, tiny_vae
from tests.host.helpers import (
    GOLDEN,
    core,
    faces,
    fill,
    run,
    sample,
    tiny_clip_vision,
    tiny_keypoint_encoder,
    tiny_unet,
)

PROMPT, NEGATIVE = "a photo of two people", "blurry"


@pytest.fixture(scope="module")
def painting():
    return core("comfy_host.painting")


@pytest.fixture(scope="module")
def base(painting):
    return painting.BaseModel(tiny_unet(), tiny_clip(), tiny_vae())


def sampling(painting, **changes):
    return painting.Sampling(**{"width": 64, "height": 64, "steps": 2, "cfg": 5.0, "sampler": "euler", **changes})


def by_nodes(base, dynamicid, who, **settings):
    """The picture of a graph: CLIP Text Encode, Apply DynamicID, KSampler, VAE Decode."""
    positive, negative = (run("CLIPTextEncode", clip=base.clip, text=text)[0] for text in (PROMPT, NEGATIVE))
    model = base.model
    if who:
        model, positive, negative = run(
            "DynamicIDApply",
            model=model,
            positive=positive,
            negative=negative,
            dynamicid=dynamicid,
            faces=who,
            **settings,
        )
    latent = sample(model, positive, negative, torch.zeros(1, 4, 8, 8), seed=7)
    return core("images").photos_from_image(base.vae.decode(latent))[0]


def place(*people):
    boxes = core("layouts").equal_columns(len(people))
    return tuple(core("face").Placement(face, box) for face, box in zip(people, boxes, strict=True))


def paint(painting, base, dynamicid, placements=(), settings=None, seed=7, **changes):
    settings = settings or core("saa").SaaSettings()
    given = sampling(painting, **{"scheduler": "normal", **changes})
    return painting.paint(base, dynamicid, placements, settings, PROMPT, NEGATIVE, given, seed)


def test_pictures_are_those_of_a_graph_of_the_nodes(painting, base, dynamicid):
    placements = place(*faces(2))
    assert np.array_equal(paint(painting, base, dynamicid, placements)[0], by_nodes(base, dynamicid, placements))


def test_without_people_it_is_the_base_models_picture(painting, base, dynamicid):
    plain = paint(painting, base, dynamicid)[0]
    assert np.array_equal(plain, by_nodes(base, dynamicid, None))
    assert not np.array_equal(plain, paint(painting, base, dynamicid, place(*faces(1)))[0])
    assert np.array_equal(plain, paint(painting, base, dynamicid)[0]), "painting people leaves nothing behind"


def test_the_gate_can_be_switched_off(painting, base, dynamicid):
    settings = core("saa").SaaSettings
    on, off = (paint(painting, base, dynamicid, place(*faces(2)), settings(gate=gate))[0] for gate in (True, False))
    assert not np.array_equal(on, off)


def test_sizes_batches_and_seeds_are_as_asked(painting, base, dynamicid):
    several = paint(painting, base, dynamicid, width=72, batch=2)
    assert [photo.shape for photo in several] == [(64, 72, 3)] * 2
    assert not np.array_equal(*several)
    first, other = (paint(painting, base, dynamicid, seed=seed)[0] for seed in (1, 2))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 500}, "The size is 500 x 64; .* multiples of 8"),
        ({"height": 0}, "multiples of 8"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "best"}, '"best" is not a sampler'),
        ({"scheduler": "best"}, '"best" is not a scheduler'),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(painting, changes, said):
    with pytest.raises(ValueError, match=said):
        sampling(painting, **changes)


# --- CLIP-T ----------------------------------------------------------------------------------------------------------


def projecting_vision(size=64):
    """The tiny vision model with a projection to the tiny text encoder's size."""
    vision = tiny_clip_vision()
    vision.model.visual_projection = fill(torch.nn.Linear(40, size, bias=False))
    return vision


def test_clip_t_is_computed_by_both_halves_of_clip():
    clip, vision = tiny_clip(), projecting_vision()
    found = core("evaluation.clip_score").ClipScore(clip, vision)(photos.astronaut(), PROMPT)
    tokens = torch.tensor([[token for token, _ in clip.tokenize(PROMPT)["l"][0]]])
    end = tokens[0].tolist().index(49407)
    text_model = clip.cond_stage_model.clip_l.transformer
    text = text_model.text_projection(text_model(tokens)[0][:, end])
    assert torch.cosine_similarity(text, clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)[1]) < 0.9
    pixels = core("images").clip_pixels(photos.astronaut(), 28)
    mean, std = torch.tensor(vision.image_mean), torch.tensor(vision.image_std)
    picture = vision.model(pixel_values=((pixels - mean) / std).movedim(-1, 0)[None])[2]
    assert found == pytest.approx(float(torch.cosine_similarity(picture, text)), abs=1e-5)


def test_halves_of_different_clips_are_refused():
    with pytest.raises(ValueError, match="texts become 64 numbers, pictures 16"):
        core("evaluation.clip_score").ClipScore(tiny_clip(), tiny_clip_vision())


def test_a_text_encoder_without_projection_is_refused(tmp_path):
    from safetensors.torch import save_file

    load = core("comfy_host.clip_pair").load_text_and_vision
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(1)}, tmp_path / "sd15.safetensors")
    with pytest.raises(ValueError, match="needs a text encoder with its text_projection"):
        load([tmp_path / "sd15.safetensors"])
    save_file({"text_projection.weight": torch.zeros(1)}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="needs a vision model with its visual_projection"):
        load([tmp_path / "text.safetensors"])
    with pytest.raises(ValueError, match="no CLIP file"):
        load([tmp_path / "nowhere"])
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="could not be read as a CLIP model"):
        load([tmp_path / "broken.safetensors"])


# --- a whole evaluation ----------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, models, face_analysis, photo_dynamicid, base, monkeypatch):
    """Arguments for a tiny evaluation; small models replace those that need gigabytes of files."""
    save = {"astronaut": photos.astronaut(), "actor": photos.actor(), "guest": np.fliplr(photos.actor())}
    (tmp_path / "people").mkdir()
    for name, photo in save.items():
        Image.fromarray(photo).save(tmp_path / "people" / f"{name}.png")
    torch.save(tiny_keypoint_encoder().state_dict(), tmp_path / "kpe.bin")
    for name in ("base", "vision", "clip"):
        (tmp_path / name).write_bytes(b"stands for a large file")
    host = "comfy_host.differentiable"
    monkeypatch.setattr(core(host), "load_base_model", lambda path: (base.model, base.clip, base.vae))
    monkeypatch.setattr(core(host), "load_clip_vision", lambda path: tiny_clip_vision())
    monkeypatch.setattr(
        core("comfy_host.clip_pair"), "load_text_and_vision", lambda paths: (base.clip, projecting_vision())
    )
    given = {
        "references": tmp_path / "people", "out": tmp_path / "out", "base-model": tmp_path / "base",
        "clip-vision": tmp_path / "vision", "clip-score": tmp_path / "clip", "imr": GOLDEN / "IMR_tiny.bin",
        "adapter": models / "dynamicid" / "photo.bin", "pack": face_analysis.recognition_file.parent,
        "keypoint-encoder": tmp_path / "kpe.bin", "size": "64x64", "steps": 2, "limit": 2, "people": "1,2",
    }  # fmt: skip

    def arguments(**changes):
        chosen = {**given, **changes}
        return ["--cpu", *(str(part) for name, value in chosen.items() if value for part in (f"--{name}", value))]

    return arguments


def rows(folder):
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_whole_evaluation_writes_rows_tables_and_plots(command, tmp_path, capsys):
    main = core("evaluation.__main__").main
    assert main(command()) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    assert printed == (out / "tables.md").read_text(encoding="utf-8")
    assert "0.671" in printed
    assert "Several people" in printed
    measured = rows(out)
    counts = {name: sum(row["setting"] == name for row in measured) for name in ("full", "no_gate", "no_imr", "base")}
    assert counts == {"full": 4, "no_gate": 4, "no_imr": 4, "base": 4}
    assert all(-1 <= float(row["clip_t"]) <= 1 for row in measured)
    assert all(0 < float(row["disruption"]) < 1 for row in measured if row["setting"] != "base")
    assert {row["faces"] for row in measured} == {"", "0.0"}, "tiny models paint no faces"
    for name in ("bars.png", "sheet_1.jpg", "sheet_2.jpg"):
        assert (out / name).stat().st_size > 1000
    pictures = {row["picture"]: (out / row["picture"]).read_bytes() for row in measured}
    assert len(pictures) == len(measured)
    for case in {row["case"] for row in measured if row["setting"] == "full"}:
        settings = [pictures[row["picture"]] for row in measured if row["case"] == case]
        assert len(set(settings)) == 3, "gate and IMR change the picture"

    assert main(command(limit=3, people="1")) == 0
    assert len(rows(out)) == len(measured) + 3 + 1, "only what was not there is painted"
    assert rows(out)[: len(measured)] == measured
    assert main(command(steps=3)) == 2
    assert "holds another evaluation: steps differ" in capsys.readouterr().err
    assert main(command(threshold=0.9)) == 2
    assert "holds another evaluation: threshold differ" in capsys.readouterr().err


def test_the_gate_closes_where_the_threshold_says(command, tmp_path):
    for threshold in (0.1, 0.9):
        folder = tmp_path / f"{threshold}"
        assert core("evaluation.__main__").main(command(out=folder, threshold=threshold, limit=1, people="1")) == 0
    low, high = (
        {row["setting"]: (tmp_path / threshold / row["picture"]).read_bytes() for row in rows(tmp_path / threshold)}
        for threshold in ("0.1", "0.9")
    )
    assert low["full"] != high["full"]
    assert low["no_gate"] == high["no_gate"]


def test_without_an_imr_and_a_clip_the_rest_is_measured(command, tmp_path, capsys):
    arguments = command(**{"imr": None, "keypoint-encoder": None, "clip-score": None}, limit=1, people="1")
    assert core("evaluation.__main__").main(arguments) == 0
    assert {row["setting"] for row in rows(tmp_path / "out")} == {"base", "no_imr", "neither"}
    assert {row["clip_t"] for row in rows(tmp_path / "out")} == {""}
    assert "CLIP-T is missing" in capsys.readouterr().out


def test_pictures_of_the_people_themselves_are_recognised(command, tmp_path, monkeypatch):
    """If the model painted the reference photos, FaceSim would be 1 and the motion that of the photos."""
    pipeline_class = core("evaluation.pipeline").HostPipeline
    known = {}

    def encode(self, photo, original=pipeline_class.encode):
        face = original(self, photo)
        known[face.tokens.sum().item()] = photo
        return face

    def mirror(self, people, gate, prompt, seed):
        shown = [np.asarray(Image.fromarray(known[face.tokens.sum().item()]).resize((400, 400))) for face in people]
        return np.concatenate(shown, axis=1) if shown else np.zeros((400, 400, 3), np.uint8)

    monkeypatch.setattr(pipeline_class, "encode", encode)
    monkeypatch.setattr(pipeline_class, "paint", mirror)
    monkeypatch.setattr(pipeline_class, "edit", lambda self, face, motion: face)
    assert core("evaluation.__main__").main(command(limit=2, people="1")) == 0
    painted = [row for row in rows(tmp_path / "out") if row["setting"] == "full"]
    assert all(float(row["face_sim"]) > 0.8 for row in painted)
    assert {row["faces"] for row in painted} == {"1.0"}
    for row in painted:
        seen, asked = (row[name].split() for name in ("seen", "asked"))
        assert [float(row["expression"]), float(row["pose"])] == [seen[0] == asked[0], seen[1] == asked[1]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": GOLDEN / "IMR_tiny.bin"}, "is an IMR; an adapter"),
        ({"size": "60x64"}, "multiples of 8"),
        ({"people": "4"}, "4 people need 4 references"),
    ],
)
def test_what_cannot_be_measured_is_one_message(command, capsys, changes, said):
    assert core("evaluation.__main__").main(command(**changes)) == 2
    assert said in capsys.readouterr().err


def test_a_photo_without_a_face_is_named(command, tmp_path, capsys):
    shutil.rmtree(tmp_path / "people")
    (tmp_path / "people").mkdir()
    Image.fromarray(photos.coffee()).save(tmp_path / "people" / "cup.png")
    assert core("evaluation.__main__").main(command(people="1")) == 2
    assert "(reference cup: " in capsys.readouterr().err
