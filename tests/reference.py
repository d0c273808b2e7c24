"""The slow twins: the formulas themselves, with everything materialised and looped over; fast code is compared to them.

Written for obviousness and from the formulas alone; only plain types are imported from the package.
Letters as in `fovea_detr/types.py`; n is the number of scales a head has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fovea_detr.types import Predictions, Target

SCALES_PER_HEAD = {"type1": 0, "type2": 1, "type3": 2, "type4": 3, "type5": 3}  # the types that have a formula here
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
Parameters = Mapping[str, Tensor]

# ---- the fovea -------------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[..., D] -> [..., D]."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def linear(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    """[..., in] -> [..., out]."""
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def mlp3(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    """[..., D] -> [..., out]: three linear layers with ReLU between them."""
    x = linear(x, parameters, f"{name}.layers.0").clamp(min=0)
    x = linear(x, parameters, f"{name}.layers.1").clamp(min=0)
    return linear(x, parameters, f"{name}.layers.2")


def cells_xy(rows: int, columns: int, cell_centre: bool = False) -> Tensor:
    """-> [K, 2] the (x, y) of every cell, row by row."""
    cells = torch.tensor([[x, y] for y in range(rows) for x in range(columns)], dtype=torch.float64)
    return cells + 0.5 if cell_centre else cells


def distance(scale_type: str, d: Tensor, s: Tensor, kernel: str = "gaussian") -> Tensor:
    """d [B, Q, H, K, 2] offsets (x, y), s [B, Q, H, n] -> distance [B, Q, H, K], in squares, or in cells (laplace)."""
    if scale_type == "type5":
        return quadratic_form(precision(s)[:, :, :, None], d)
    d, s = (d**2, s**2) if kernel == "gaussian" else (d * d.sign(), s * s.sign())
    dx, dy = d[..., 0], d[..., 1]
    if scale_type == "type1":
        return dx + dy
    if scale_type == "type2":
        return s[..., 0, None] * (dx + dy)
    along_axes = s[..., 0, None] * dx + s[..., 1, None] * dy
    return along_axes if scale_type == "type3" else along_axes + s[..., 2, None] * dx * dy


def precision(s: Tensor) -> Tensor:
    """s [..., 3] -> the precision matrix L L^T [..., 2, 2] of type5."""
    u, v, w = 5 * torch.tanh(s[..., 0] / 5), 16 * torch.tanh(s[..., 1] / 16), 5 * torch.tanh(s[..., 2] / 5)
    upper = torch.stack((torch.exp(u), torch.zeros_like(u)), dim=-1)
    lower = torch.stack((v * torch.exp(w), torch.exp(w)), dim=-1)
    cholesky = torch.stack((upper, lower), dim=-2)
    return cholesky @ cholesky.transpose(-1, -2)


def quadratic_form(matrix: Tensor, d: Tensor) -> Tensor:
    """matrix [..., 2, 2], d [..., 2] -> d^T matrix d [...]."""
    return (d[..., None, :] @ matrix @ d[..., :, None])[..., 0, 0]


def uses_prior(mixture: str, heads: int, num_queries: int) -> Tensor:
    """-> [Q, H] bool, which query uses the prior in which head."""
    table = torch.ones(num_queries, heads, dtype=torch.bool)
    if mixture in ("head", "head_query"):
        table[:, (heads + 1) // 2 :] = False
    if mixture in ("query", "head_query"):
        table[: num_queries // 2] = False
    return table


def prior(
    parameters: Parameters,
    content: Tensor,
    query_embed: Tensor,
    reference: Tensor | None,
    sizes_hw: Tensor,
    *,
    grid: tuple[int, int, int],
    heads: int,
    scale_type: str,
    smooth: float,
    mixture: str = "none",
    kernel: str = "gaussian",
    cell_centre: bool = False,
) -> tuple[Tensor, Tensor]:
    """`prior_at` at the cells of a grid: rows, columns and the stride in pixels -> the log-prior [B, H, Q, K]."""
    rows, columns, stride = grid
    return prior_at(
        parameters,
        content,
        query_embed,
        reference,
        sizes_hw,
        cells_xy(rows, columns, cell_centre),
        stride=stride,
        heads=heads,
        scale_type=scale_type,
        smooth=smooth,
        mixture=mixture,
        kernel=kernel,
    )


def prior_at(
    parameters: Parameters,
    content: Tensor,
    query_embed: Tensor,
    reference: Tensor | None,
    sizes_hw: Tensor,
    positions_xy: Tensor,
    *,
    stride: int,
    heads: int,
    scale_type: str,
    smooth: float,
    mixture: str = "none",
    kernel: str = "gaussian",
) -> tuple[Tensor, Tensor]:
    """content [B, Q, D], query_embed [Q, D], reference [B, Q, 2] or None in layer 0, sizes_hw [B, 2]; positions [K, 2]
    (x, y) in cells; stride: in pixels; parameters: of a FoveaPrior, by its own names.

    Returns the log-prior [B, H, Q, K] and the reference [B, Q, 2].
    """
    batch, num_queries, _ = content.shape
    z = layer_norm(content + query_embed, parameters["norm.weight"], parameters["norm.bias"])
    reference = mlp3(z, parameters, "reference") if reference is None else reference
    sizes_wh = torch.stack((sizes_hw[:, 1], sizes_hw[:, 0]), dim=-1).to(z.dtype)
    offset = linear(z, parameters, "offset").reshape(batch, num_queries, heads, 2)
    centre = torch.sigmoid(reference)[:, :, None] * sizes_wh[:, None, None] / stride + offset  # [B, Q, H, 2]
    if SCALES_PER_HEAD[scale_type]:
        s = linear(z, parameters, "dynamic_scale.scale").reshape(batch, num_queries, heads, -1)
    else:
        s = z.new_zeros(batch, num_queries, heads, 0)
    d = centre[:, :, :, None] - positions_xy.to(z)  # [B, Q, H, K, 2]
    log_prior = -distance(scale_type, d, s, kernel) / (smooth if kernel == "gaussian" else math.sqrt(smooth))
    table = uses_prior(mixture, heads, num_queries)[None, :, :, None].to(z.device)
    log_prior = torch.where(table, log_prior, torch.zeros_like(log_prior))
    return log_prior.permute(0, 2, 1, 3), reference


# ---- attention -------------------------------------------------------------------------------------------------------


def attention(
    parameters: Parameters,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    log_prior: Tensor | None = None,
    is_padding: Tensor | None = None,
) -> Tensor:
    """query [B, Q, D], key and value [B, K, D], log_prior [B, H, Q, K], is_padding [B, K] -> [B, Q, D]."""
    width = query.shape[-1]
    per_head = width // heads
    projected = []
    for i, x in enumerate((query, key, value)):
        rows = slice(i * width, (i + 1) * width)
        x = x @ parameters["in_proj_weight"][rows].T + parameters["in_proj_bias"][rows]
        projected.append(x.reshape(*x.shape[:2], heads, per_head).permute(0, 2, 1, 3))  # [B, H, ., D / H]
    q, k, v = projected
    scores = q @ k.transpose(-1, -2) / math.sqrt(per_head)  # [B, H, Q, K]
    if log_prior is not None:
        scores = scores + log_prior
    if is_padding is not None:
        scores = scores.masked_fill(is_padding[:, None, None], float("-inf"))
    attended = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).flatten(2)  # [B, Q, D]
    return linear(attended, parameters, "out_proj")


def part(parameters: Parameters, prefix: str) -> dict[str, Tensor]:
    """The parameters of a submodule, by its own names."""
    return {name[len(prefix) + 1 :]: value for name, value in parameters.items() if name.startswith(f"{prefix}.")}


def decoder_layer(
    parameters: Parameters,
    content: Tensor,
    query_embed: Tensor,
    memory: Tensor,
    position: Tensor,
    heads: int,
    log_prior: Tensor | None,
    is_padding: Tensor,
) -> Tensor:
    """content [B, Q, D], query_embed [Q, D], memory and position [B, K, D] -> [B, Q, D]; norms after, no dropout."""

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    place = content + query_embed
    attended = attention(part(parameters, "self_attention"), place, place, content, heads)
    content = norm(content + attended, "norm1")
    place, weights = content + query_embed, part(parameters, "cross_attention")
    attended = attention(weights, place, memory + position, memory, heads, log_prior, is_padding)
    content = norm(content + attended, "norm2")
    fed = linear(linear(content, parameters, "linear1").clamp(min=0), parameters, "linear2")
    return norm(content + fed, "norm3")


# ---- boxes, matching and losses --------------------------------------------------------------------------------------


def corners(box_cxcywh: Tensor) -> Tensor:
    """[4] -> [4] (left, top, right, bottom)."""
    cx, cy, w, h = box_cxcywh
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))


def generalised_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Two boxes [4] with an area -> a number."""
    zero = torch.zeros_like(a_xyxy[0])
    overlap_w = torch.maximum(torch.minimum(a_xyxy[2], b_xyxy[2]) - torch.maximum(a_xyxy[0], b_xyxy[0]), zero)
    overlap_h = torch.maximum(torch.minimum(a_xyxy[3], b_xyxy[3]) - torch.maximum(a_xyxy[1], b_xyxy[1]), zero)
    hull_w = torch.maximum(a_xyxy[2], b_xyxy[2]) - torch.minimum(a_xyxy[0], b_xyxy[0])
    hull_h = torch.maximum(a_xyxy[3], b_xyxy[3]) - torch.minimum(a_xyxy[1], b_xyxy[1])
    area_a = (a_xyxy[2] - a_xyxy[0]) * (a_xyxy[3] - a_xyxy[1])
    area_b = (b_xyxy[2] - b_xyxy[0]) * (b_xyxy[3] - b_xyxy[1])
    overlap, hull = overlap_w * overlap_h, hull_w * hull_h
    union = area_a + area_b - overlap
    return overlap / union - (hull - union) / hull


