"""Pictures of every kind that a camera or a student produces, and files that are none."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cifar import assert_one_sentence, damaged

from tinygrad_cnn.data import DataError, read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def halves(left, right, size=(64, 64)):
    """Paint the left and the right half of a picture."""
    image = Image.new("RGB", size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def save(path, image, **settings):
    image.save(path, **settings)
    return path


def corners(x):
    """Give the colours (R, G, B) near the middle of the left and of the right edge."""
    assert x.dtype == np.uint8
    assert x.flags.c_contiguous
    H, W = x.shape[1:]
    return tuple(tuple(x[:, H // 2, column].tolist()) for column in (2, W - 3))


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "ppm", "tiff", "webp", "jpg"])
def test_formats(tmp_path, suffix):
    settings = {"lossless": True} if suffix == "webp" else {}
    x = read_image(save(tmp_path / f"x.{suffix}", halves(RED, BLUE), **settings))
    assert x.shape == (3, 32, 32)
    np.testing.assert_allclose(corners(x), (RED, BLUE), atol=3)


def test_the_contents_decide_not_the_name(tmp_path):
    path = save(tmp_path / "x.jpg", halves(RED, BLUE), format="PNG")
    assert corners(read_image(path)) == (RED, BLUE)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 7, 13), (1, 1, 1), (3, 96, 96)])
def test_any_shape(tmp_path, shape):
    assert read_image(save(tmp_path / "x.png", halves(RED, BLUE)), shape).shape == shape


def test_a_picture_of_the_right_size_is_not_touched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    x = read_image(save(tmp_path / "x.png", Image.fromarray(pixels)))
    np.testing.assert_array_equal(x, pixels.transpose(2, 0, 1))


def test_the_middle_is_cut_out(tmp_path):
    wide = Image.new("RGB", (320, 64), GREEN)
    wide.paste(halves(RED, BLUE), (128, 0))
    assert corners(read_image(save(tmp_path / "x.png", wide))) == (RED, BLUE)
    tall = Image.new("RGB", (64, 320), GREEN)
    tall.paste(halves(RED, BLUE), (0, 128))
    assert corners(read_image(save(tmp_path / "x.png", tall))) == (RED, BLUE)


def test_a_border_is_left_out(tmp_path):
    """An eighth of each side, then the middle of what is left."""
    image = Image.new("RGB", (64, 128), RED)
    image.paste(BLUE, (8, 40, 56, 88))
    path = save(tmp_path / "x.png", image)
    assert (read_image(path, (3, 48, 48), border=1 / 8) == np.reshape(BLUE, (3, 1, 1))).all()
    assert (read_image(path, (3, 64, 64))[:, 0] == np.reshape(RED, (3, 1))).all()


def test_a_large_photo_looks_as_if_it_were_decoded_whole(tmp_path):
    """Decoding a JPEG at a fraction of its size is quicker and may cost some grey levels."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((2000, 1500))
    shrunk = read_image(save(tmp_path / "x.jpg", photo, quality=95)).astype(int)
    whole = read_image(save(tmp_path / "x.png", photo)).astype(int)
    assert np.abs(shrunk - whole).mean() < 2


