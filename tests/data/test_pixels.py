"""Image files: EXIF orientation, 16-bit grey and the other modes, and sizes that differ from the annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fovea_detr.data.coco import CocoDataset
from fovea_detr.data.flaws import refuse
from fovea_detr.data.headers import size_mismatch
from fovea_detr.data.pixels import decode
from fovea_detr.data.readers import read_coco
from fovea_detr.data.transforms import eval_transform
from fovea_detr.errors import DataError
from tests.data.builders import image_path, write_coco

ORIENTATIONS = range(1, 9)


def corners(size_wh: tuple[int, int] = (32, 24)) -> Image.Image:
    """Four quarters of different colours, so that every orientation looks different."""
    width, height = size_wh
    image = Image.new("RGB", size_wh, (250, 250, 250))
    for colour, place in (((250, 0, 0), (0, 0)), ((0, 250, 0), (1, 0)), ((0, 0, 250), (0, 1))):
        x, y = place[0] * width // 2, place[1] * height // 2
        image.paste(colour, (x, y, x + width // 2, y + height // 2))
    return image


def save_turned(path: Path, upright: Image.Image, orientation: int) -> None:
    """The file whose upright picture is `upright`: the inverse of the turn is applied to the pixels."""
    inverse = Image.Exif()
    inverse[0x0112] = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright.copy()
    stored.info["exif"] = inverse.tobytes()
    stored = ImageOps.exif_transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    stored.save(path, exif=exif, **options)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size_wh", [(32, 24), (32, 32)])
def test_the_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str, size_wh: tuple[int, int]) -> None:
    path, upright = tmp_path / f"image{suffix}", corners(size_wh)
    save_turned(path, upright, orientation)
    image = decode(path)
    assert image.shape == (3, size_wh[1], size_wh[0])
    small = (size_wh[0] // 4, size_wh[1] // 4)
    for x in (small[0], 3 * small[0]):
        for y in (small[1], 3 * small[1]):
            assert image[:, y, x].tolist() == pytest.approx(upright.getpixel((x, y)), abs=12)
    assert image.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_size_that_fits_the_stored_pixels_only_is_refused_by_name(tmp_path: Path, orientation: int) -> None:
    """As detectron2 refuses it: which of the two the boxes were drawn on cannot be known."""
    root = write_coco(tmp_path)  # image 1 is annotated as 48 x 32
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (48, 32)).save(image_path(root, 1), exif=exif)
    split = read_coco(root, "train")
    if orientation < 5:
        refuse([split.flaws], 0.01)
        return
    with pytest.raises(
        DataError, match=rf"000001\.jpg: 32 x 48 pixels once its EXIF orientation {orientation} is applied"
    ):
        refuse([split.flaws], 0.01)
    with pytest.raises(DataError, match="EXIF"):
        CocoDataset(split, eval_transform("tiny")).sample(0)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00"])
def test_a_broken_exif_block_counts_as_none(tmp_path: Path, exif: bytes) -> None:
    corners().save(tmp_path / "image.jpg", exif=exif)
    assert decode(tmp_path / "image.jpg").shape == (3, 24, 32)
    assert size_mismatch((24, 32), tmp_path / "image.jpg") is None


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256, 257], [32767, 32896, 65534, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"image{suffix}")
    expected = [[round(int(v) / 257) for v in row] for row in values]
    assert decode(tmp_path / f"image{suffix}").tolist() == [expected] * 3


def test_32_bit_integers_are_taken_for_16_bits_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(path)
    assert decode(path)[0].tolist() == [[0, 255]]
    for values in ([[0, 65536]], [[-1, 5]]):
        Image.fromarray(np.array(values, np.int32)).save(path)
        with pytest.raises(DataError, match=r"image\.tif: .*its pixels go from .*: convert it to 8 or 16 bits"):
            decode(path)


def test_floats_are_greys_from_0_to_255_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.array([[0, 127, 255]], np.float32)).save(path)
    assert decode(path)[0].tolist() == [[0, 127, 255]]
    for values in ([[0.0, 1.0]], [[0.0, 300.0]], [[float("nan"), 1.0]]):
        Image.fromarray(np.array(values, np.float32)).save(path)
        with pytest.raises(DataError, match="convert it to 8 or 16 bits"):
            decode(path)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "LA", "gif", "webp"])
def test_every_mode_and_format_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "tif", "gif": "gif", "webp": "webp"}.get(mode, "png")
    image = Image.new("RGB", (6, 4), (255, 255, 255))
    second = Image.new("RGB", (6, 4))
    frames: dict[str, Any] = {"save_all": True, "append_images": [second]} if mode == "gif" else {}
    (image if mode in ("gif", "webp") else image.convert(mode)).save(tmp_path / f"image.{suffix}", **frames)
    decoded = decode(tmp_path / f"image.{suffix}")
    assert (decoded.dtype, decoded.shape) == (torch.uint8, (3, 4, 6))
    assert decoded.min() > 250


def test_no_images_and_wrong_sizes_are_listed_before_training(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [(20, 10)] * 5)
    image_path(root, 1).write_text("no image")
    for number in (2, 3):
        Image.new("RGB", (10, 20)).save(image_path(root, number))
    with pytest.raises(DataError) as caught:
        refuse([read_coco(root, "train").flaws], 1.0)
    assert "files that are no images: 1 (" in str(caught.value)
    assert "images of another size than annotated: 2 (" in str(caught.value)
