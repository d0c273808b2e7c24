"""The backbones that `model.backbone` may name, one line each. Imports no torch: the checks of a configuration read it.

A torchvision network with `features` (ConvNeXt, Swin, EfficientNet) needs a line here and nothing else. Another kind of
network also needs its class in `BODIES`, model/backbone.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneSpec:
    """body: a key of BODIES in model/backbone.py. channels, stride (in pixels): of the output, without dc5.

    frozen: the parts of the body that are never trained. imagenet: torchvision has ImageNet weights of this name.
    batch_norm: it has such layers, and `model.batch_norm` decides about them; eps: theirs in torchvision (MobileNetV3:
    1e-3). dc5: its last stage can be dilated.
    compiles: torch.compile takes it with batches of any size. It traced Swin's windows for over 3 minutes, without end.
    """

    body: str
    channels: int
    stride: int = 32
    frozen: tuple[str, ...] = ()
    imagenet: bool = True
    batch_norm: bool = False
    eps: float = 1e-5
    dc5: bool = False
    compiles: bool = True


# The stem and stage 2 of a ResNet stay frozen, as in DETR. The others are trained whole, as their authors do in
# detection (Liu et al., "Swin Transformer", 2021; Liu et al., "A ConvNet for the 2020s", 2022).
STEM = ("conv1", "bn1", "layer1")

BACKBONES = {
    "resnet18": BackboneSpec("resnet", 512, frozen=STEM, batch_norm=True),
    "resnet34": BackboneSpec("resnet", 512, frozen=STEM, batch_norm=True),
    "resnet50": BackboneSpec("resnet", 2048, frozen=STEM, batch_norm=True, dc5=True),
    "resnet101": BackboneSpec("resnet", 2048, frozen=STEM, batch_norm=True, dc5=True),
    "convnext_tiny": BackboneSpec("features", 768),
    "swin_t": BackboneSpec("features", 768, compiles=False),
    "tiny": BackboneSpec("tiny", 128, stride=16, imagenet=False, batch_norm=True),
}
