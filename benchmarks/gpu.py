"""Measurements that need a GPU, part of `make bench` if there is one: R50, 800x1333, batch 4, bfloat16.

Images/s of a training step, kernels and syncs per step, the share of a step in which the GPU is busy, the attention's
memory bandwidth, recompiles after the warm-up of compile=true, and inference time by DETR's protocol. The plain model
runs under the same autocast. Each function takes a device and sizes, so that tests can call it on a CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import core
from benchmarks.measure import MIB, copy_bytes_per_second, in_turn, peak_bytes
from benchmarks.plain.layers import pad
from benchmarks.plain.model import plain_twin
from benchmarks.plain.run import best_of
from benchmarks.step import R50, Sides
from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.data.loader import collate_images
from fovea_detr.evaluation.detections import inference_seconds
from fovea_detr.machine.device import seconds
from fovea_detr.training.compiled import compile_training

Rows = list[dict[str, Any]]
BF16 = [*R50, "precision=bf16", "device=cuda"]
SIZE_HW, BATCH = (800, 1333), 4
STEP = "images/s, R50 training step, 800x1333, batch 4, bf16"
KERNELS, BUSY, SYNCS = "kernels a step", "share of a step that the GPU works", "syncs a step"
ATTENTION = "attention core, share of the card's copy bandwidth"
RECOMPILES, INFERENCE = "recompiles after the warm-up, compile=true", "inference by DETR's protocol, float32"


def rows(runs: int, device: str = "cuda") -> Rows:
    if not torch.cuda.is_available():
        names = (STEP, KERNELS, BUSY, SYNCS, ATTENTION, RECOMPILES, INFERENCE)
        return [{"part": part, "skipped": "no GPU"} for part in names]
    sides = Sides(BF16, SIZE_HW, BATCH, device)
    found = [*throughput_rows(sides, runs), *profile_rows(sides), *sync_rows(sides)]
    peaks = [peak_bytes(side, device) / MIB for side in (sides.plain, sides.ours)]
    found[0] |= {"memory": peaks}
    del sides
    torch.cuda.empty_cache()
    found += attention_rows(runs, device)
    found += compile_rows(BF16, BATCH, device)
    found += inference_rows(R50, (800, 1066), 100, device)
    return found


# ---- one training step -----------------------------------------------------------------------------------------------


def throughput_rows(sides: Sides, runs: int, steps: int = 5) -> Rows:
    """Alternate the sides every `steps` steps, so that the host runs ahead of the GPU as in training."""

    def several(step: Callable[[], object]) -> Callable[[], object]:
        return lambda: [step() for _ in range(steps)]

    images = steps * len(sides.images)
    slow, fast = in_turn(several(sides.plain), several(sides.ours), runs, sides.device)
    row = {"part": STEP, "plain": images / slow, "ours": images / fast, "unit": "images/s", "ratio": slow / fast}
    return [{**row, "target": 2.0}]


def profile_rows(sides: Sides) -> Rows:
    """Kernels per step, and the share of its time in which at least one kernel runs."""
    (plain, plain_busy), (ours, busy) = profiled(sides.plain, sides.device), profiled(sides.ours, sides.device)
    kernels = {"part": KERNELS, "plain": plain, "ours": ours, "ratio": plain / ours if ours else None}
    share = {"part": BUSY, "plain": 100 * plain_busy, "ours": 100 * busy, "unit": "%"}
    return [kernels, {**share, "ratio": busy / plain_busy if plain_busy else None}]


def profiled(step: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """-> kernels launched by one step, copies and fills included, and the busy share of the step's time.

    Kernel times come from the profiler. The step is timed without the profiler, which slows the host down.
    """
    taken = median(seconds(step, device) for _ in range(3))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        seconds(step, device)
    kernels = [event for event in found.events() or () if event.device_type.name == "CUDA"]
    spans = [(event.time_range.start, event.time_range.end) for event in kernels]  # microseconds
    return len(kernels), min(1.0, covered(spans) * 1e-6 / taken)


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def sync_rows(sides: Sides) -> Rows:
    plain, ours = syncs(sides.plain), syncs(sides.ours)
    row = {"part": SYNCS, "plain": plain, "ours": ours, "ratio": plain / ours if ours else float("inf")}
    return [{**row, "limit": 1}]


def syncs(step: Callable[[], object]) -> int:
    """How often one step makes the host wait for the GPU, by torch's own watch over it; 0 on a CPU."""
    if not torch.cuda.is_available():
        step()
        return 0
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


