"""Focal loss (Lin et al., 2017) with alpha 0.25 and gamma 2, for logits that are almost all negatives.

Bit-identical to torchvision's `sigmoid_focal_loss` in a third of its operations: every value is computed as a negative,
in place, and the few positives are corrected afterwards. Source of the constants: Lin et al.; SMCA trains with them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

ALPHA = 0.25  # weight of a positive; that of a negative is 1 - ALPHA

Places = tuple[Tensor, Tensor, Tensor, Tensor]


def focal_loss(logits: Tensor, positives: Places) -> Tensor:
    """logits [L, B, Q, C]; positives: (layer, image, query, class) of the N that are 1, [N] each -> [L], summed.

    A positive p adds -ALPHA (1 - p)^2 log p, a negative -(1 - ALPHA) p^2 log(1 - p). Differentiable once.
    """
    return _FocalLoss.apply(logits, *positives)  # type: ignore[return-value]


class _FocalLoss(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *positives: Tensor) -> Tensor:
        p, log_p = logits.sigmoid(), functional.logsigmoid(logits)
        entropy = logits - log_p  # -log(1 - p)
        entropy[positives] = -log_p[positives]
        ctx.save_for_backward(p, entropy, *positives)
        wrong = 1 - (1 - p)  # as torchvision rounds it: 1 - (probability of the right answer)
        loss = wrong.mul_(wrong).mul_(entropy).mul_(1 - ALPHA)
        missed = 1 - p[positives]
        loss[positives] = entropy[positives] * (missed * missed) * ALPHA
        return loss.sum((1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """By the chain rule in torchvision's order: through the entropy, and through the probability's factor."""
        p, entropy, *positives = ctx.saved_tensors
        places = tuple(positives)
        of_layer = gradients[0][:, None, None, None]
        right = 1 - p
        wrong = 1 - right
        found = _through_factor(of_layer * (1 - ALPHA), entropy, wrong, right, p)
        found.add_(wrong.mul_(wrong).mul_(of_layer * (1 - ALPHA)).mul_(p))
        own, missed = p[places], right[places]
        weight = gradients[0][places[0]] * ALPHA
        factor = _through_factor(weight, entropy[places], missed, missed, own)
        found[places] = (own - 1) * (missed * missed * weight) - factor
        return found, *(None for _ in places)


def _through_factor(weight: Tensor, entropy: Tensor, wrong: Tensor, right: Tensor, p: Tensor) -> Tensor:
    """weight * entropy * d(wrong^2) / dp * dp / dlogit; `wrong` increases with p."""
    return (wrong * 2).mul_(weight * entropy).mul_(right).mul_(p)
