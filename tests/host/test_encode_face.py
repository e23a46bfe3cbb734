"""From photographs to faces, by real InsightFace, through the nodes."""

import os
import sys
from copy import copy
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from insightface.utils.face_align import norm_crop
from PIL import Image

from tests import photos
from tests.host.helpers import apply, core, node, photo_adapter, run, sample, tiny_clip_vision


@pytest.fixture(scope="module")
def encode(photo_dynamicid, face_analysis):
    clip_vision = tiny_clip_vision()

    def run_node(*pictures, image=None, **options):
        given = {"dynamicid": photo_dynamicid, "clip_vision": clip_vision, "face_analysis": face_analysis, **options}
        return run("DynamicIDEncodeFace", image=photos.image(*pictures) if image is None else image, **given)

    return run_node


def similarity(first, second):
    return float(torch.nn.functional.cosine_similarity(first.tokens.flatten(), second.tokens.flatten(), dim=0))


def recognising_as(face_analysis, name):
    """The same analysis, as if its recognition model had that file name."""
    models = {**face_analysis._models, "recognition": copy(face_analysis._models["recognition"])}
    models["recognition"].model_file = f"/models/{name}.onnx"
    return core("face_analysis").FaceAnalysis(models)


def test_a_pack_with_another_recognition_model_than_the_adapters_is_refused(encode, face_analysis):
    said = r"trained with the recognition model w600k_r50; .* has glintr100\. Choose the pack buffalo_l"
    with pytest.raises(ValueError, match=said):
        encode(photos.astronaut(), face_analysis=recognising_as(face_analysis, "glintr100"))
    for name in ("w600k_r50", "of my own"):
        face = encode(photos.astronaut(), face_analysis=recognising_as(face_analysis, name))[0]
        assert face.recognition == name


def test_a_face_is_not_compared_by_another_recognition_model(encode, face_analysis):
    face = encode(photos.astronaut(), face_analysis=recognising_as(face_analysis, "w600k_r50"))[0]
    given = {"image": photos.image(photos.astronaut()), "face_1": face}
    assert run("DynamicIDCompareFaces", face_analysis=recognising_as(face_analysis, "w600k_r50"), **given)[1] > 0.99
    with pytest.raises(ValueError, match=r"Face 1 was encoded with .*w600k_r50; .* has glintr100"):
        run("DynamicIDCompareFaces", face_analysis=recognising_as(face_analysis, "glintr100"), **given)


def test_a_photo_becomes_a_face_with_everything_that_was_measured(encode):
    face, preview = encode(photos.astronaut())
    assert face.tokens.shape == face.uncond_tokens.shape == (1, 4, 64)
    assert face.tokens.dtype == torch.float32
    assert face.embedding.shape == (512,)
    assert face.keypoints.shape == (106, 2)
    assert ((face.keypoints > 0) & (face.keypoints < 1)).all(), "fractions of the crop around the face"
    assert preview.shape == (3, 512, 512, 3)


@pytest.mark.parametrize(("name", "size"), [("portrait", 28), ("aligned", 28), ("whole picture", 28), ("portrait", 42)])
def test_tokens_are_the_encoders_for_the_swapped_embedding_and_the_clip_features_of_the_crop(
    encode, photo_dynamicid, face_analysis, name, size
):
    photo, clip_vision = photos.astronaut()[:, 20:491], tiny_clip_vision(image_size=size)
    found = face_analysis.choose(photo, "largest", 0).chosen
    images = core("images")
    if name == "portrait":
        crop = images.square_around(photo, found.box, 2.0).crop(photo)
    elif name == "aligned":
        crop = norm_crop(photo, found.landmarks, 224)
    else:
        crop = photo
    pixels = images.clip_pixels(crop, size).movedim(-1, 0)[None]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    features = clip_vision.model((pixels - mean) / std, intermediate_output=-2)[1]
    embedding = torch.from_numpy(face_analysis.embed(photo, found, "rgb"))[None]
    expected = photo_dynamicid.face_encoder.model(embedding, features)
    seen = encode(photo, crop=name, clip_vision=clip_vision)[0].tokens
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_uncond_tokens_are_those_of_zero_embedding_and_zero_pixels(encode, photo_dynamicid):
    features = tiny_clip_vision().model(torch.zeros(1, 3, 28, 28), intermediate_output=-2)[1]
    expected = photo_dynamicid.face_encoder.model(torch.zeros(1, 512), features)
    torch.testing.assert_close(encode(photos.astronaut())[0].uncond_tokens, expected, atol=1e-5, rtol=0)


