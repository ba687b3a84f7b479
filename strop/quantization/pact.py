"""PACT: activations clipped at a learned level."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from torch import Tensor, nn

from strop.errors import ConfigError
from strop.quantization.fake_quantize import FakeQuantizer, shared_arguments
from strop.quantization.rounding import learned_clip
from strop.registry import MODELS


@MODELS.register_module()
class PACTFakeQuantize(FakeQuantizer):
    """Steps up to a level `alpha` that learns; `alpha` is what weight decay pulls down, as the paper's regularizer does.

    It begins with the largest value of the first batch. Where that has values below zero, they are clipped at `-alpha`, and
    zero takes the middle code; the lowest code is left out where there would be more below zero than above it.

    Args:
        observer: Not used: there for the same arguments as other fake quantizers.
        quant_min: Lowest code, 0.
        quant_max: Highest code.
        alpha: Level to begin with; the largest value of the first batch by default.
        kwargs: `dtype`, `is_weight`, ... as for `FakeQuantizer`.

    Raises:
        ConfigError: If each channel is to have a level, or the codes are signed: PACT is for inputs.

    Choi et al.: PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018, https://arxiv.org/abs/1805.06085.

    >>> quantizer = PACTFakeQuantize(quant_max=3)
    >>> quantizer(torch.tensor([0.0, 0.9, 3.0])).detach(), quantizer.alpha.detach()
    (tensor([0., 1., 3.]), tensor([3.]))
    """

    kind = 3

    def __init__(
        self, observer: Any = None, quant_min: int = 0, quant_max: int = 255, alpha: float | None = None, **kwargs: Any
    ) -> None:
        own, _ = shared_arguments(kwargs)
        super().__init__(quant_min, quant_max, **own)
        if self.is_per_channel or quant_min < 0:
            raise ConfigError(
                'PACT clips inputs: it takes one level for the whole tensor, and codes from 0. Take LSQ for weights.'
            )
        self.first_alpha = alpha
        self.alpha = nn.Parameter(torch.tensor([1.0 if alpha is None else float(alpha)]))
        self.register_buffer('zero_point', torch.zeros(1, dtype=torch.int32))

    @property
    def quant_min(self) -> int:
        """Lowest code that is used: with two sides it stands for `-alpha`, in every runtime too."""
        return max(self._lowest, 2 * int(self.zero_point) - self.quant_max)

    @quant_min.setter
    def quant_min(self, code: int) -> None:
        self._lowest = code

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """The step that the level gives."""
        return self.alpha / (self.quant_max - self.zero_point)

    def resize(self, x: Tensor) -> None:
        """Do nothing: the tensor has one step."""

    def observes(self) -> bool:
        """Tell whether the next forward begins the level."""
        return not self.observed and super().observes()

    def observe(self, x: Tensor) -> None:
        """Begin with the largest value."""
        ends = torch.stack([-x.amin(), x.amax()]).to(self.alpha.dtype)
        if is_distributed():
            all_reduce(ends, 'max')
        self.zero_point.fill_(self.middle if ends[0] > 0 else 0)
        if self.first_alpha is None:
            self.alpha.data.fill_(float(ends.max()))

    def begin(self, scale: Tensor, zero_point: Tensor) -> None:
        """Begin with a given step where zero has the lowest or the middle code; else with a level that takes in its range."""
        zero = int(zero_point)
        reach = self.quant_max - zero
        self.zero_point.zero_()
        if zero > self.quant_min and zero != self.middle:
            reach, zero = max(reach, zero - self.quant_min), self.middle
        self.zero_point.fill_(zero)
        self.alpha.data.copy_((scale * reach).reshape(1))
        self.observed.fill_(1)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the step (float) and the code of zero (a whole number)."""
        self.alpha.data.clamp_(min=torch.finfo(torch.float32).eps)
        return super().calculate_qparams()

    def rounded(self, x: Tensor) -> Tensor:
        """Return the tensor in steps up to the level, which learns."""
        self.alpha.data.clamp_(min=torch.finfo(torch.float32).eps)
        return learned_clip(x, self.alpha, self.zero_point, self._lowest, self.quant_max)
