"""The backbone with its frozen norms folded into the convolutions, against torchvision's FrozenBatchNorm2d unfolded.

    python benchmarks/backbone.py [--runs 9]

ResNet-50, 2 images of 480x640, float32: forward and backward in one thread on a CPU; on a GPU 4 of 800x1333, in bf16.
Reports the median of several runs with alternating sides; on a CPU, of processor time, which excludes other processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fovea_detr.model.backbone import Backbone, build_backbone
from fovea_detr.model.memory_format import pass_seconds

PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class Plain(nn.Module):
    """torchvision's network up to stage 5, with the same weights and the same trainable parameters."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        resnet = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
        self.body = nn.Sequential()
        for part in PARTS:
            self.body.add_module(part, getattr(resnet, part))
        self.body.load_state_dict(backbone.body.state_dict())
        trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def rows(runs: int) -> list[dict[str, Any]]:
    """One row per memory format of ours: seconds of a pass, and the speedup over the plain side."""
    on_gpu = torch.cuda.is_available()
    device, precision = torch.device("cuda" if on_gpu else "cpu"), "bf16" if on_gpu else "fp32"
    torch.manual_seed(0)
    ours = build_backbone("resnet50", dc5=False, batch_norm="frozen").to(device)
    plain = Plain(ours).to(device)
    images = torch.randn(4, 3, 800, 1333) if on_gpu else torch.randn(2, 3, 480, 640)
    seconds = measured(plain, ours, images.to(device), precision, runs, [False, True] if on_gpu else [True])
    what = f"ResNet-50, {len(images)} x {images.shape[2]}x{images.shape[3]}, {precision}, {device.type}"
    note = "forward + backward; plain: torchvision's FrozenBatchNorm2d unfolded, channels first"
    return [
        {"part": f"{name}: {what}", "plain": seconds["plain"], "ours": value, "unit": "s", "note": note}
        | {"ratio": seconds["plain"] / value, "prototype": None if on_gpu else 1.08}
        for name, value in seconds.items()
        if name != "plain"
    ]


def measured(
    plain: Plain, ours: Backbone, images: Tensor, precision: str, runs: int, formats: list[bool]
) -> dict[str, float]:
    """Median seconds of a pass by name; the sides alternate, the first pass is discarded. formats: channels_last."""
    clock = time.perf_counter if images.is_cuda else time.process_time
    taken: dict[str, list[float]] = {}
    for _ in range(runs + 1):
        taken.setdefault("plain", []).append(pass_seconds(plain, images, precision, clock))
        for channels_last in formats:
            ours.channels_last = channels_last
            name = "folded, channels last" if channels_last else "folded"
            taken.setdefault(name, []).append(pass_seconds(ours, images, precision, clock))
    return {name: median(values[1:]) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="runs of each side; the median is reported")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(arguments.runs):
        print("{part}: {plain:.3f} -> {ours:.3f} {unit}, {ratio:.2f}x ({note})".format(**row))


if __name__ == "__main__":
    main()
