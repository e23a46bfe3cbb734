from PIL import Image
from sheets import sheet


def picture(width, height, colour="red"):
    return Image.new("RGB", (width, height), colour)


def test_pictures_of_a_sheet_have_one_height_and_stand_below_their_captions():
    whole = sheet([[("first", picture(50, 100)), ("second", picture(100, 100, "blue"))]], 200, gap=10, caption=30)
    assert whole.size == (100 + 10 + 200, 30 + 200)
    assert whole.getpixel((50, 130)) == (255, 0, 0)
    assert whole.getpixel((210, 130)) == (0, 0, 255)
    assert min(whole.crop((0, 0, 100, 30)).convert("L").getdata()) < 100  # black letters on white


def test_a_sheet_is_as_wide_as_its_longest_row():
    whole = sheet([[("", picture(100, 100))], [("", picture(100, 100, "blue"))] * 2], 100, gap=10, caption=0)
    assert whole.size == (210, 210)
    assert whole.getpixel((50, 50)) == (255, 0, 0)
    assert whole.getpixel((150, 50)) == (255, 255, 255)
    assert whole.getpixel((160, 160)) == (0, 0, 255)