def test_several_photos_are_averaged(encode):
    astronaut = photos.astronaut()
    mirrored = astronaut[:, ::-1].copy()
    both, preview = encode(astronaut, mirrored)
    singles = [encode(photo)[0] for photo in (astronaut, mirrored)]
    torch.testing.assert_close(both.tokens, (singles[0].tokens + singles[1].tokens) / 2, atol=1e-5, rtol=0)
    assert len(preview) == 6


def test_a_batch_of_several_people_is_reported(encode, caplog):
    astronaut, actor = photos.astronaut(), np.asarray(Image.fromarray(photos.actor()).resize((512, 512)))
    encode(astronaut, astronaut[:, ::-1].copy())
    assert "expected" not in caplog.text
    encode(astronaut, actor, astronaut[:, ::-1].copy())
    assert "number 2 of 3 resembles none of the others" in caplog.text


def test_a_file_without_a_vision_model_is_reported(encode):
    with pytest.raises(ValueError, match="The clip_vision input is empty"):
        encode(photos.astronaut(), clip_vision=None)


def test_order_and_index_choose_the_person(encode):
    group = photos.group_of_six()
    first, second = (encode(group, order="left to right", index=i)[0] for i in (0, 1))
    assert float(first.embedding @ second.embedding) < 0.4


@pytest.mark.parametrize("crop", ["portrait", "aligned", "whole picture"])
def test_every_crop_gives_tokens_of_its_own(encode, crop):
    auto = encode(photos.astronaut())[0]
    face = encode(photos.astronaut(), crop=crop)[0]
    same = torch.equal(face.tokens, auto.tokens)
    assert same == (crop == "portrait")


def test_an_unknown_crop_is_refused(encode):
    with pytest.raises(ValueError, match='"oval" is not a crop'):
        encode(photos.astronaut(), crop="oval")


def test_grey_and_transparent_photos_give_nearly_the_same_face(encode):
    picture = photos.image(photos.astronaut())
    plain = encode(photos.astronaut())[0]
    opaque = encode(image=torch.cat((picture, torch.ones_like(picture[..., :1])), dim=-1))[0]
    assert torch.equal(opaque.tokens, plain.tokens)
    grey = encode(image=picture.mean(dim=-1, keepdim=True))[0]
    assert float(grey.embedding @ plain.embedding) > 0.7


def test_a_photo_without_a_face_is_named_by_its_number(encode):
    cup = np.asarray(Image.fromarray(photos.coffee()).resize((512, 512)))
    with pytest.raises(ValueError, match=r"No face found in photo 2 of 2 \(512 x 512\)"):
        encode(photos.astronaut(), cup)


def test_a_broken_photo_is_refused(encode):
    with pytest.raises(ValueError, match="Photo 1 of 1 holds values that are not numbers"):
        encode(image=torch.full((1, 64, 64, 3), float("nan")))


def test_a_clip_vision_model_of_another_size_is_refused_with_both_sizes(encode):
    with pytest.raises(ValueError, match="hidden size 32; the face encoder needs 40"):
        encode(photos.astronaut(), clip_vision=tiny_clip_vision(hidden=32))


def test_a_face_analysis_of_another_pack_is_refused(encode):
    with pytest.raises(ValueError, match="comes from another node pack"):
        encode(photos.astronaut(), face_analysis=object())


def test_faceid_plus_from_the_ipadapter_folder_sees_aligned_faces_in_arcface_order(encode, models):
    (models / "ipadapter").mkdir(exist_ok=True)
    photo_adapter(models / "ipadapter" / "faceid.bin", naming=("image_proj", "ip_adapter"))
    faceid = run("DynamicIDLoader", adapter="faceid.bin")[0]
    assert faceid.variant.name == "IP-Adapter FaceID Plus"
    face = encode(photos.astronaut(), dynamicid=faceid)[0]
    assert similarity(face, encode(photos.astronaut(), crop="aligned")[0]) < 0.9999
    photo_adapter(models / "ipadapter" / "ip-adapter-faceid-plusv2_sd15.bin", naming=("image_proj", "ip_adapter"))
    assert run("DynamicIDLoader", adapter="ip-adapter-faceid-plusv2_sd15.bin")[0].variant.shortcut
    v2 = run("DynamicIDLoader", adapter="faceid.bin", variant="IP-Adapter FaceID Plus V2")[0]
    assert similarity(encode(photos.astronaut(), dynamicid=v2)[0], face) < 0.99


