"""Published checkpoint names <-> ours. DETR and SMCA share one naming; torchvision's ResNet has its own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Applied in this order, at every occurrence; the reverse direction applies them in reverse order.
RENAMED = (
    ("backbone.0.body.", "backbone.body."),
    ("backbone.1.", "position."),
    ("transformer.encoder.", "encoder."),
    ("transformer.decoder.", "decoder."),
    ("class_embed.", "class_head."),
    ("bbox_embed.", "box_head."),
    (".self_attn.", ".self_attention."),
    (".multihead_attn.", ".cross_attention."),
    (".norm4.", ".prior.norm."),
    (".point1.", ".prior.reference."),
    (".point2.", ".prior.offset."),
    (".point3.", ".prior.dynamic_scale.scale."),
)


def our_name(published: str) -> str:
    """`transformer.decoder.layers.0.point2.weight` -> `decoder.layers.0.prior.offset.weight`."""
    for theirs, ours in RENAMED:
        published = published.replace(theirs, ours)
    return published


def published_name(ours: str) -> str:
    """`decoder.layers.0.prior.offset.weight` -> `transformer.decoder.layers.0.point2.weight`."""
    for theirs, mine in reversed(RENAMED):
        if mine.startswith("."):
            ours = ours.replace(mine, theirs)
        elif ours.startswith(mine):
            ours = theirs + ours.removeprefix(mine)
    return ours


def is_torchvision_resnet(state: Mapping[str, Tensor]) -> bool:
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in our, the published or torchvision's naming -> ours. DDP's `module.` prefix is removed."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if is_torchvision_resnet(state):
        return {f"backbone.body.{name}": value for name, value in state.items() if not name.startswith("fc.")}
    return {our_name(name): value for name, value in state.items()}