def class_cost(logits: Tensor, label: int, loss: str) -> Tensor:
    """logits [C] of one query -> the cost of giving it an object of this class."""
    if loss == "softmax":
        return -torch.softmax(logits, dim=0)[label]
    p = torch.sigmoid(logits[label])
    as_object = ALPHA * (1 - p) ** GAMMA * -torch.log(p + 1e-8)
    as_nothing = (1 - ALPHA) * p**GAMMA * -torch.log(1 - p + 1e-8)
    return as_object - as_nothing


def match_costs(logits: Tensor, boxes_cxcywh: Tensor, target: Target, weights: Parameters | dict, loss: str) -> Tensor:
    """One layer of one image: logits [Q, C], boxes [Q, 4] -> cost [Q, T]."""
    cost = logits.new_zeros(len(logits), len(target))
    for q in range(len(logits)):
        for t in range(len(target)):
            box = target.boxes_cxcywh[t].to(boxes_cxcywh)
            giou = generalised_iou(corners(boxes_cxcywh[q]), corners(box))
            by_class = class_cost(logits[q], int(target.labels[t]), loss)
            l1 = (boxes_cxcywh[q] - box).abs().sum()
            cost[q, t] = weights["classification"] * by_class + weights["l1"] * l1 - weights["giou"] * giou
    return cost


