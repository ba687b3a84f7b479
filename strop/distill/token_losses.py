"""Losses over the tokens of transformers: next-token distributions of language models, features of vision transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strop.distill.logit_losses import kl_terms
from strop.distill.loss_inputs import choice, levels, paired, positive, tensor
from strop.errors import ConfigError
from strop.registry import MODELS


@MODELS.register_module()
class TokenKLDivergence(nn.Module):
    r"""Divergence of the student's next-token distributions from the teacher's, a mean over the tokens that count.

    With :math:`p = \operatorname{softmax}(t / \tau)` and :math:`q = \operatorname{softmax}(s / \tau)` over the vocabulary:
    forward :math:`w \tau^2 \, \mathrm{mean} \sum_i p_i \log (p_i / q_i)`, which covers all that the teacher would say, or
    reverse :math:`w \tau^2 \, \mathrm{mean} \sum_i q_i \log (q_i / p_i)`, which keeps to what it would say most.

    With `top_k`, only the teacher's `k` likeliest tokens are compared, each for itself; the rest is one more outcome of
    probability :math:`1 - \sum_{i \le k} p_i` (`tail='bucket'`), or is left out and both distributions are made to sum to one
    over the `k` (`tail='renormalize'`).

    Args:
        tau: The temperature.
        top_k: How many of the teacher's likeliest tokens count; all if None.
        tail: 'bucket' or 'renormalize'.
        direction: 'forward' or 'reverse'.
        ignore_index: The label of tokens that do not count.
        loss_weight: The factor `w`.
        shift: Whether labels and mask are those of a causal model, where the label of a position is the next one's: the last
            position of the logits and the first of labels and mask are then left out.
        teacher_detach: Whether the teacher gets no gradient.

    Raises:
        ConfigError: If `tau` or `top_k` is not above 0, or a name is unknown.

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 9.0]]])
    >>> loss = TokenKLDivergence()(torch.zeros(1, 2, 2), logits, labels=torch.tensor([[1, -100]]))
    >>> loss.item()  # only the first token counts, and there both agree
    0.0

    Reference: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, NIPS workshop 2014,
    https://arxiv.org/abs/1503.02531; reverse: Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, ICLR 2024,
    https://arxiv.org/abs/2306.08543. Differs from MiniLLM, which samples from the student: here the divergence is that at each
    position of the given text, in closed form.
    """

    def __init__(
        self,
        tau: float = 1.0,
        top_k: int | None = None,
        tail: str = 'bucket',
        direction: str = 'forward',
        ignore_index: int = -100,
        loss_weight: float = 1.0,
        *,
        shift: bool = False,
        teacher_detach: bool = True,
    ) -> None:
        super().__init__()
        positive(self, tau=tau)
        if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise ConfigError(f'`top_k` of TokenKLDivergence is a whole number above 0, or None for all tokens; got {top_k!r}.')
        self.tau = tau
        self.top_k = top_k
        self.tail = choice(self, 'tail', tail, ('bucket', 'renormalize'))
        self.direction = choice(self, 'direction', direction, ('forward', 'reverse'))
        if top_k == 1 and self.tail == 'renormalize':
            raise ConfigError("With top_k=1 and tail='renormalize' every distribution is 1, and nothing is compared.")
        self.ignore_index = ignore_index
        self.loss_weight = loss_weight
        self.shift = shift
        self.teacher_detach = teacher_detach

    def forward(self, preds_S: Tensor, preds_T: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the loss; 0 where no token counts.

        Args:
            preds_S: The student's logits, shape (..., tokens, vocabulary).
            preds_T: The teacher's.
            labels: Shape (..., tokens); tokens that are `ignore_index` do not count.
            mask: Shape (..., tokens); tokens that are False or 0 (padding) do not count.

        Raises:
            ConfigError: If shapes do not meet, or `top_k` is more than the vocabulary.
        """
        both = [tensor(self, side, given) for side, given in (('student', preds_S), ('teacher', preds_T))]
        sizes = [given.shape[-1] for given in both]
        if both[0].shape[:-1] == both[1].shape[:-1] and sizes[0] != sizes[1]:
            raise ConfigError(
                f'TokenKLDivergence compares distributions over one vocabulary, but the student gave {tuple(both[0].shape)} '
                f'and the teacher {tuple(both[1].shape)}. If one vocabulary is only padded, cut its logits to the first '
                f'{min(sizes)}; two tokenizers cannot be compared token by token.'
            )
        student, teacher = paired(self, *both, detach=self.teacher_detach)
        if student.ndim < 2:
            raise ConfigError(
                f'TokenKLDivergence takes logits of shape (..., tokens, vocabulary), but got shape {tuple(student.shape)}.'
            )
        if self.top_k is not None and self.top_k > student.shape[-1]:
            raise ConfigError(f'`top_k` is {self.top_k}, but the vocabulary has {student.shape[-1]} tokens.')
        counts = self._counting(labels, mask, student)
        if self.shift:
            student, teacher = student[..., :-1, :], teacher[..., :-1, :]
        if counts is not None:
            student, teacher = student[counts], teacher[counts]
        log_q, log_p = self._distributions(student / self.tau, teacher / self.tau)
        first, second = (log_p, log_q) if self.direction == 'forward' else (log_q, log_p)
        each = kl_terms(first, second).sum(-1)
        return self.loss_weight * self.tau**2 * each.sum() / max(each.numel(), 1)

    def _counting(self, labels: Tensor | None, mask: Tensor | None, logits: Tensor) -> Tensor | None:
        counts = None
        for name, given, rule in (('labels', labels, self.ignore_index), ('mask', mask, 0)):
            if given is None:
                continue
            if given.shape != logits.shape[:-1]:
                raise ConfigError(
                    f'`{name}` of TokenKLDivergence has one entry for each token, shape {tuple(logits.shape[:-1])}, but got '
                    f'shape {tuple(given.shape)}.'
                )
            here = (given != rule).to(logits.device)
            counts = here if counts is None else counts & here
        return counts[..., 1:] if counts is not None and self.shift else counts

    def _distributions(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.top_k is None or (self.top_k == student.shape[-1] and self.tail == 'bucket'):
            return F.log_softmax(student, -1), F.log_softmax(teacher, -1)
        top = teacher.topk(self.top_k, -1).indices
        if self.tail == 'renormalize':
            return F.log_softmax(student.gather(-1, top), -1), F.log_softmax(teacher.gather(-1, top), -1)
        return _bucketed(student, top), _bucketed(teacher, top)


@MODELS.register_module()
class ViTKDLoss(nn.Module):
    r"""Features of a vision transformer: shallow layers are mimicked, a deep one is generated from a part of its tokens.

    :math:`w ( \frac{\alpha}{n} \sum_l \| A_l s_l - t_l \|^2 + \frac{\beta}{\lambda n} \| M \odot (G(\tilde s) - t) \|^2 )`.
    :math:`A` are linear maps to the teacher's width; :math:`\tilde s` is the mapped deep feature with a share
    :math:`\lambda` of its tokens (those in :math:`M`, drawn anew for each sample) replaced by one learned token; :math:`G` is
    two 3x3 convolutions over the grid of tokens. The maps, the token and the convolutions are parameters of the loss and are
    trained with the student.

    Args:
        student_dims: Width of the student's tokens.
        teacher_dims: Width of the teacher's tokens.
        alpha: Weight of the shallow layers.
        beta: Weight of the deep layer.
        mask_ratio: The share :math:`\lambda` of hidden tokens.
        shallow: How many shallow layers there are.
        prefix_tokens: How many tokens before those of the grid (class, distillation, register tokens) to leave out: one number,
            or the student's and the teacher's.
        loss_weight: The factor `w`.
        teacher_detach: Whether the teacher's side gets no gradient.

    Raises:
        ConfigError: If `mask_ratio` is not between 0 and 1, or a size is not above 0.

    >>> layer = torch.rand(2, 16, 6)
    >>> ViTKDLoss(6, 8)([layer, layer], [torch.rand(2, 16, 8)] * 2, layer, torch.rand(2, 16, 8)).shape
    torch.Size([])

    Differs from the authors' code: the shallow layers' maps are there also where the widths are equal.

    Reference: Yang et al., ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation, CVPR workshops 2024,
    https://arxiv.org/abs/2209.02432
    """

    def __init__(
        self,
        student_dims: int,
        teacher_dims: int,
        alpha: float = 3e-5,
        beta: float = 3e-6,
        mask_ratio: float = 0.5,
        shallow: int = 2,
        prefix_tokens: int | tuple[int, int] = 0,
        loss_weight: float = 1.0,
        *,
        teacher_detach: bool = False,
    ) -> None:
        super().__init__()
        positive(self, student_dims=student_dims, teacher_dims=teacher_dims, shallow=shallow)
        if not 0 < mask_ratio < 1:
            raise ConfigError(f'`mask_ratio` of ViTKDLoss must be between 0 and 1, but got {mask_ratio!r}.')
        self.alpha = alpha
        self.beta = beta
        self.mask_ratio = mask_ratio
        self.prefix_tokens = (prefix_tokens, prefix_tokens) if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
        self.loss_weight = loss_weight
        self.teacher_detach = teacher_detach
        self.align = nn.ModuleList(nn.Linear(student_dims, teacher_dims) for _ in range(shallow + 1))
        self.token = nn.Parameter(torch.zeros(teacher_dims))
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_dims, teacher_dims, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher_dims, teacher_dims, 3, padding=1)
        )

    def forward(
        self, shallow_S: Tensor | Sequence[Tensor], shallow_T: Tensor | Sequence[Tensor], deep_S: Tensor, deep_T: Tensor
    ) -> Tensor:
        """Return the loss.

        Args:
            shallow_S: The student's shallow layers, each of shape (n, tokens, student_dims).
            shallow_T: The teacher's, each of shape (n, tokens, teacher_dims).
            deep_S: The student's deep layer.
            deep_T: The teacher's deep layer.

        Raises:
            ConfigError: If shapes do not meet, or the tokens of the deep layer are not those of a square grid.
        """
        pairs = [*levels(self, shallow_S, shallow_T), (deep_S, deep_T)]
        if len(pairs) != len(self.align):
            raise ConfigError(
                f'ViTKDLoss was made for shallow={len(self.align) - 1} layers, but got {len(pairs) - 1}. Set '
                f'shallow={len(pairs) - 1}.'
            )
        aligned = [
            paired(self, self._mapped(student, align), _grid(teacher, self.prefix_tokens[1]), detach=self.teacher_detach)
            for (student, teacher), align in zip(pairs, self.align)
        ]
        *mimicked, (deep, target) = aligned
        mimic = torch.stack([(student - teacher).square().sum() for student, teacher in mimicked]).sum()
        hidden = self._hidden(deep)
        side = round(deep.shape[1] ** 0.5)
        if side * side != deep.shape[1]:
            raise ConfigError(
                f'ViTKDLoss needs the tokens of a square grid, but there are {deep.shape[1]}. Leave out class and register '
                f'tokens with prefix_tokens (it is {self.prefix_tokens}).'
            )
        filled = torch.where(hidden[..., None], self.token.to(deep.dtype), deep)
        grid = filled.transpose(1, 2).unflatten(2, (side, side))
        generated = self.generation(grid).flatten(2).transpose(1, 2)
        generate = torch.where(hidden[..., None], generated - target, 0).square().sum()
        return self.loss_weight * (self.alpha * mimic + self.beta / self.mask_ratio * generate) / len(deep)

    def _mapped(self, tokens: Any, align: nn.Module) -> Tensor:
        width = align.in_features
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[-1] != width:
            what = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ConfigError(
                f"ViTKDLoss was made for student's tokens of shape (n, tokens, {width}), but got {what}. Set student_dims to "
                'their width.'
            )
        return align(_grid(tokens, self.prefix_tokens[0]).to(self.token.dtype))

    def _hidden(self, tokens: Tensor) -> Tensor:
        """Return which tokens are hidden, (n, tokens): as many in every sample, drawn from PyTorch's generator."""
        n, length, _ = tokens.shape
        ranks = torch.rand(n, length, device=tokens.device).argsort(1).argsort(1)
        return ranks >= int(length * (1 - self.mask_ratio))


def _grid(tokens: Any, prefix: int) -> Any:
    return tokens[:, prefix:] if isinstance(tokens, Tensor) and tokens.ndim == 3 else tokens


def _bucketed(logits: Tensor, top: Tensor) -> Tensor:
    """Return the log-probabilities of the tokens `top`, and of all others together, shape (..., k + 1)."""
    # The tail from its own logits: as one minus the rest it would round to nothing.
    rest = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return F.log_softmax(torch.cat([logits.gather(-1, top), rest], -1), -1)