def test_an_encoded_photo_changes_the_picture_and_another_person_changes_it_otherwise(encode, photo_dynamicid):
    results = [sample(*apply(photo_dynamicid, encode(p)[0])) for p in (photos.astronaut(), photos.actor())]
    assert all(result.isfinite().all() for result in results)
    assert not torch.equal(*results)


def test_a_face_saved_and_loaded_gives_the_same_picture(encode, photo_dynamicid):
    face = encode(photos.astronaut())[0]
    file = run("DynamicIDSaveFace", face=face, name="astronaut")[0]
    loaded = run("DynamicIDLoadFace", name=file)[0]
    assert torch.equal(sample(*apply(photo_dynamicid, loaded)), sample(*apply(photo_dynamicid, face)))


def test_a_missing_face_file_says_where_it_was_looked_for():
    with pytest.raises(ValueError, match=r'There is no file "nobody\.safetensors"\. Looked in .*faces'):
        run("DynamicIDLoadFace", name="nobody.safetensors")


def test_a_face_for_another_model_is_refused(dynamicid):
    make = core("face").Face
    face = make(torch.rand(1, 4, 2048), torch.rand(1, 4, 2048), base_model="sdxl")
    with pytest.raises(ValueError, match=r"encoded for sdxl \(token size 2048\), but the adapter is for"):
        apply(dynamicid, face)


def test_something_else_than_faces_is_refused(dynamicid):
    with pytest.raises(ValueError, match="faces must be a face or placed faces; found str"):
        apply(dynamicid, "anna")


def test_a_face_is_compared_by_arcfaces_own_colours_whatever_the_encoder_saw(encode, face_analysis):
    photo = photos.astronaut()
    found = face_analysis.choose(photo, "largest", 0).chosen
    own, swapped = (torch.from_numpy(face_analysis.embed(photo, found, order)) for order in ("bgr", "rgb"))
    assert torch.equal(encode(photo)[0].embedding, own)
    assert not torch.equal(own, swapped)


def test_a_face_file_that_was_written_over_is_loaded_again(encode, models):
    load = node("DynamicIDLoadFace")
    files = [
        run("DynamicIDSaveFace", face=encode(p)[0], name="the same")[0] for p in (photos.astronaut(), photos.actor())
    ]
    path, other = (models / "dynamicid" / "faces" / file for file in files)
    before = load.fingerprint_inputs(name=files[0])
    assert load.fingerprint_inputs(name=files[0]) == before
    os.replace(other, path)
    assert load.fingerprint_inputs(name=files[0]) != before


def test_the_node_passes_the_detection_threshold_on(face_analysis):
    strict = run("DynamicIDFaceAnalysisLoader", pack="vectron", provider="CPU", detection_threshold=0.95)[0]
    assert len(face_analysis.detect(photos.astronaut())) == 1
    assert strict.detect(photos.astronaut()) == []


def test_packs_to_download_stand_behind_those_that_are_there(face_analysis):
    (pack, *_) = node("DynamicIDFaceAnalysisLoader").define_schema().inputs
    assert pack.options == ["vectron", "buffalo_l", "antelopev2", "buffalo_s"]
    assert pack.default == "buffalo_l"


@pytest.mark.parametrize("name", ["ip-adapter-faceid-plusv2_sd15.bin", "faceid_plus_v2.bin", "FaceID-Plus-V2.bin"])
def test_a_second_version_is_known_by_any_spelling_of_its_name(name):
    fallback = sys.modules[node("DynamicIDLoader").__module__]._fallback_variant
    folder = Path(folder_paths.get_folder_paths("ipadapter")[0])
    assert fallback(folder / name).shortcut
    assert not fallback(folder / "faceid-plus.bin").shortcut


def test_a_face_outside_the_square_that_clip_sees_of_a_whole_picture_is_reported(encode, caplog):
    photo = photos.astronaut()
    encode(photo, crop="whole picture")
    assert "central square" not in caplog.text
    encode(np.pad(photo, ((0, 0), (0, 512), (0, 0))), crop="whole picture")
    assert "CLIP sees only the central square of the photo" in caplog.text


def test_several_photos_show_how_many_are_done(encode, monkeypatch):
    done = []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update", lambda bar, value: done.append((value, bar.total)))
    encode(photos.astronaut(), photos.astronaut())
    assert done == [(1, 2)] * 2
