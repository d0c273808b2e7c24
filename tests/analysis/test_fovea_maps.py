"""The drawn maps are the model's: attention against the module's output, the prior against its formula."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.nn import functional

from analysis import fovea_maps
from analysis.figures.fovea_figure import SHADES, head_styles, heads_apart, heads_together
from analysis.figures.head_maps import LEAST_RANGE, Marked, View, attention_norm
from fovea_detr.build import build_model
from fovea_detr.compose import load_config
from fovea_detr.data.loader import collate_images
from fovea_detr.fovea.prior import FoveaPrior, hiding
from fovea_detr.fovea.separable import Separable
from fovea_detr.model.attention import CrossAttention, for_layers
from fovea_detr.predict.capture import attention_weights, capture
from fovea_detr.predict.cells import attention_at_pixels, cell_coordinates, prior_at_pixels
from fovea_detr.runs.folder import RunFolder
from fovea_detr.training import checkpoint
from tests import reference
from tests.fovea.priors import SHAPES, randomise
from tests.model.builders import random_batch, random_image, small_config, small_model

DC5 = ["model=fovea_r50_dc5", "model.backbone_weights=none", "model.encoder_layers=1", "model.decoder_layers=2"]
BACKBONES = {
    "tiny, stride 16": [],
    "resnet18, stride 32": ["model.backbone=resnet18"],
    "resnet50 with dc5, stride 16": ["model.backbone=resnet50", "model.dc5=true"],
}

# ---- the maps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "prior", "padding"])
def test_weights_times_values_are_the_modules_own_output(kind):
    torch.manual_seed(0)
    module = CrossAttention(hidden=16, heads=4, dropout=0.0).eval()
    query, value = torch.randn(10, 16), torch.randn(2, 9, 16)
    (memory,) = for_layers([module], torch.randn(18, 16), value.flatten(0, 1), batch=2)
    columns = torch.randn(2, 4, 5, 9).masked_fill(torch.arange(9) > 6, float("-inf"))
    prior = Separable(columns, torch.zeros(2, 4, 5, 1))
    padding = hiding(torch.arange(9).expand(2, 9) > 6, torch.float32)
    options = {"none": {}, "prior": {"prior": prior}, "padding": {"mask": padding}}
    weights = attention_weights(module, query, memory, **options[kind])
    v = functional.linear(value, module.in_proj_weight.chunk(3)[2], module.in_proj_bias.chunk(3)[2])
    attended = (weights @ v.unflatten(-1, (4, -1)).transpose(1, 2)).transpose(1, 2).reshape(10, 16)
    torch.testing.assert_close(module.out_proj(attended), module(query, memory, **options[kind]))


@pytest.mark.parametrize("model", ["fovea_tiny", "detr_focal_tiny"])
def test_capture_does_not_change_the_model(model):
    net, batch = small_model(f"model={model}"), random_batch((64, 96))
    with torch.no_grad():
        before = net(batch)
    seen = capture(net, batch)
    with torch.no_grad():
        after = net(batch)
    for predictions in (seen.predictions, after):
        assert torch.equal(predictions.boxes_cxcywh, before.boxes_cxcywh)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_padding_cells_are_removed():
    batch = random_batch((64, 96), (128, 160))
    seen = capture(small_model(), batch, image=0)
    assert seen.size_hw == (64, 96)
    assert seen.predictions.boxes_cxcywh.shape[:2] == (2, 1)
    for maps in seen.layers:
        assert maps.attention.shape == (2, 7, 4, 6)
        torch.testing.assert_close(maps.attention.sum((-1, -2)), torch.ones(2, 7))
        assert maps.log_prior is not None
        assert maps.log_prior.isfinite().all()
    alone = capture(small_model(), random_batch((64, 96))).layers[0].log_prior
    torch.testing.assert_close(seen.layers[0].log_prior, alone)  # layer 0's prior does not depend on the image


@pytest.mark.parametrize(
    ("mixture", "has_prior"),
    [("none", [[1] * 7] * 2), ("head", [[1] * 7, [0] * 7]), ("query", [[0] * 3 + [1] * 4] * 2)],
)
def test_heads_and_queries_with_a_prior(mixture, has_prior):
    for maps in capture(small_model(f"mixture={mixture}"), random_batch((64, 64))).layers:
        assert maps.has_prior.int().tolist() == has_prior
        assert maps.log_prior is not None
        assert ((maps.log_prior != 0).flatten(2).any(-1) == maps.has_prior).all()


def test_plain_detr_has_only_attention():
    for maps in capture(small_model("model=detr_focal_tiny"), random_batch((64, 64))).layers:
        assert maps.log_prior is None
        assert not maps.has_prior.any()
        torch.testing.assert_close(maps.attention.sum((-1, -2)), torch.ones(2, 7))


# ---- from cells to pixels ------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES.keys())
def test_the_prior_is_drawn_where_the_reference_point_is_on_the_original_image(backbone):
    """Without an offset the centre is sigmoid(reference) of the image, for any stride and resize."""
    model = small_model(*backbone, "dynamic_scale=type1")
    for module in model.decoder.modules():
        if isinstance(module, FoveaPrior):
            torch.nn.init.zeros_(module.offset.weight)
            torch.nn.init.zeros_(module.offset.bias)
    references: list[torch.Tensor] = []
    model.decoder.register_forward_hook(lambda _, __, output: references.append(output[1]))
    height, width = 200, 330  # of the file; resized to sides that are not multiples of the stride
    seen = capture(model, collate_images([random_image(150, 247)], [(height, width)]))
    for query, point in enumerate(references[0][0].sigmoid().tolist()):
        for maps in seen.layers:
            assert maps.log_prior_at is not None
            formula = partial(maps.log_prior_at, 0, query)
            drawn = prior_at_pixels(formula, (height, width), seen.size_hw, seen.stride)
            row, column = np.unravel_index(drawn.argmax(), drawn.shape)
            assert abs(column + 0.5 - point[0] * width) <= 1
            assert abs(row + 0.5 - point[1] * height) <= 1


CENTRES = pytest.mark.parametrize("cell_centre", [False, True], ids=["at the index", "at the centre"])


@CENTRES
@pytest.mark.parametrize(("scale_type", "kernel"), SHAPES)
def test_the_drawn_prior_is_the_formula_at_every_pixel(scale_type, kernel, cell_centre):
    """Against the naive formula, at the pixels of an image of another size: 1.5 x its 64 x 96 model input."""
    axes = [f"dynamic_scale={scale_type}", f"kernel={kernel}", f"fovea.cell_centre={str(cell_centre).lower()}"]
    model = small_model(*axes, "mixture=head_query")
    randomise(model.decoder, seed=1)
    inputs: list[tuple[torch.Tensor, ...]] = []
    layer = next(module for module in model.decoder.modules() if isinstance(module, FoveaPrior))
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    seen = capture(model, random_batch((64, 96), (80, 128)), image=0)
    content, query_embed, point, sizes_hw, _ = inputs[0]
    assert point is None
    naive = reference.prior_at(
        dict(layer.named_parameters()),
        content[:1],
        query_embed[0],
        None,
        sizes_hw[:1],
        torch.tensor([[(x + 0.5) / 24, (y + 0.5) / 24] for y in range(96) for x in range(144)], dtype=torch.float64),
        stride=seen.stride,
        heads=2,
        scale_type=scale_type,
        smooth=8.0,
        mixture="head_query",
        kernel=kernel,
    )[0][0].view(2, 7, 96, 144)
    formula = seen.layers[0].log_prior_at
    assert formula is not None
    for head in range(2):
        for query in range(7):
            drawn = prior_at_pixels(partial(formula, head, query), (96, 144), seen.size_hw, seen.stride)
            np.testing.assert_allclose(drawn, naive[head, query].detach().exp().numpy(), atol=1e-5)


@CENTRES
@pytest.mark.parametrize(("scale_type", "kernel"), SHAPES)
def test_at_the_cells_the_drawn_prior_is_the_one_that_the_attention_gets(scale_type, kernel, cell_centre):
    axes = [f"dynamic_scale={scale_type}", f"kernel={kernel}", f"fovea.cell_centre={str(cell_centre).lower()}"]
    model = small_model(*axes)
    randomise(model.decoder, seed=1)
    seen = capture(model, random_batch((64, 96)))
    assert seen.first_cell == (0.5 if cell_centre else 0.0)
    x, y = (seen.first_cell + torch.arange(cells) for cells in (6, 4))
    for maps in seen.layers:
        assert maps.log_prior is not None
        assert maps.log_prior_at is not None
        for head in range(2):
            for query in range(7):
                torch.testing.assert_close(maps.log_prior_at(head, query, x, y), maps.log_prior[head, query])


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 4), (3, 2)])
@pytest.mark.parametrize(("first_cell", "first_pixel"), [(0.0, 0), (0.5, 16)])
def test_attention_to_one_cell_is_drawn_around_its_pixel(row, column, first_cell, first_pixel):
    cells = np.zeros((4, 6))
    cells[row, column] = 1
    drawn = attention_at_pixels(cells, (128, 192), (64, 96), 16, first_cell)
    assert drawn.shape == (128, 192)
    top, left = (first_pixel + index * 32 for index in (row, column))
    np.testing.assert_allclose(drawn[top : top + 1, left : left + 1], 1, atol=0.05)
    assert drawn.min() == pytest.approx(0)


def test_attention_between_the_cells_is_linear():
    """Against the formula: the four cells around a pixel, weighted by their distance in x and y."""
    cells = np.random.default_rng(0).random((3, 4))
    drawn = attention_at_pixels(cells, (30, 44), (60, 80), 20, first_cell=0.5)
    y, x = (cell_coordinates(pixels, resized, 20) - 0.5 for pixels, resized in ((30, 60), (44, 80)))
    for row in range(30):
        for column in range(44):
            weights = [max(0.0, 1 - abs(np.clip(y[row], 0, 2) - i)) for i in range(3)]
            across = [max(0.0, 1 - abs(np.clip(x[column], 0, 3) - j)) for j in range(4)]
            assert drawn[row, column] == pytest.approx(weights @ cells @ across)


def test_a_map_of_one_row_or_column_can_be_drawn():
    assert attention_at_pixels(np.ones((1, 3)), (10, 30), (10, 30), 16).shape == (10, 30)
    assert attention_at_pixels(np.ones((2, 1)), (30, 10), (30, 10), 16).shape == (30, 10)


# ---- the figures ---------------------------------------------------------------------------------


def texts_of(figure) -> str:
    return " ".join(text.get_text() for axes in figure.findobj(lambda a: hasattr(a, "texts")) for text in axes.texts)


def drawn(*overrides: str, draw: Callable = heads_together, layers=(0, 1)):
    seen = capture(small_model(*overrides), random_batch((64, 96)))
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    marked = [Marked(query, f"query {query}: cat 0.50", np.array([10.0, 10, 40, 50])) for query in (0, 6)]
    figure = draw(View(image, {}, seen), marked, list(layers))
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize(
    ("overrides", "draw", "panels"),
    [
        ((), heads_together, 2 * 2 * 2),  # layers x (prior, attention) x queries
        ((), heads_apart, 2 * 2 * 2 * 2),  # x heads
        (("model=detr_focal_tiny",), heads_together, 2 * 2),
        (("model=detr_focal_tiny",), heads_apart, 2 * 2 * 2),
    ],
)
def test_number_of_panels(overrides, draw, panels):
    figure = drawn(*overrides, draw=draw)
    axes = [one for part in (figure, *figure.subfigs) for one in part.axes if one.get_label() != "<colorbar>"]
    assert len(set(map(id, axes))) == panels
    assert all(len(one.patches) == 1 for one in axes)  # the detection's box
    labels = {one.get_ylabel() for one in axes}
    assert any("no prior" in label for label in labels) == bool(overrides)


def test_a_missing_prior_is_labelled():
    assert "no prior" not in texts_of(drawn())
    assert texts_of(drawn("mixture=query")).count("no prior") == 2  # query 0, in two layers
    assert texts_of(drawn("mixture=head", draw=heads_apart)).count("no prior") == 4
    assert "no prior" not in texts_of(drawn("mixture=head"))  # the first head's outline is there


def test_eight_heads_have_eight_colours_and_a_legend():
    seen = View(np.zeros(0), {}, capture(small_model("model.heads=8"), random_batch((64, 96))))
    assert len({style["color"] for style in head_styles(seen).values()}) == 8
    (legend,) = drawn().legends
    assert [text.get_text() for text in legend.get_texts()] == ["head 0", "head 1"]


def test_even_attention_stays_pale_and_all_panels_have_one_scale():
    seen = capture(small_model(), random_batch((64, 96)))
    image, maps = np.zeros((80, 120, 3), dtype=np.uint8), seen.layers[0]
    even = replace(seen, layers=[replace(maps, attention=torch.full_like(maps.attention, 1 / (4 * 6)))])
    values = View(image, {}, even).attention(0, 3, 1)
    np.testing.assert_allclose(values, 1)
    norm = attention_norm([even.layers[0].attention, 2 * even.layers[0].attention])
    assert (norm.vmin, norm.vmax) == (1, LEAST_RANGE)
    assert SHADES(norm(values * 1.02))[..., 3].max() < 0.01
    assert attention_norm([40 * even.layers[0].attention]).vmax == pytest.approx(40)
    shown = [panel.images[-1].norm for panel in drawn().axes if len(panel.images) == 2]
    assert len({(norm.vmin, norm.vmax) for norm in shown}) == 1


def test_the_way_of_a_centre_ends_where_the_prior_is_highest():
    model = small_model("dynamic_scale=type1")
    randomise(model.decoder, seed=1)
    view = View(np.zeros((128, 192, 3), dtype=np.uint8), {}, capture(model, random_batch((64, 96))))
    inside = 0
    for query, head, layer in itertools.product(range(7), range(2), range(2)):
        x, y = view.centres(query, head)[layer]
        values = view.prior(layer, query, head)
        assert values is not None
        row, column = np.unravel_index(values.argmax(), values.shape)
        assert abs(column - np.clip(x, 0, 191)) <= 1
        assert abs(row - np.clip(y, 0, 127)) <= 1
        inside += 0 < x < 191 and 0 < y < 127
    assert inside > 0


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two run folders with random weights: RUNS/fovea and RUNS/plain."""
    root = tmp_path_factory.mktemp("runs")
    for name, model in (("fovea", "fovea_tiny"), ("plain", "detr_focal_tiny")):
        sizes = ["data.train_images=1", "data.val_images=3", f"data.cache={root / 'cache'}", "data.num_classes=7"]
        config = small_config(f"model={model}", "data=shapes", *sizes)
        folder = RunFolder(root / name)
        torch.manual_seed(0)
        folder.path.mkdir()
        folder.write_config(OmegaConf.to_yaml(OmegaConf.structured(replace(config, weights="moved/since.pth"))))
        checkpoint.save(folder, {"model": build_model(config).state_dict(), "optimizer": {}})
    (root / "empty").mkdir()
    (root / "unsaved").mkdir()
    (root / "unsaved" / "config.yaml").write_text((root / "plain" / "config.yaml").read_text())
    Image.new("RGB", (90, 70), "gray").save(root / "photo.jpg")
    return root


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_figure_of_a_run_and_an_image_id(runs, tmp_path, capsys, ending):
    to = tmp_path / f"fovea.{ending}"
    assert (
        fovea_maps.main([str(runs / "fovea"), "--image", "2", "--queries", "3,1", "--layers", "-1,0", "--to", str(to)])
        == 0
    )
    assert to.stat().st_size > 5000
    assert "query 3: " in capsys.readouterr().out