# ---- attention -------------------------------------------------------------------------------------------------------


def attention_rows(runs: int, device: str, kind: str = "type3", **sizes: Any) -> Rows:
    """The bytes per second that any exact core must move, as a share of the bandwidth of a copy on this GPU.

    Queries, keys, values, output, x and y of the prior; in the backward pass each again, and its gradient.
    """
    case = core.build(kind, device=device, **sizes)
    slow, fast = core.times(kind, "core", runs, device=device, **sizes)
    limit = copy_bytes_per_second(case.content.device)
    moved = needed_bytes(case)
    plain, ours = (100 * moved / taken / limit for taken in (slow, fast))
    note = f"{kind}, float32, forward + backward; copy {limit / 1e9:.0f} GB/s, ours {moved / fast / 1e9:.0f} GB/s"
    return [{"part": ATTENTION, "plain": plain, "ours": ours, "unit": "%", "ratio": slow / fast, "note": note}]


def needed_bytes(case: core.Case) -> int:
    maps, queries = case.q.shape[0] * case.q.shape[1], case.q.shape[2]
    prior = maps * queries * (case.grid.rows + case.grid.columns)
    once = 2 * case.q.numel() + case.k.numel() + case.v.numel() + prior
    return 3 * once * case.q.element_size()


# ---- compile=true, inference -----------------------------------------------------------------------------------------


def compile_rows(overrides: list[str], batch: int, device: str, shapes: tuple[tuple[int, int], ...] = ()) -> Rows:
    """Steps on several sizes after the warm-up of `compile=true`; no further graph may be compiled."""
    config = load_config([*overrides, "compile=true"])
    sides = Sides([*overrides, "compile=true"], SIZE_HW if not shapes else shapes[0], batch, device, side="ours")
    shapes = shapes or ((800, 1333), (640, 800), (1333, 800), (480, 1100), (736, 736))
    longest = max(max(shape) for shape in shapes)
    compiled = compile_training(sides.model, batch, longest, sides.device, config.precision)
    for height, width in shapes:
        images = [torch.randn(3, height, width - 16 * i) for i in range(batch)]
        sides.batch = collate_images(images)
        sides.ours()
    counts = compiled.counts()
    note = f"{counts['compiled_graphs']} graphs, compiled in {compiled.seconds:.0f} s"
    return [{"part": RECOMPILES, "ours": counts["recompiles"], "limit": 0, "note": note}]


def inference_rows(overrides: list[str], size_hw: tuple[int, int], count: int, device: str) -> Rows:
    """DETR's protocol: the mean seconds of one image at batch 1, copy and postprocessing included, after a warm-up."""
    config = load_config(overrides)
    torch.manual_seed(0)
    model = build_model(config)
    plain = plain_twin(config, model).to(device).eval()
    model = model.to(device).eval()
    images = [torch.randn(3, size_hw[0], size_hw[1] - 32 * (i % 4)) for i in range(count)]
    batches = [(collate_images([image], [size_hw], [i]), None) for i, image in enumerate(images)]
    fast = inference_seconds(model, batches, torch.device(device), "fp32")
    slow = plain_inference_seconds(plain, images, torch.device(device))
    note = f"mean of {count} random images of {size_hw[0]}x{size_hw[1]}, one at a time"
    row = {"part": INFERENCE, "plain": 1e3 * slow, "ours": 1e3 * fast, "unit": "ms", "ratio": slow / fast}
    return [{**row, "note": note}]


@torch.no_grad()
def plain_inference_seconds(model: nn.Module, images: list[torch.Tensor], device: torch.device) -> float:
    def detect(image: torch.Tensor) -> None:
        padded, is_padding = pad([image])
        outputs = model(padded.to(device), is_padding.to(device))
        best_of(outputs, torch.tensor([image.shape[1:]], device=device))

    for _ in range(3):
        detect(images[0])
    return sum(seconds(lambda image=image: detect(image), device) for image in images) / len(images)