def cheapest_pairs(cost: Tensor) -> list[tuple[int, int]]:
    """[Q, T] -> the min(Q, T) pairs (query, object) of the smallest sum, by trying all; ordered by the query."""
    num_queries, num_objects = cost.shape
    table = cost.tolist()
    if num_queries >= num_objects:
        ways = itertools.permutations(range(num_queries), num_objects)
        pairs = ([(q, t) for t, q in enumerate(way)] for way in ways)
    else:
        ways = itertools.permutations(range(num_objects), num_queries)
        pairs = ([(q, t) for q, t in enumerate(way)] for way in ways)
    return sorted(min(pairs, key=lambda way: sum(table[q][t] for q, t in way)))


def focal_loss(logits: Tensor, classes: list[int | None]) -> Tensor:
    """logits [Q, C], the class of each query or None -> the sum over queries and classes."""
    total = logits.new_zeros(())
    for q in range(len(logits)):
        for c in range(logits.shape[1]):
            p = torch.sigmoid(logits[q, c])
            if classes[q] == c:
                total = total - ALPHA * (1 - p) ** GAMMA * torch.log(p)
            else:
                total = total - (1 - ALPHA) * p**GAMMA * torch.log(1 - p)
    return total


def cross_entropy(logits: Tensor, classes: list[int | None], no_object: float) -> tuple[Tensor, float]:
    """logits [Q, C], the class of each query or None (the last output) -> the weighted sum, and the weights' sum."""
    total, weight_sum = logits.new_zeros(()), 0.0
    for q, known in enumerate(classes):
        weight = no_object if known is None else 1.0
        c = logits.shape[1] - 1 if known is None else known
        total = total - weight * torch.log(torch.softmax(logits[q], dim=0)[c])
        weight_sum += weight
    return total, weight_sum


def losses(
    predictions: Predictions, targets: list[Target], weights: dict[str, float], costs: dict[str, float], loss: str
) -> tuple[dict[str, Tensor], Tensor, list[list[list[tuple[int, int]]]]]:
    """-> every part by layer [L], the weighted total, and pairs[layer][image]."""
    num_layers, batch, num_queries, _ = predictions.logits.shape
    num_boxes = max(1, sum(len(target) for target in targets))
    parts: dict[str, list[Tensor]] = {"classification": [], "l1": [], "giou": []}
    matches: list[list[list[tuple[int, int]]]] = []
    for layer in range(num_layers):
        classification, l1, giou = (predictions.logits.new_zeros(()) for _ in range(3))
        weight_sum = 0.0
        matches.append([])
        for b in range(batch):
            logits, boxes = predictions.logits[layer, b], predictions.boxes_cxcywh[layer, b]
            pairs = cheapest_pairs(match_costs(logits.detach(), boxes.detach(), targets[b], costs, loss))
            matches[-1].append(pairs)
            classes: list[int | None] = [None] * num_queries
            for q, t in pairs:
                classes[q] = int(targets[b].labels[t])
                box = targets[b].boxes_cxcywh[t].to(boxes)
                l1 = l1 + (boxes[q] - box).abs().sum()
                giou = giou + 1 - generalised_iou(corners(boxes[q]), corners(box))
            if loss == "focal":
                classification = classification + focal_loss(logits, classes)
            else:
                entropy, weight = cross_entropy(logits, classes, no_object=0.1)
                classification, weight_sum = classification + entropy, weight_sum + weight
        parts["classification"].append(classification / (num_boxes if loss == "focal" else weight_sum))
        parts["l1"].append(l1 / num_boxes)
        parts["giou"].append(giou / num_boxes)
    by_layer = {name: torch.stack(values) for name, values in parts.items()}
    total = sum((weights[name] * value.sum() for name, value in by_layer.items()), predictions.logits.new_zeros(()))
    return by_layer, total, matches
