"""Reading and converting pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from dynamicid_core.errors import InputError
from dynamicid_core.images import central_square, clip_input, clip_pixels, open_photo, photos_from_image, square_around
from tests import photos


def test_grey_and_transparent_pictures_become_rgb():
    grey = photos_from_image(torch.full((1, 2, 2, 1), 0.5))[0]
    assert grey.shape == (2, 2, 3)
    assert (grey == 128).all()
    clear = torch.zeros(1, 2, 2, 4)
    assert (photos_from_image(clear)[0] == 255).all(), "what is transparent is white"
    clear[..., 3] = 1
    assert (photos_from_image(clear)[0] == 0).all()


def test_values_beyond_white_and_black_are_clipped():
    assert photos_from_image(torch.tensor([-1.0, 2.0, 0.5]).view(1, 1, 1, 3))[0].tolist() == [[[0, 255, 128]]]


def test_values_of_0_to_255_are_reported():
    with pytest.raises(InputError, match="values up to 255; they must be from 0 to 1"):
        photos_from_image(torch.full((1, 2, 2, 3), 255.0))


def test_a_photo_with_sixteen_bits_of_grey_is_not_washed_out(tmp_path):
    grey = photos.astronaut()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey.png")
    assert np.array_equal(open_photo(tmp_path / "grey.png")[..., 0], grey)


@pytest.mark.parametrize("shape", [(1, 0, 4, 3), (0, 4, 4, 3), (4, 4, 3), (1, 4, 4, 2), (1, 3, 4, 4, 3)])
def test_other_shapes_and_empty_pictures_are_refused(shape):
    with pytest.raises(InputError, match="An image must have the shape"):
        photos_from_image(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused_with_the_pictures_number(value):
    batch = torch.zeros(3, 2, 2, 3)
    batch[1, 0, 0, 0] = value
    with pytest.raises(InputError, match="Photo 2 of 3"):
        photos_from_image(batch)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 420), (420, 300), (333, 500), (97, 101), (640, 641)])
def test_clip_sees_what_its_reference_preprocessing_shows(height, width):
    photo = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = CLIPImageProcessor(do_normalize=False)
    expected = torch.from_numpy(processor(photo, return_tensors="np")["pixel_values"][0]).permute(1, 2, 0)
    torch.testing.assert_close(clip_pixels(photo, 224), expected.float(), atol=1e-6, rtol=0)


def test_a_square_around_a_face_stays_in_the_photo():
    photo = np.zeros((100, 200, 3), np.uint8)
    for box in ([0, 0, 30, 40], [180, 80, 200, 100], [50, 20, 150, 90]):
        square = square_around(photo, np.array(box, np.float32), 2.0)
        assert square.crop(photo).shape == (square.side, square.side, 3)
        centre = ((box[0] + box[2]) / 2 - square.left, (box[1] + box[3]) / 2 - square.top)
        assert all(0 <= c <= square.side for c in centre)


def test_points_become_fractions_of_the_square():
    square = central_square(np.zeros((100, 200, 3), np.uint8))
    assert (square.left, square.top, square.side) == (50, 0, 100)
    assert square.fractions(np.array([[50, 0], [150, 100]], np.float32)).tolist() == [[0, 0], [1, 1]]


def test_a_square_around_a_box_goes_by_its_longer_side():
    box = np.array([200, 200, 240, 260], np.float32)
    assert square_around(np.zeros((500, 500, 3), np.uint8), box, 2.0).side == 120


def test_a_vision_model_takes_normalised_pixels_with_the_channels_first():
    grey, red = np.full((9, 12, 3), 128, np.uint8), np.full((30, 30, 3), (255, 0, 0), np.uint8)
    seen = clip_input([grey, red], 6, [0.5, 0.4, 0.3], [0.2, 0.25, 0.5])
    assert seen.shape == (2, 3, 6, 6)
    expected = (128 / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.5])
    torch.testing.assert_close(seen[0, :, 2, 3], expected)
    torch.testing.assert_close(seen[1, :, 0, 5], torch.tensor([2.5, -1.6, -0.6]))