def test_plain_detr_prints_a_note(runs, tmp_path, capsys):
    arguments = ["--image", "2", "--heads", "apart", "--to", str(tmp_path / "fovea.png")]
    assert fovea_maps.main([str(runs / "plain"), *arguments]) == 0
    assert "plain DETR has no prior" in capsys.readouterr().out


def test_a_checkpoint_with_its_overrides_and_an_image_file(runs, tmp_path, capsys):
    from tests.model.builders import SMALL

    overrides = [*SMALL, "data.num_classes=7", "data=shapes"]
    arguments = ["--image", str(runs / "photo.jpg"), "--to", str(tmp_path / "fovea.png")]
    assert fovea_maps.main([str(runs / "fovea" / "checkpoint.pt"), *overrides, *arguments]) == 0
    assert "class " in capsys.readouterr().out  # a file has no category names


def test_the_best_queries_found_different_objects(runs):
    view = fovea_maps.open_view(runs / "fovea", "2")
    logits = torch.full((1, 1, 7, 8), -9.0)
    logits[0, 0, :, 3] = torch.tensor([0.0, 3.0, 2.9, -1.0, -2.0, -3.0, 1.0])
    boxes = torch.tensor(
        [[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.22], *[[0.8, 0.8, 0.1, 0.1]] * 4]
    )
    predictions = replace(view.capture.predictions, logits=logits, boxes_cxcywh=boxes[None, None])
    view = replace(view, capture=replace(view.capture, predictions=predictions))
    assert view.best_queries() == [1, 6, 0]
    (marked,) = view.marked([1])
    height, width = view.image.shape[:2]
    assert marked.title == "query 1: triangle 0.95"
    np.testing.assert_allclose(marked.box_xyxy, [0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fovea", "--image", "9"], "no image 9"),
        (["fovea", "--image", "photo.png"], "neither an image file nor the id"),
        (["fovea", "--image", "1", "--queries", "7"], "queries 0 to 6"),
        (["fovea", "--image", "1", "--layers", "2"], "layers 0 to 1"),
        (["fovea", "--image", "1", "--to", "fovea.gif"], ".pdf, .svg, .png"),
        (["fovea", "model.heads=4", "--image", "1"], "model.heads"),
        (["fovea/config.yaml", "--image", "1"], "not a checkpoint"),
        (["empty", "--image", "1"], "no config.yaml"),
        (["unsaved", "--image", "1"], "no checkpoint.pt"),
        (["nowhere", "--image", "1"], "no such file"),
        (["fovea", "data=coco", "--image", "1"], "data"),
    ],
)
def test_an_error_is_one_line(runs, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(runs)
    assert fovea_maps.main(arguments) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_capture_of_the_published_shape_with_dc5():
    config = load_config([*DC5, "model.num_queries=5"])
    seen = capture(build_model(config), collate_images([random_image(97, 130)], [(194, 260)]))
    assert seen.stride == 16
    assert seen.layers[0].attention.shape == (8, 5, 7, 9)  # sides / stride, rounded up


def test_the_module_is_a_script(runs, tmp_path):
    import subprocess

    command = [
        sys.executable,
        fovea_maps.__file__,
        str(runs / "fovea"),
        "--image",
        "1",
        "--to",
        str(tmp_path / "a.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
