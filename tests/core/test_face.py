"""Faces in files."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dynamicid_core import files
from dynamicid_core.errors import InputError
from dynamicid_core.face import Face, Placement, average_faces, load_face, mix_faces, save_face


def make_face(seed=0, **parts):
    g = torch.Generator().manual_seed(seed)
    return Face(torch.rand(1, 4, 16, generator=g), torch.rand(1, 4, 16, generator=g), base_model="sd15", **parts)


def unit(embedding):
    return embedding / embedding.norm()


def full_face():
    return make_face(
        embedding=unit(torch.rand(512)), keypoints=torch.rand(106, 2), pose=torch.tensor([1.0, -20.0, 3.0])
    )


def test_a_face_is_read_back_as_it_was_saved(tmp_path):
    face = full_face()
    again = load_face(save_face(face, tmp_path, "anna"))
    for name in ("tokens", "uncond_tokens", "embedding", "keypoints", "pose"):
        assert torch.equal(getattr(again, name), getattr(face, name))
    assert again.base_model == "sd15"


def test_a_face_file_says_what_it_is(tmp_path):
    with safe_open(save_face(make_face(), tmp_path, "anna"), "pt") as file:
        assert file.metadata() == {"format": "dynamicid-face", "version": "1", "base_model": "sd15"}
        assert set(file.keys()) == {"tokens", "uncond_tokens"}


def test_a_face_file_keeps_which_model_recognised_the_person(tmp_path):
    face = make_face(embedding=torch.rand(512), recognition="w600k_r50")
    assert load_face(save_face(face, tmp_path, "anna")).recognition == "w600k_r50"


def test_faces_that_different_models_recognised_are_not_mixed():
    faces = [make_face(i, embedding=torch.rand(512), recognition=name) for i, name in enumerate(("a", "b", ""))]
    with pytest.raises(InputError, match=r"recognised by different models \(a, b\)"):
        mix_faces(faces[:2], [1, 1])
    assert mix_faces(faces[1:], [1, 2]).recognition == "b"


def test_a_different_face_of_the_same_name_is_kept(tmp_path):
    first, second = make_face(1), make_face(2)
    save_face(first, tmp_path, "anna")
    path = save_face(second, tmp_path, "anna")
    assert path.name == "anna_2.safetensors"
    assert torch.equal(load_face(tmp_path / "anna.safetensors").tokens, first.tokens)
    assert torch.equal(load_face(path).tokens, second.tokens)


def test_saving_the_same_face_again_makes_no_second_file(tmp_path):
    assert save_face(make_face(), tmp_path, "anna") == save_face(make_face(), tmp_path, "anna")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_may_lie_in_a_folder(tmp_path):
    assert save_face(make_face(), tmp_path, "family/anna") == tmp_path / "family" / "anna.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "../anna",
        "/anna",
        "a/../b",
        "C:\\anna",
        "what?",
        "a//b",
        ".git/anna",
        "\\\\server\\x",
        "con",
        "a /b",
        "a.",
        "é" * 150,
        "\ud800",
    ],
)
def test_a_name_that_leaves_the_folder_or_no_system_allows_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be a file name"):
        save_face(make_face(), tmp_path / "faces", name)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_files_that_are_no_faces_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no face file"):
        load_face(tmp_path / "none.safetensors")
    save_file({"a": torch.rand(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not one that Save Face wrote"):
        load_face(tmp_path / "other.safetensors")
    path = save_face(make_face(), tmp_path, "anna")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged"):
        load_face(path)


def test_a_file_of_a_later_version_asks_for_an_update(tmp_path):
    metadata = {"format": "dynamicid-face", "version": "2", "base_model": "sd15"}
    save_file(
        {"tokens": torch.rand(1, 4, 8), "uncond_tokens": torch.rand(1, 4, 8)}, tmp_path / "a.safetensors", metadata
    )
    with pytest.raises(InputError, match="Update the pack"):
        load_face(tmp_path / "a.safetensors")


def test_tokens_that_do_not_belong_together_or_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="one shape"):
        Face(torch.rand(1, 4, 16), torch.rand(1, 4, 8), base_model="sd15")
    with pytest.raises(InputError, match="not numbers"):
        Face(torch.full((1, 4, 16), float("nan")), torch.rand(1, 4, 16), base_model="sd15")


def test_several_photos_are_averaged():
    photos = [
        make_face(i, embedding=torch.nn.functional.normalize(torch.rand(512), dim=0), pose=torch.full((3,), float(i)))
        for i in range(3)
    ]
    face = average_faces(photos)
    torch.testing.assert_close(face.tokens, sum(photo.tokens for photo in photos) / 3)
    torch.testing.assert_close(face.embedding.norm(), torch.tensor(1.0))
    assert torch.equal(face.pose, photos[0].pose)


def test_mixing_by_tokens_is_the_weighted_mean():
    first, second = make_face(1), make_face(2)
    mixed = mix_faces([first, second], [3.0, 1.0], "tokens")
    torch.testing.assert_close(mixed.tokens, 0.75 * first.tokens + 0.25 * second.tokens)
    assert mixed.key_scale is None


def test_mixing_by_attention_puts_the_tokens_side_by_side_with_the_weights_as_they_are(tmp_path):
    mixed = mix_faces([make_face(1), make_face(2)], [0.3, 0.7], "attention")
    assert mixed.tokens.shape == mixed.uncond_tokens.shape == (1, 8, 16)
    torch.testing.assert_close(mixed.key_scale, torch.tensor([0.3] * 4 + [0.7] * 4))
    assert torch.equal(load_face(save_face(mixed, tmp_path, "both")).key_scale, mixed.key_scale)


def test_a_face_of_weight_0_is_left_out():
    mixed = mix_faces([make_face(1), make_face(2)], [0.0, 0.5], "attention")
    assert torch.equal(mixed.tokens, make_face(2).tokens)


@pytest.mark.parametrize(
    ("faces", "weights", "method", "message"),
    [
        ((1, 2), (0, 0), "tokens", "All weights are 0"),
        ((1, 2), (1, 1), "averages", "not a mixing method"),
        ((1, 2), (1, float("nan")), "tokens", "weight_2 is nan; it can be from 0 to 3"),
        ((1, 2), (-1, 1), "tokens", "weight_1 is -1"),
    ],
)
def test_mixes_of_nobody_and_of_no_kind_and_impossible_weights_are_refused(faces, weights, method, message):
    with pytest.raises(InputError, match=message):
        mix_faces([make_face(i) for i in faces], weights, method)


def test_faces_of_different_models_or_mixes_do_not_mix():
    other = Face(torch.rand(1, 4, 32), torch.rand(1, 4, 32), base_model="sdxl")
    with pytest.raises(InputError, match="different models"):
        mix_faces([make_face(), other], [1, 1], "attention")
    both = mix_faces([make_face(1), make_face(2)], [0.5, 0.5], "attention")
    with pytest.raises(InputError, match="cannot be mixed"):
        mix_faces([both, make_face()], [1, 1], "tokens")


def test_a_loaded_face_stays_what_it_is_when_its_file_is_written_over(tmp_path):
    anna, ben = make_face(1), make_face(2)
    path, other = save_face(anna, tmp_path, "anna"), save_face(ben, tmp_path, "ben")
    loaded = load_face(path)
    path.write_bytes(other.read_bytes())  # in place, as cp does
    assert torch.equal(loaded.tokens, anna.tokens)
    assert torch.equal(load_face(path).tokens, ben.tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_face_file_in_another_dtype_is_read_as_float32(tmp_path, dtype):
    anna = full_face()
    path = save_face(anna, tmp_path, "anna")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: part.to(dtype) for name, part in load_file(path).items()}, path, metadata)
    loaded = load_face(path)
    assert {part.dtype for part in vars(loaded).values() if isinstance(part, torch.Tensor)} == {torch.float32}
    torch.testing.assert_close(loaded.tokens, anna.tokens, atol=1e-2, rtol=1e-2)


def test_faces_saved_at_once_under_one_name_are_all_kept(tmp_path):
    faces = [make_face(seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(lambda face: save_face(face, tmp_path, "anna"), faces))
    assert len(set(paths)) == 24
    assert all(torch.equal(load_face(path).tokens, face.tokens) for path, face in zip(paths, faces, strict=True))
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.skipif(os.name == "nt", reason="needs a right to make links")
def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path):
    (tmp_path / "anna.safetensors").symlink_to(tmp_path / "elsewhere" / "anna.safetensors")
    assert save_face(make_face(), tmp_path, "anna").name == "anna_2.safetensors"


def test_a_disk_without_hard_links_keeps_faces_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert [save_face(make_face(seed), tmp_path, "anna").name for seed in (1, 2, 1)] == [
        "anna.safetensors", "anna_2.safetensors", "anna.safetensors",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "people").write_text("a file where the folder would be")
    with pytest.raises(
        InputError, match=r"people.*anna\.safetensors could not be written: File exists: \S*people\. Free"
    ):
        save_face(make_face(), tmp_path, "people/anna")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"embedding": torch.rand(1, 512)}, r"embedding has the shape \[1, 512\]"),
        ({"embedding": torch.full((512,), torch.nan)}, "embedding .* not numbers"),
        ({"key_scale": torch.ones(3)}, r"key_scale has the shape \[3\]"),
        ({"pose": torch.zeros(1, 3)}, "A head pose must be pitch, yaw and roll"),
        ({"keypoints": torch.rand(68, 2)}, "must be 106 points"),
    ],
)
def test_what_a_face_has_beside_its_tokens_is_checked_too(tmp_path, parts, message):
    with pytest.raises(InputError, match=message):
        make_face(**parts)
    face = make_face()
    save_file(
        {"tokens": face.tokens, "uncond_tokens": face.uncond_tokens, **parts},
        tmp_path / "made.safetensors",
        {"format": "dynamicid-face", "version": "1", "base_model": "sd15"},
    )
    with pytest.raises(InputError, match=message):
        load_face(tmp_path / "made.safetensors")


def test_a_face_without_tokens_is_refused():
    with pytest.raises(InputError, match="needs tokens"):
        Face(torch.empty(1, 0, 16), torch.empty(1, 0, 16), base_model="sd15")


def test_what_a_face_was_not_measured_for_is_reported_with_what_to_do():
    with pytest.raises(InputError, match=r"no keypoints to start from\. Encode .* landmark_2d_106 model"):
        make_face().motion()
    with pytest.raises(InputError, match=r"Face 2 has no ArcFace embedding to compare with\. Encode"):
        make_face().require_embedding("Face 2")


@pytest.mark.parametrize("method", ["tokens", "attention"])
def test_a_mix_has_the_motion_of_the_face_with_the_largest_weight(method):
    first, second = (make_face(i, keypoints=torch.rand(106, 2), pose=torch.rand(3), face_prompt=f"{i}") for i in (1, 2))
    mixed = mix_faces([first, second], [0.4, 0.6], method)
    assert torch.equal(mixed.keypoints, second.keypoints)
    assert torch.equal(mixed.pose, second.pose)
    assert mixed.face_prompt == "2"


def test_the_embedding_of_a_mix_leans_to_the_heavier_face():
    first, second = (make_face(i, embedding=torch.eye(512)[i]) for i in (0, 1))
    torch.testing.assert_close(mix_faces([first, second], [1.5, 2.0]).embedding[:2], torch.tensor([0.6, 0.8]))


def test_a_mix_mixed_again_by_attention_keeps_its_weights():
    first, second, third = (make_face(i) for i in (1, 2, 3))
    inner = mix_faces([first, second], [0.25, 0.75], "attention")
    outer = mix_faces([inner, third], [0.5, 0.5], "attention")
    assert outer.key_scale.tolist() == [0.125] * 4 + [0.375] * 4 + [0.5] * 4


def test_a_mix_by_attention_has_the_tokens_of_nobody_side_by_side():
    faces = [make_face(i) for i in (1, 2)]
    mixed = mix_faces(faces, [0.5, 0.5], "attention")
    assert torch.equal(mixed.uncond_tokens, torch.cat([face.uncond_tokens for face in faces], dim=1))


def test_the_same_tokens_with_other_words_are_another_face(tmp_path):
    for words in ("in a happy expression, in front view", "in a sad expression, in front view"):
        assert load_face(save_face(make_face(face_prompt=words), tmp_path, "anna")).face_prompt == words


def test_a_name_with_half_an_emoji_is_refused_in_words_that_can_be_printed(tmp_path):
    with pytest.raises(InputError, match=r"a\\ud83d.* cannot be a file name") as refused:
        save_face(make_face(), tmp_path, "a\ud83d")
    str(refused.value).encode("utf-8")


def test_a_mix_by_attention_is_not_mixed_by_tokens_which_would_lose_its_weights():
    both = mix_faces([make_face(1), make_face(2)], [0.5, 0.5], "attention")
    with pytest.raises(InputError, match="cannot be mixed"):
        mix_faces([both, both], [1, 1], "tokens")


def test_a_name_that_was_given_with_its_ending_gets_no_other(tmp_path):
    assert save_face(make_face(), tmp_path, " anna.safetensors ").name == "anna.safetensors"


@pytest.mark.parametrize("name", ["com1", "LPT9", "nul.txt", "con .x", "CONIN$", "conout$.a"])
def test_a_name_that_windows_keeps_for_itself_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be a file name"):
        save_face(make_face(), tmp_path, name)


@pytest.mark.parametrize("weight", [-1.0, 3.5, float("nan")])
def test_a_person_is_placed_with_a_weight_that_can_be(weight):
    with pytest.raises(InputError, match=f"weight is {weight:g}; it can be from 0 to 3"):
        Placement(make_face(), weight=weight)


def test_of_what_could_not_be_written_nothing_is_left(tmp_path):
    def half():
        with files.atomic_write(tmp_path / "a") as unfinished:
            unfinished.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        half()
    assert list(tmp_path.iterdir()) == []


def test_an_embedding_that_another_program_saved_is_brought_to_length_1(tmp_path):
    embedding = unit(torch.rand(512))
    path = save_face(make_face(embedding=embedding * 20), tmp_path, "anna")
    torch.testing.assert_close(load_face(path).embedding, embedding)


def test_an_embedding_without_values_is_refused():
    with pytest.raises(InputError, match="embedding has the shape"):
        make_face(embedding=torch.rand(0))


def test_faces_with_embeddings_of_different_sizes_are_not_mixed():
    faces = [make_face(embedding=unit(torch.rand(size))) for size in (7, 512)]
    with pytest.raises(InputError, match=r"different sizes \(7, 512\)"):
        mix_faces(faces, [1, 1])
