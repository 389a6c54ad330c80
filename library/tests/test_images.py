"""A Pillow image becomes a file that holds what is in it: every mode, format, animation and orientation."""

import io
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import filetype
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageOps, ImageSequence

from aggregating_worker.outcome.picture import NotAFile, Picture
from tests.conftest import LIBRARY

Image.init()
MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I F I;16 I;16L I;16B".split()
LOSSY = {"JPEG": {"L", "RGB", "RGBX", "CMYK", "YCbCr"}, "MPO": {"L", "RGB", "RGBX", "CMYK", "YCbCr"}}
LOSSY |= {"WEBP": {"RGB", "RGBA"}, "AVIF": {"RGB", "RGBA"}}
"""What these hold, but not exactly."""
PLAIN = {"La": "LA", "RGBa": "RGBA", "HSV": "RGB", "RGBX": "RGB", "I;16": "I", "I;16L": "I", "I;16B": "I"}


def noise(mode: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Return an image of any mode, with every value that it can have."""
    random = np.random.default_rng(1)
    width, height = size
    if mode == "F":
        return Image.fromarray(random.normal(0, 1e6, (height, width)).astype(np.float32))
    if mode == "I":
        return Image.fromarray(random.integers(-100_000, 100_000, (height, width)).astype(np.int32))
    if mode == "1":
        return noise("L", size).convert("1")
    if mode == "PA":
        image = noise("RGB", size).quantize(64).convert("PA")
        image.putalpha(noise("L", size))
        return image
    image = Image.new(mode, size)
    if mode == "P":
        image.putpalette(random.integers(0, 256, 768).tolist())
    image.frombytes(random.bytes(len(image.tobytes())))
    return image


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def sent(image: Image.Image) -> Image.Image:
    content, _ = Picture(image).encode()
    return opened(content)


def values(image: Image.Image, mode: str) -> bytes:
    return image.convert(mode).tobytes() if image.mode != mode else image.tobytes()


@pytest.mark.parametrize("image_format", [None, *sorted({*Image.OPEN, *Image.SAVE}), "nonsense", "jpeg"])
@pytest.mark.parametrize("mode", MODES)
def test_no_value_is_lost_but_by_a_lossy_format_that_holds_the_mode(mode: str, image_format: str | None) -> None:
    image = noise(mode)
    image.format = image_format
    made = sent(image)
    assert made.size == image.size
    own = (image_format or "PNG").upper()
    if mode in LOSSY.get(own, ()):
        assert made.format == ("JPEG" if own == "MPO" else own)
        return
    if mode == "P" or (mode, own) in (("PA", "IM"), ("L", "GIF"), ("1", "GIF"), ("1", "AVIF")):
        assert values(made, "RGBA") == values(image, "RGBA")
        return
    expected = PLAIN.get(mode, mode)
    assert values(made, expected) == values(image, expected)
    if mode in ("I", "F", "CMYK", "LAB", "YCbCr", "PA"):
        assert made.mode == mode
    assert made.format in (own, "PNG", "TIFF")


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        *(("RGB", image_format) for image_format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "TGA", "PPM", "JPEG2000")),
        *(("RGBA", image_format) for image_format in ("PNG", "WEBP", "TIFF", "TGA", "JPEG2000")),
        *(("P", image_format) for image_format in ("PNG", "GIF", "TIFF", "BMP")),
        *(("I;16", image_format) for image_format in ("PNG", "TIFF")),
        ("CMYK", "JPEG"),
        ("F", "TIFF"),
        ("I", "TIFF"),
    ],
)
def test_an_image_that_was_opened_keeps_its_format(mode: str, image_format: str) -> None:
    buffer = io.BytesIO()
    noise(mode).save(buffer, image_format)
    made = sent(opened(buffer.getvalue()))
    assert (made.format, made.mode) == (image_format, mode)


def test_alpha_that_was_put_on_a_jpeg_is_kept() -> None:
    buffer = io.BytesIO()
    noise("RGB").save(buffer, "JPEG")
    image = opened(buffer.getvalue())
    image.putalpha(100)
    assert image.format == "JPEG"
    made = sent(image)
    assert (made.format, made.mode, made.tobytes()) == ("PNG", "RGBA", image.tobytes())


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", None])
@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_what_makes_a_colour_transparent_is_kept(mode: str, image_format: str | None) -> None:
    image = noise(mode)
    image.info["transparency"] = (1, 2, 3) if mode == "RGB" else 7
    image.putpixel((0, 0), image.info["transparency"])
    image.format = image_format
    made = sent(image)
    assert made.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()
    assert made.convert("RGBA").getpixel((0, 0))[3] == 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("image_format", "size"), [("JPEG", (65_501, 1)), ("WEBP", (16_384, 1)), ("GIF", (65_536, 1)), ("ICO", (300, 10))]
)
def test_an_image_larger_than_its_format_allows_is_png(image_format: str, size: tuple[int, int]) -> None:
    image = noise("P" if image_format == "GIF" else "RGB", size)
    image.format = image_format
    made = sent(image)
    assert (made.format, made.tobytes()) == ("PNG", image.tobytes())


def test_an_image_that_nothing_can_hold_is_a_sentence() -> None:
    with pytest.raises(NotAFile, match=r"^an image of 0 × 4, mode RGB, could not be encoded as PNG: "):
        Picture(Image.new("RGB", (0, 4))).encode()


def test_a_value_of_32_bits_is_not_cut_to_16() -> None:
    image = Image.new("I", (2, 1), 70_000)
    assert sent(image).getpixel((0, 0)) == 70_000


# Animations


def frames(mode: str, count: int = 3) -> list[Image.Image]:
    made = []
    for number in range(count):
        image = Image.new(mode, (60, 40))
        colour: Any = {"RGB": (200, 40 * number, 30), "RGBA": (200, 40 * number, 30, 255), "1": 1, "F": number * 1e5}[
            mode
        ]
        ImageDraw.Draw(image).rectangle((5 + number * 10, 5, 20 + number * 10, 30), fill=colour)
        made.append(image)
    return made


def animation(image_format: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    first, *others = frames(mode)
    first.save(buffer, image_format, save_all=True, append_images=others, **options)
    return buffer.getvalue()


def seen(image: Image.Image) -> list[tuple[Any, bytes]]:
    """Return the duration and the colours of each frame; what is transparent has none."""
    return [
        (round(frame.info.get("duration", 0)), frame.convert("RGBA").convert("RGBa").tobytes())
        for frame in map(Image.Image.copy, ImageSequence.Iterator(image))
    ]


TIMES: dict[str, Any] = {"duration": [100, 200, 300]}
EXACT = {
    "GIF": animation("GIF", **TIMES, loop=3),
    "GIF once": animation("GIF", duration=70),
    "GIF of few colours": animation("GIF", "1", **TIMES),
    "GIF, disposal 2": animation("GIF", "RGBA", **TIMES, loop=0, disposal=2),
    "GIF, every disposal": animation("GIF", "RGBA", **TIMES, loop=0, disposal=[1, 2, 3]),
    "PNG": animation("PNG", "RGBA", **TIMES, loop=2),
    "PNG over": animation("PNG", "RGBA", **TIMES, loop=2, blend=1, disposal=1),
    "TIFF": animation("TIFF"),
    "TIFF as JPEG": animation("TIFF", compression="jpeg"),
    "TIFF as fax": animation("TIFF", "1", compression="group4"),
    "TIFF of numbers": animation("TIFF", "F"),
}
NEARLY = {
    "WEBP": animation("WEBP", "RGBA", **TIMES, loop=2),
    "AVIF": animation("AVIF", **TIMES),
    "MPO": animation("MPO"),
}
ALL = {**EXACT, **NEARLY}


@pytest.mark.parametrize("before", ["opened", "loaded", "at 1", "at 2"])
@pytest.mark.parametrize("name", ALL)
def test_an_animation_keeps_its_frames_and_their_durations(name: str, before: str) -> None:
    image, number = opened(ALL[name]), {"at 1": 1, "at 2": 2}.get(before, 0)
    image.seek(number)
    if before != "opened":
        image.load()
    made = sent(image)
    again, first = seen(made), seen(opened(ALL[name]))
    assert image.tell() == number
    assert [duration for duration, _ in again] == [duration for duration, _ in first]
    assert made.info.get("loop") == opened(ALL[name]).info.get("loop")
    if name in EXACT:
        assert again == first
    assert made.format == name[:4].strip(", ")


@pytest.mark.parametrize(("blend", "disposal"), [(1, [1, 2, 0]), ([0, 1, 1], 2)])
def test_an_animation_in_png_whose_frames_change_the_one_before_stays_as_it_looks(blend: Any, disposal: Any) -> None:
    """Opened only: Pillow 13 shows other frames to whoever goes to the last one at once."""
    content = animation("PNG", "RGBA", **TIMES, blend=blend, disposal=disposal)
    made = sent(opened(content))
    assert (made.format, seen(made)) == ("PNG", seen(opened(content)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("change", ["thumbnail", "paste"])
def test_of_an_animation_that_was_drawn_on_the_changed_frame_is_sent(name: str, change: str) -> None:
    """Also a second time: taking it changes nothing."""
    image = opened(ALL[name])
    image.load()
    if change == "thumbnail":
        image.thumbnail((30, 30))
    else:
        colour: Any = 7.5 if image.mode == "F" else image.getpixel((6, 6))
        image.paste(colour, (0, 0, 5, 5))
    expected = image.copy()
    for _ in range(2):
        made = sent(image)
        assert (getattr(made, "n_frames", 1), made.size) == (1, expected.size)
        if name in EXACT and name != "TIFF of numbers":
            assert made.convert("RGBA").tobytes() == expected.convert("RGBA").tobytes()
        assert (image.mode, image.tobytes()) == (expected.mode, expected.tobytes())


def test_an_animation_that_many_items_return_at_once_is_whole_in_each() -> None:
    image = opened(EXACT["GIF"])
    with ThreadPoolExecutor(8) as threads:
        made = [*threads.map(lambda _: seen(sent(image)), range(24))]
    assert made == [seen(opened(EXACT["GIF"]))] * 24


def test_the_same_frame_three_times_is_one() -> None:
    buffer = io.BytesIO()
    image = noise("P")
    image.save(buffer, "GIF", save_all=True, append_images=[image, image])
    assert sent(opened(buffer.getvalue())).convert("RGB").tobytes() == image.convert("RGB").tobytes()


# Files that are closed


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM"])
def test_an_image_whose_file_is_closed_is_a_sentence_unless_it_was_loaded(tmp_path: Path, image_format: str) -> None:
    noise("L").save(tmp_path / "image", image_format)
    with Image.open(tmp_path / "image") as image:
        pass
    sentence = "could not be read: its file is closed: call load\\(\\) on it, or return a copy, inside the with\\.$"
    with pytest.raises(NotAFile, match=sentence):
        Picture(image)
    with Image.open(tmp_path / "image") as image:
        image.load()
    assert sent(image).size == (40, 30)
    with Image.open(tmp_path / "image") as image:
        copy = image.copy()
    assert sent(copy).size == (40, 30)
    image.close()
    with pytest.raises(NotAFile, match=sentence):
        Picture(image)


@pytest.mark.parametrize("name", ["GIF", "PNG", "TIFF"])
def test_of_an_animation_whose_file_is_closed_the_loaded_frame_is_sent(tmp_path: Path, name: str) -> None:
    (tmp_path / "image").write_bytes(EXACT[name])
    with Image.open(tmp_path / "image") as image:
        image.load()
    assert sent(image).convert("RGB").tobytes() == opened(EXACT[name]).convert("RGB").tobytes()


def test_an_image_that_is_cut_off_says_so() -> None:
    buffer = io.BytesIO()
    noise("RGB").save(buffer, "JPEG")
    with pytest.raises(NotAFile, match=r"mode RGB, could not be read: image file is truncated"):
        Picture(opened(buffer.getvalue()[:-200]))


# What is beside the pixels

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_profile_and_the_resolution_stay(image_format: str) -> None:
    buffer = io.BytesIO()
    noise("RGB").save(buffer, image_format, icc_profile=PROFILE, dpi=(300, 300))
    image = opened(buffer.getvalue())
    for changed in (False, True):
        if changed:
            image.putalpha(200)  # a JPEG becomes a PNG
        made = sent(image)
        assert made.info["icc_profile"] == PROFILE
        if image_format != "WEBP":
            assert made.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def turned(image_format: str, mode: str = "RGB") -> bytes:
    """Return a wide picture, the top of which is red, as a camera that is held upright saves it."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture = Image.new("RGB", (64, 32), "blue")
    picture.paste("red", (0, 0, 16, 32))
    picture.convert(mode).save(buffer, image_format, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("becomes", [None, "PNG", "TIFF", "GIF", "BMP", "WEBP", "nonsense"])
@pytest.mark.parametrize("mode", ["as it is", "RGBA"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_exif_says_is_turned_looks_the_same(image_format: str, mode: str, becomes: str | None) -> None:
    image = opened(turned(image_format))
    looks = ImageOps.exif_transpose(image)
    if mode == "RGBA":
        image.putalpha(255)
    if becomes:
        image.format = becomes
    made = ImageOps.exif_transpose(sent(image))
    assert made.size == looks.size == (32, 64)
    difference = np.abs(np.asarray(made.convert("RGB")).astype(int) - np.asarray(looks).astype(int))
    assert difference.mean() < 10


def test_what_is_transparent_has_no_colour_to_be_lost() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((0, 1), (200, 100, 50, 0))
    image.format = "GIF"
    assert sent(image).format == "GIF"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_readers_turn_stays_as_the_camera_has_saved_it(image_format: str) -> None:
    made = sent(opened(turned(image_format)))
    assert (made.format, made.size, made.getexif()[0x0112]) == (image_format, (64, 32), 6)


# The README's sample


class Pictures(BaseHTTPRequestHandler):
    served: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.served[self.path])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def thumbnail() -> Iterator[Callable[[bytes], Image.Image]]:
    """Run the README's sample on a picture; return what is sent."""
    readme = (LIBRARY.parent / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"After, thumbnails.*?```python\n(.*?)```", readme, re.DOTALL)
    task: dict[str, Any] = {"__name__": "task"}
    exec(code, task)
    with HTTPServer(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def run(content: bytes) -> Image.Image:
            Pictures.served["/picture"] = content
            job = task["Input"](items=[f"http://127.0.0.1:{server.server_port}/picture"], width=16)
            return sent(task["process"](job.items[0], job))

        yield run
        server.shutdown()


def test_the_thumbnail_of_a_picture_that_exif_says_is_turned_is_upright(
    thumbnail: Callable[[bytes], Image.Image],
) -> None:
    made = thumbnail(turned("JPEG"))
    assert (made.format, made.size, made.getexif().get(0x0112, 1)) == ("JPEG", (8, 16), 1)
    red, _, blue = made.getpixel((4, 1))  # type: ignore[misc]
    assert red > 200 > 60 > blue


def test_the_thumbnail_of_an_animation_is_its_first_frame(thumbnail: Callable[[bytes], Image.Image]) -> None:
    made = thumbnail(EXACT["GIF"])
    assert (made.size, getattr(made, "n_frames", 1)) == ((16, 11), 1)


def test_the_thumbnail_of_a_screenshot_keeps_what_is_transparent(thumbnail: Callable[[bytes], Image.Image]) -> None:
    buffer = io.BytesIO()
    screenshot = Image.new("RGBA", (64, 64), (0, 128, 255, 255))
    screenshot.paste((0, 0, 0, 0), (0, 0, 32, 64))
    screenshot.save(buffer, "PNG")
    made = thumbnail(buffer.getvalue())
    assert (made.format, made.mode, made.size) == ("PNG", "RGBA", (16, 16))
    assert [made.getpixel((x, 8)) for x in (1, 14)] == [(0, 0, 0, 0), (0, 128, 255, 255)]


def test_a_picture_of_a_rare_format_has_the_extension_of_its_format() -> None:
    image = noise("RGB")
    image.format = "PPM"
    content, name = Picture(image).encode()
    assert name == "image.ppm"
    assert filetype.guess(content) is None


@pytest.mark.parametrize(("mode", "values"), [("I;16", [0x409C, 0x0201]), ("I;16B", [0x9C40, 0x0102])])
def test_values_of_16_bits_are_a_png_in_either_order_of_their_bytes(mode: str, values: list[int]) -> None:
    content, name = Picture(Image.frombytes(mode, (2, 1), b"\x9c\x40\x01\x02")).encode()
    with Image.open(io.BytesIO(content)) as image:
        assert (name, [image.getpixel((x, 0)) for x in range(2)]) == ("image.png", values)