@pytest.mark.parametrize(
    ("orientation", "transpose"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),  # the inverse of what is to be done
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_a_camera_held_askew(tmp_path, orientation, transpose):
    upright = halves(RED, BLUE, (96, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if transpose is None else upright.transpose(transpose)
    x = read_image(save(tmp_path / "x.jpg", stored, exif=exif, quality=95, subsampling=0))
    np.testing.assert_allclose(corners(x), (RED, BLUE), atol=12)


# Modes


def test_transparent_is_white_whatever_colour_hides_there(tmp_path):
    image = halves(RED, BLUE).convert("RGBA")
    image.putalpha(halves(WHITE, (0, 0, 0)).convert("L"))  # the blue half is transparent
    assert corners(read_image(save(tmp_path / "x.png", image))) == (RED, WHITE)


def test_half_transparent_is_half_white(tmp_path):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 128))
    grey = read_image(save(tmp_path / "x.png", image))
    np.testing.assert_allclose(grey, 127, atol=1)


def test_a_palette_with_and_without_a_transparent_colour(tmp_path):
    image = halves(RED, BLUE).quantize(2)
    assert corners(read_image(save(tmp_path / "x.png", image))) == (RED, BLUE)
    blue = image.getpixel((60, 30))
    x = read_image(save(tmp_path / "x.png", image, transparency=blue))
    assert corners(x) == (RED, WHITE)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey(tmp_path, mode):
    image = halves((0, 0, 0), WHITE).convert("L").convert(mode)
    x = read_image(save(tmp_path / "x.png", image))
    assert corners(x) == ((0, 0, 0), WHITE)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", (1, 32, 32)), x[:1])


def test_cmyk(tmp_path):
    path = save(tmp_path / "x.jpg", halves(RED, BLUE).convert("CMYK"), quality=95, subsampling=0)
    np.testing.assert_allclose(corners(read_image(path)), (RED, BLUE), atol=12)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_cut_off(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 32).astype(np.uint16)
    image = Image.fromarray(np.tile(ramp, (32, 1)))
    x = read_image(save(tmp_path / f"x.{suffix}", image))
    np.testing.assert_array_equal(x, np.broadcast_to(ramp // 256, (3, 32, 32)))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [halves(RED, BLUE), halves(GREEN, GREEN)]
    path = save(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert corners(read_image(path)) == (RED, BLUE)


# What is no picture


def refusal(path, shape=(3, 32, 32)):
    with pytest.raises(DataError) as caught:
        read_image(path, shape)
    assert_one_sentence(caught.value)
    assert str(caught.value).startswith(f"{path} is no picture that can be read: ")
    return str(caught.value).removeprefix(f"{path} is no picture that can be read: ")


def test_a_text(tmp_path):
    (tmp_path / "x.png").write_text("hello")
    assert refusal(tmp_path / "x.png") == "it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"


def test_formats_that_start_programs_are_not_tried(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert "it is none of BMP" in refusal(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
def test_a_file_cut_short(tmp_path, suffix):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    path = save(tmp_path / f"x.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path)


def test_no_file_and_no_file_but_a_folder(tmp_path):
    assert refusal(tmp_path / "none.png") == "No such file or directory"
    assert refusal(tmp_path)  # what it says depends on the system


@pytest.mark.parametrize("times", [1.5, 3])
def test_a_decompression_bomb(tmp_path, monkeypatch, times):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(64 * 64 / times))
    path = save(tmp_path / "x.png", halves(RED, BLUE))
    assert refusal(path) == f"it claims more than {int(64 * 64 / times):,} pixels"


def test_floating_point_pixels(tmp_path):
    path = save(tmp_path / "x.tiff", Image.new("F", (8, 8)))
    assert refusal(path) == "its pixels are floating-point numbers of unknown scale"


@pytest.mark.parametrize("shape", [(2, 32, 32), (4, 32, 32), (3, 0, 32), (3, 32, -1)])
def test_shapes_that_are_none(tmp_path, shape):
    with pytest.raises(ValueError, match=r"read_image: shape is .*; expected \(1 or 3, height, wi"):
        read_image(tmp_path / "x.png", shape)


def encoded(suffix):
    rng, file = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(file, suffix)
    return file.getvalue()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Give one file for all the examples of the fuzz test."""
    return tmp_path_factory.mktemp("fuzz") / "x.png"


@settings(max_examples=300, deadline=None)
@given(raw=st.sampled_from(["png", "jpeg", "gif", "bmp", "ppm", "tiff"]).flatmap(
    lambda suffix: damaged(encoded(suffix))
))  # fmt: skip
def test_a_damaged_picture_is_read_or_refused(file, raw):
    file.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata
        try:
            assert read_image(file).shape == (3, 32, 32)
        except DataError as error:
            assert_one_sentence(error)
