"""A trained model as one ONNX file, for programs without this package.

    python -m fovea_detr.export RUN --to model.onnx [--set KEY=VALUE]

RUN is a run folder or a checkpoint. Batch and image size are free. Input `images` is uint8 [batch, 3, height, width]
RGB, `sizes_hw` int64 [batch, 2] each image's own height and width; outputs are `logits` [batch, queries, outputs] and
`boxes` [batch, queries, 4] (centre x, centre y, width, height; 0..1 of the image's own size), and of a model with masks
`pred_masks` [batch, queries, height / 4, width / 4], logits of all queries. The file's metadata state resizing, scores,
class names and category ids. The command runs the file with ONNX Runtime at two sizes and compares its outputs with the
model's.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fovea_detr import cli
from fovea_detr.errors import UserError
from fovea_detr.model.detr import DETR
from fovea_detr.model.masks import OfImages, Seen
from fovea_detr.model.pixels import IMAGENET_MEAN, IMAGENET_STD, is_padding
from fovea_detr.predict.loading import Trained, open_trained
from fovea_detr.runs.stored import config_text
from fovea_detr.types import Batch

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED = ((2, 480, 640), (1, 320, 448))  # batch, height, width: of the comparison
CHECKED_MASKS = ((2, 190, 253), (1, 160, 224))  # smaller, for all queries have masks, and not whole cells
TOLERANCE = 1e-4  # of masks, whose logits may be large: a share of the largest
MASKS = (
    "pred_masks: logits at a quarter of the batch's size, rounded up; resize to the batch's size (bilinear), cut off "
)
MASKS += "the padding, sigmoid > 0.5, resize to the image's size (nearest)"
SHORTEST, LONGEST = 64, 8192  # pixels of a side
RESIZING = {
    "coco": "the short side to {short_side} pixels, or less so that the long side is about {max_side} at most",
    "tiny": "the long side to {long_side} pixels",
}
SCORES = {
    "sigmoid": "scores = sigmoid(logits); the best of all queries x outputs; outputs without a name are no class",
    "softmax": "scores = softmax(logits), the last output is 'no object'; for each query its best other output",
}


class Exported(nn.Module):
    """uint8 images and sizes -> logits, boxes, perhaps masks of the last layer.

    The slow, obvious form of `normalised` and of the mask head.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: DETR) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    @property
    def names(self) -> list[str]:
        """Of the outputs."""
        return ["logits", "boxes", *(["pred_masks"] if self.model.mask_head is not None else [])]

    def forward(self, images: Tensor, sizes_hw: Tensor) -> tuple[Tensor, ...]:
        pixels = (images.float() * (1 / 255) - self.mean) / self.deviation
        pixels = pixels.masked_fill(is_padding(sizes_hw, images.shape[-2], images.shape[-1]), 0.0)
        out, seen = self.model.detect(Batch(pixels, sizes_hw, sizes_hw))
        masks = () if seen is None else (all_masks(self.model, seen),)
        return out.logits[-1], out.boxes_cxcywh[-1], *masks


def all_masks(model: DETR, seen: Seen) -> Tensor:
    """[B, Q, *seen.size] logits: the head runs on all queries at once, as published, for a graph has no loops."""
    attention, head = model.bbox_attention, model.mask_head
    assert attention is not None
    assert head is not None
    maps = attention(seen.decoded, seen.memory, seen.is_padding.flatten(1), seen.prior)
    number = maps.shape[1]
    images = head.of_images(maps, seen.cells.transpose(1, 2).unflatten(-1, seen.is_padding.shape[1:]), seen.pyramid)
    cells, *adapted = (part.repeat_interleave(number, dim=0) for part in (images.cells, *images.adapted))
    each = OfImages(images.maps.flatten(0, 1), cells, tuple(adapted))
    logits = head(each.maps, each, slice(None))[:, 0]
    for dim, side in zip((-2, -1), seen.size, strict=True):  # as `fitted`, without asking for sizes
        places = torch.arange(side, device=logits.device).clamp(max=logits.shape[dim] - 1)
        logits = logits.index_select(dim, places)
    return logits.unflatten(0, (-1, number))


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__ is not None
    parser = cli.Parser(prog="python -m fovea_detr.export", description=__doc__)
    parser.add_argument("source", metavar="RUN", help="a run folder or a checkpoint")
    parser.add_argument("--to", type=Path, default=Path("model.onnx"), metavar="FILE", help="default: model.onnx")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    with cli.one_line_errors():
        cli.make_folder(options.to.parent)
        if options.to.is_dir():
            raise UserError(f"--to {options.to}: a folder; name a file, {options.to / 'model.onnx'}")
        export(open_trained(options.source, options.overrides), options.to)
        print(f"{options.to}: {options.to.stat().st_size / 1e6:.1f} MB")


def export(trained: Trained, to: Path) -> None:
    """Write the file and compare it with the model. Raises UserError: a package is missing, or the outputs differ."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UserError(f"the export needs {', '.join(missing)}: pip install {' '.join(missing)}")
    model = Exported(trained.model)
    batch, height, width = (
        torch.export.Dim("batch", min=1, max=1024),
        *(torch.export.Dim(side, min=SHORTEST, max=LONGEST) for side in ("height", "width")),
    )
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            model,
            example(3, 128, 192),
            dynamic_shapes={"images": {0: batch, 2: height, 3: width}, "sizes_hw": {0: batch}},
            input_names=["images", "sizes_hw"],
            output_names=model.names,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata(trained))
    program.save(str(to))
    compare(model, to)


def example(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Random images of a batch, the first without padding, and their sizes."""
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    sizes_hw = torch.tensor([[height - 16 * (i > 0), width - 24 * (i > 0)] for i in range(batch)])
    return images, sizes_hw


def compare(model: Exported, path: Path) -> None:
    """Print the largest difference of the file's outputs. Raises UserError if one is above TOLERANCE."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in CHECKED_MASKS if "pred_masks" in model.names else CHECKED:
        images, sizes_hw = example(*shape)
        found = session.run(None, {"images": images.numpy(), "sizes_hw": sizes_hw.numpy()})
        with torch.no_grad():
            out = model.model(Batch(images, sizes_hw, sizes_hw))
        expected = [out.logits[-1], out.boxes_cxcywh[-1], *([out.masks] if out.has_masks else [])]
        apart = [float((torch.from_numpy(f) - e).abs().max()) for f, e in zip(found, expected, strict=True)]
        apart[2:] = [far / max(1.0, float(expected[2].abs().max())) for far in apart[2:]]
        if not max(apart) <= TOLERANCE:
            raise UserError(
                f"{path}: its outputs differ from the model's by {max(apart):.1e} at {shape}: do not use it"
            )
        told = ", ".join(f"{name} to {far:.1e}" for name, far in zip(model.names, apart, strict=True))
        print(f"{shape[0]} x {shape[1]} x {shape[2]}: {told.replace(' to', ' equal to', 1)}")


def metadata(trained: Trained) -> dict[str, Any]:
    config = trained.config
    resizing = RESIZING[config.data.recipe].format(**vars(config.data))
    return {
        "preprocessing": f"RGB, upright, uint8; resized (bilinear, antialiased): {resizing}; zeros below and right of "
        "it to the batch's size; normalisation is part of the model",
        "postprocessing": f"{SCORES[trained.model.activation]}; boxes x the image's own (width, height)"
        f"{f'; {MASKS}' if config.model.masks else ''}",
        "names": json.dumps(trained.names),
        "category_ids": json.dumps(trained.category_ids),
        "config": config_text(config),
        "fovea_detr": version("fovea-detr"),
    }


if __name__ == "__main__":
    main()
