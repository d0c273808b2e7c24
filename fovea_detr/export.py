"""A trained model as one ONNX file, for programs without this package.

    python -m fovea_detr.export RUN --to model.onnx [--set KEY=VALUE]

RUN is a run folder or a checkpoint. Batch and image size are free. Input `images` is uint8 [batch, 3, height, width]
RGB, `sizes_hw` int64 [batch, 2] each image's own height and width; outputs are `logits` [batch, queries, outputs] and
`boxes` [batch, queries, 4] (centre x, centre y, width, height; 0..1 of the image's own size). The file's metadata state
resizing, scores, class names and category ids. The command runs the file with ONNX Runtime at two sizes and compares
its outputs with the model's.
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
from fovea_detr.model.pixels import IMAGENET_MEAN, IMAGENET_STD, is_padding
from fovea_detr.predict.loading import Trained, open_trained
from fovea_detr.runs.stored import config_text
from fovea_detr.types import Batch

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED = ((2, 480, 640), (1, 320, 448))  # batch, height, width: of the comparison
TOLERANCE = 1e-4
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
    """uint8 images and sizes -> logits and boxes of the last layer. The slow, obvious form of `normalised`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor, sizes_hw: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (images.float() * (1 / 255) - self.mean) / self.deviation
        pixels = pixels.masked_fill(is_padding(sizes_hw, images.shape[-2], images.shape[-1]), 0.0)
        out = self.model(Batch(pixels, sizes_hw, sizes_hw))
        return out.logits[-1], out.boxes_cxcywh[-1]


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
            output_names=["logits", "boxes"],
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
    for shape in CHECKED:
        images, sizes_hw = example(*shape)
        found = session.run(None, {"images": images.numpy(), "sizes_hw": sizes_hw.numpy()})
        with torch.no_grad():
            expected = model(images, sizes_hw)
        apart = [float((torch.from_numpy(f) - e).abs().max()) for f, e in zip(found, expected, strict=True)]
        if not max(apart) <= TOLERANCE:
            raise UserError(
                f"{path}: its outputs differ from the model's by {max(apart):.1e} at {shape}: do not use it"
            )
        print(f"{shape[0]} x {shape[1]} x {shape[2]}: logits equal to {apart[0]:.1e}, boxes to {apart[1]:.1e}")


def metadata(trained: Trained) -> dict[str, Any]:
    config = trained.config
    resizing = RESIZING[config.data.recipe].format(**vars(config.data))
    return {
        "preprocessing": f"RGB, upright, uint8; resized (bilinear, antialiased): {resizing}; zeros below and right of "
        "it to the batch's size; normalisation is part of the model",
        "postprocessing": f"{SCORES[trained.model.activation]}; boxes x the image's own (width, height)",
        "names": json.dumps(trained.names),
        "category_ids": json.dumps(trained.category_ids),
        "config": config_text(config),
        "fovea_detr": version("fovea-detr"),
    }


if __name__ == "__main__":
    main()
