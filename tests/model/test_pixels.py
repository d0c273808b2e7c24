"""Normalising on the model's device is bit for bit what normalising each image in the loader was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fovea_detr.data.loader import collate_images
from fovea_detr.model.pixels import IMAGENET_MEAN, IMAGENET_STD, _constants, normalised
from tests.model.builders import small_model

SIZES = ((5, 7), (6, 3), (1, 1))


def alone(image: Tensor) -> Tensor:
    """The slow twin: one image as torchvision normalises it."""
    return F.normalize(F.to_dtype(image, torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))


def random_images(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in SIZES]


def test_every_value_of_every_channel_is_torchvisions() -> None:
    image = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    batch = collate_images([image])
    assert bits(normalised(batch.images, batch.sizes_hw)[0]).equal(bits(alone(image)))


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_batch_is_its_images_padded_with_zeros(interleaved: bool) -> None:
    images = random_images()
    batch = collate_images(images)
    memory = torch.channels_last if interleaved else torch.contiguous_format
    found = normalised(batch.images.contiguous(memory_format=memory), batch.sizes_hw)
    twin = collate_images([alone(image) for image in images])
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert bits(found).equal(bits(twin.images))


def test_floats_are_returned_and_pixels_are_not_modified() -> None:
    batch = collate_images([alone(image) for image in random_images()])
    assert normalised(batch.images, batch.sizes_hw) is batch.images
    pixels = collate_images(random_images())
    before = pixels.images.clone()
    normalised(pixels.images, pixels.sizes_hw)
    assert pixels.images.equal(before)


def test_constants_created_in_inference_work_in_training() -> None:
    batch = collate_images(random_images())
    _constants.cache_clear()
    with torch.inference_mode():
        normalised(batch.images, batch.sizes_hw)
    weight = torch.ones(1, 3, 1, 1, requires_grad=True)
    (normalised(batch.images, batch.sizes_hw) * weight).sum().backward()
    assert weight.grad is not None


def test_nothing_is_read_back_to_the_host() -> None:
    batch = collate_images(random_images())
    with torch.profiler.profile() as profile:
        normalised(batch.images, batch.sizes_hw)
    names = {event.name for event in profile.events() or ()}
    assert "aten::masked_fill_" in names
    assert names.isdisjoint({"aten::_local_scalar_dense", "aten::item", "aten::nonzero"})


def test_the_model_takes_pixels_and_normalised_floats_alike() -> None:
    model = small_model().eval()
    images = random_images()
    with torch.no_grad():
        from_pixels = model(collate_images(images))
        from_floats = model(collate_images([alone(image) for image in images]))
    assert from_pixels.logits.equal(from_floats.logits)
    assert from_pixels.boxes_cxcywh.equal(from_floats.boxes_cxcywh)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_there_is_no_synchronisation() -> None:
    images = random_images()
    batch = collate_images(images).to("cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = normalised(batch.images, batch.sizes_hw)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bits(found.cpu()).equal(bits(collate_images([alone(image) for image in images]).images))


def bits(values: Tensor) -> Tensor:
    """So that 0.0 and -0.0 differ."""
    return values.contiguous().view(torch.int32)
