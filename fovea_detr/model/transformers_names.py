"""The names in Hugging Face transformers' DetrForObjectDetection and DetrForSegmentation -> ours.

Versions 4 and 5, either backbone. Version 4 has the published names in its mask head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

MARK = "class_labels_classifier."  # its name of the class head
# Applied in this order, each at its first occurrence.
RENAMED = (
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.body."),
    (r"\bembedder\.embedder\.convolution\.", "conv1."),
    (r"\bembedder\.embedder\.normalization\.", "bn1."),
    (r"\bencoder\.stages\.(\d+)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
    (r"\bshortcut\.convolution\.", "downsample.0."),
    (r"\bshortcut\.normalization\.", "downsample.1."),
    (r"\blayer\.(\d)\.convolution\.", lambda m: f"conv{int(m[1]) + 1}."),
    (r"\blayer\.(\d)\.normalization\.", lambda m: f"bn{int(m[1]) + 1}."),
    (r"^model\.", ""),
    (r"^input_projection\.", "input_proj."),
    (r"^query_position_embeddings\.", "query_embed."),
    (r"^decoder\.layernorm\.", "decoder.norm."),
    (r"\bself_attn\.", "self_attention."),
    (r"\bencoder_attn\.", "cross_attention."),
    (r"\bo_proj\.", "out_proj."),
    (r"\b(mlp\.)?fc([12])\.", r"linear\2."),
    (r"\bself_attn_layer_norm\.", "norm1."),
    (r"\bencoder_attn_layer_norm\.", "norm2."),
    (r"^(encoder\..*)\bfinal_layer_norm\.", r"\1norm2."),
    (r"^(decoder\..*)\bfinal_layer_norm\.", r"\1norm3."),
    (r"^class_labels_classifier\.", "class_head."),
    (r"^bbox_predictor\.", "box_head."),
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
    (r"^mask_head\.fpn_stages\.(\d)\.fpn_adapter\.", lambda m: f"mask_head.adapter{int(m[1]) + 1}."),
    (r"^mask_head\.fpn_stages\.(\d)\.refine\.", lambda m: f"mask_head.conv{int(m[1]) + 3}."),
    (r"^mask_head\.conv(\d)\.conv\.", r"mask_head.lay\1."),
    (r"^mask_head\.conv(\d)\.norm\.", r"mask_head.gn\1."),
)
PROJECTION = re.compile(r"(.*_attention\.)([qkv])_proj\.(weight|bias)")


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(MARK) for name in state)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value projections, apart there, are stacked in this order, as torch's attention has them."""
    ours: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        for theirs, mine in RENAMED:
            name = re.sub(theirs, mine, name, count=1)
        if match := PROJECTION.fullmatch(name):
            projections.setdefault(f"{match[1]}in_proj_{match[3]}", {})[match[2]] = value
        else:
            ours[name] = value
    return ours | {
        name: torch.cat([parts[which] for which in "qkv"]) for name, parts in projections.items() if len(parts) == 3
    }
