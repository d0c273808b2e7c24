"""Published checkpoint names <-> ours. DETR and SMCA share one naming; torchvision and transformers have their own.

A published model with masks has `detr.` before its detector's names.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fovea_detr.model.transformers_names import from_transformers, is_transformers

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
TORCHVISION = ("layer1.0.conv1.weight", "features.0.0.weight")  # a ResNet has the first, ConvNeXt and Swin the second
WITH_MASKS, DETECTOR = ("bbox_attention.", "mask_head."), "detr."
WRAPPERS = {"module", "detr", "_orig_mod", "model", "net", "network", "detector"}
CLASSIFIERS = ("fc.", "classifier.", "head.")


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


def in_published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours, with the names that the published code gives its tensors."""
    prefix = DETECTOR if any(is_of_masks(name) for name in state) else ""
    return {name if is_of_masks(name) else prefix + published_name(name): value for name, value in state.items()}


def is_of_masks(name: str) -> bool:
    """Whether a tensor belongs to the mask attention or the mask head, by our name, which is the published one."""
    return name.startswith(WITH_MASKS)


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether it is a network of torchvision's, which fills a backbone only: by its layers, or by its classifier."""
    has_classifier = any(name.startswith(CLASSIFIERS) for name in state)
    return any(name in state for name in TORCHVISION) or (
        has_classifier and not any(name.startswith(("backbone.", "transformer.", "decoder.")) for name in state)
    )


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    while len(first := {name.partition(".")[0] for name in state}) == 1 and first & WRAPPERS:
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return dict(state)


def in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in our, the published, torchvision's or transformers' naming -> ours.

    A wrapper's prefix that all names have is removed: `module.` of DDP, `_orig_mod.` of torch.compile, `model.` or the
    like of a Lightning module.
    """
    state = _without_wrappers(state)
    if any(is_of_masks(name) for name in state):
        state = {name.removeprefix(DETECTOR): value for name, value in state.items()}
    if is_torchvision(state):
        return {f"backbone.body.{name}": value for name, value in state.items() if not name.startswith(CLASSIFIERS)}
    if is_transformers(state):
        return from_transformers(state)
    return {our_name(name): value for name, value in state.items()}
