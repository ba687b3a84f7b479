"""Choices whose alternatives are weighted by architecture parameters: MMRazor's operations and routes for DARTS and its kin.

They hold no parameters. A differentiable mutator owns the logits, asks a choice for the weights that they mean
(`arch_weights`), and writes these as the decision, so that the choice computes a weighted sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from strop.errors import ConfigError, SubnetError
from strop.mutables.choice import LayerChoice
from strop.mutables.domain import Domain, KOf, OneOf
from strop.mutables.mutable_op import OneShotMutableOP
from strop.registry import MODELS


def one_hot(probabilities: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
    """Return the exact one-hot vector of `index`, with the gradient of `probabilities` (straight-through).

    >>> one_hot(torch.tensor([0.25, 0.75]), 1)
    tensor([0., 1.])

    Reference: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, https://arxiv.org/abs/1308.3432
    """
    hard = torch.zeros_like(probabilities)
    hard[index] = 1
    # In this order the difference is exactly zero, so that the ones and zeros are exact and zeros are not computed.
    return hard + (probabilities - probabilities.detach())


def gumbel_weights(logits: torch.Tensor, tau: float = 1.0, hard: bool = True) -> torch.Tensor:
    r"""Draw weights by the Gumbel-softmax: :math:`\mathrm{softmax}((\alpha + g) / \tau)` with Gumbel noise :math:`g`.

    Args:
        logits: Architecture parameters, shape `(alternatives,)`.
        tau: Temperature; the weights come near to one-hot as it goes to 0.
        hard: Return the one-hot vector of the greatest weight, with the gradient of the soft ones.

    >>> bool(gumbel_weights(torch.zeros(3)).sum() == 1)
    True

    Reference: Jang et al., Categorical Reparameterization with Gumbel-Softmax, ICLR 2017, https://arxiv.org/abs/1611.01144
    """
    noise = -torch.empty_like(logits, memory_format=torch.legacy_contiguous_format).exponential_().log()
    soft = torch.softmax((logits + noise) / tau, dim=0)
    return one_hot(soft, soft.detach().argmax()) if hard else soft


@MODELS.register_module()
class DiffMutableOP(OneShotMutableOP):
    """A choice between operations whose outputs are added, each with its probability: the mixed operation of DARTS.

    Args:
        candidates: name -> config (or module) of each operation.
        fix_threshold: Once a probability exceeds it, that operation alone is computed, and its logits get no gradient.
        module_kwargs: Arguments given to every candidate's config.
        alias: Key of the decision; the path in the model by default.
        init_cfg: Accepted for configs; candidates carry their own.

    Raises:
        ConfigError: If `fix_threshold` is not within (0, 1].

    >>> op = DiffMutableOP(dict(relu=dict(type='torch.nn.ReLU'), id=dict(type='torch.nn.Identity')), alias='act')
    >>> op.decide(op.arch_weights(torch.zeros(2)))
    >>> op(torch.tensor([-2.0, 2.0]))
    tensor([-1., 2.])

    Reference: Liu et al., DARTS: Differentiable Architecture Search, ICLR 2019, https://arxiv.org/abs/1806.09055
    """

    fix_threshold: float = 1.0

    def __init__(
        self,
        candidates: Mapping[str, Any],
        fix_threshold: float = 1.0,
        module_kwargs: Mapping[str, Any] | None = None,
        alias: str | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(candidates, module_kwargs, alias, init_cfg)
        if not 0 < fix_threshold <= 1:
            raise ConfigError(f'`fix_threshold` is a probability within (0, 1], but got {fix_threshold!r}.')
        self.fix_threshold = fix_threshold

    def compute_arch_probs(self, arch_param: torch.Tensor) -> torch.Tensor:
        """Return the weights that logits mean; override to weigh otherwise."""
        return torch.softmax(arch_param, dim=0)

    def arch_weights(self, arch_param: torch.Tensor) -> torch.Tensor:
        """Return the weights of the next forward: `compute_arch_probs`, or one-hot beyond `fix_threshold`."""
        if self.fix_threshold < 1:
            probabilities = torch.softmax(arch_param.detach(), dim=0)
            if float(probabilities.max()) > self.fix_threshold:
                return (torch.arange(len(probabilities)) == probabilities.argmax().cpu()).to(probabilities)
        return self.compute_arch_probs(arch_param)

    def sample_choice(self, arch_param: torch.Tensor) -> str:
        """Return the name of the operation to keep: that of the greatest logit."""
        return self.names[int(arch_param.argmax())]


@MODELS.register_module()
class OneHotMutableOP(DiffMutableOP):
    """A `DiffMutableOP` that computes one operation, drawn by the probabilities, and passes it the gradient of its own.

    Arguments as `DiffMutableOP`.

    >>> op = OneHotMutableOP(dict(relu=dict(type='torch.nn.ReLU'), id=dict(type='torch.nn.Identity')), alias='act')
    >>> sorted(op.arch_weights(torch.zeros(2)).tolist())
    [0.0, 1.0]

    Reference: Hu et al., DSNAS: Direct Neural Architecture Search without Parameter Retraining, CVPR 2020,
    https://arxiv.org/abs/2002.09128
    """

    def compute_arch_probs(self, arch_param: torch.Tensor) -> torch.Tensor:
        """Draw a one-hot vector with the gradient of the softmax."""
        probabilities = torch.softmax(arch_param, dim=0)
        return one_hot(probabilities, torch.multinomial(probabilities.detach(), 1)[0])


@MODELS.register_module()
class DiffChoiceRoute(LayerChoice):
    """Some of several edges, each with an input of its own: the inputs of a node in a cell of DARTS.

    In search all edges are added, as they are or with weights that are learned; `num_chosen` of them are kept. Decisions
    inside an edge that is not chosen are inactive.

    Args:
        edges: name -> edge (a module or its config), in the order of the inputs.
        num_chosen: How many edges are kept.
        with_arch_param: Learn a weight of each edge. Otherwise edges are ranked by the greatest weight of the choice
            in them.
        alias: Key of the decision; the path in the model by default.
        init_cfg: Accepted for configs; edges carry their own.

    Raises:
        ConfigError: If `edges` is no mapping, is empty, or `num_chosen` is out of its range.

    >>> route = DiffChoiceRoute(nn.ModuleDict(dict(a=nn.Identity(), b=nn.Identity(), c=nn.Identity())))
    >>> route.decide(['a', 'c'])
    >>> route([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0])])
    tensor([5.])

    Reference: Liu et al., DARTS: Differentiable Architecture Search, ICLR 2019, https://arxiv.org/abs/1806.09055
    """

    # Declared here, so that no edge can take their names.
    init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None
    num_chosen = 2
    with_arch_param = False

    def __init__(
        self,
        edges: Mapping[str, Any] | nn.ModuleDict,
        num_chosen: int = 2,
        with_arch_param: bool = False,
        alias: str | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        if not isinstance(edges, (Mapping, nn.ModuleDict)) or not edges:
            raise ConfigError(f'`edges` must be a mapping name -> module of at least one edge, but got {edges!r}.')
        if not isinstance(num_chosen, int) or not 1 <= num_chosen <= len(edges):
            raise ConfigError(f'`num_chosen` must be within 1..{len(edges)}, the number of edges, but got {num_chosen!r}.')
        built = {
            name: MODELS.build(dict(edge)) if isinstance(edge, Mapping) and not isinstance(edge, nn.Module) else edge
            for name, edge in edges.items()
        }
        super().__init__(built, key=alias)
        self.num_chosen = num_chosen
        self.with_arch_param = with_arch_param
        self.init_cfg = init_cfg

    def make_domain(self) -> Domain:
        """Build the domain: the names of the edges, `num_chosen` of which are taken."""
        one = super().make_domain()
        return OneOf(one.labels, one.costs) if self.num_chosen == 1 else KOf(one.labels, one.costs, self.num_chosen)

    def run_candidate(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Apply one edge to its own input."""
        (inputs,) = args
        if not isinstance(inputs, (list, tuple)) or len(inputs) != len(self.names):
            given = f'{len(inputs)} inputs' if isinstance(inputs, (list, tuple)) else f'a {type(inputs).__name__}'
            raise SubnetError(
                f'This {type(self).__name__} takes a list of {len(self.names)} inputs, one for each edge, but got {given}.'
            )
        return super().run_candidate(index, inputs[index], **kwargs)

    def compute_arch_probs(self, arch_param: torch.Tensor) -> torch.Tensor:
        """Return the weights of the edges that logits mean; override to weigh otherwise."""
        return torch.softmax(arch_param, dim=0)

    def arch_weights(self, arch_param: torch.Tensor) -> torch.Tensor:
        """Return the weights of the next forward."""
        return self.compute_arch_probs(arch_param)

    def sample_choice(self, arch_param: torch.Tensor) -> list[str]:
        """Return the names of the edges to keep: those of the greatest logits."""
        return [self.names[index] for index in sorted(arch_param.topk(self.num_chosen).indices.tolist())]

    # -- MMRazor's names -------------------------------------------------------------------

    @property
    def alias(self) -> str | None:
        """The key that was given, if any."""
        return self._given_key

    @property
    def choices(self) -> list[str]:
        """The names of the edges."""
        return list(self.names)

    @property
    def num_choices(self) -> int:
        """Number of edges."""
        return len(self.names)

    @property
    def current_choice(self) -> list[str] | None:
        """The names of the chosen edges; None before any decision. Assigning decides."""
        if self.decision is None:
            return None
        return [self.names[index] for index, weight in enumerate(self.mask().tolist()) if weight]

    @current_choice.setter
    def current_choice(self, choice: Sequence[str]) -> None:
        self.decide(choice)

    def dump_chosen(self) -> dict[str, Any]:
        """Return the choice in the form of MMRazor's exported subnets."""
        return {'chosen': self.current_choice, 'meta': {'all_choices': self.choices}}

    def fix_chosen(self, chosen: Sequence[str] | Mapping[str, Any]) -> None:
        """Decide for the chosen edges; those that were not chosen are not computed, and `extract` leaves them out.

        Raises:
            SubnetError: If a name is unknown, or the number of edges is not `num_chosen`.
        """
        self.decide(chosen['chosen'] if isinstance(chosen, Mapping) and 'chosen' in chosen else chosen)


@MODELS.register_module()
class GumbelChoiceRoute(DiffChoiceRoute):
    """A `DiffChoiceRoute` whose weights are drawn by the Gumbel-softmax.

    Args:
        edges: name -> edge (a module or its config), in the order of the inputs.
        tau: Temperature; `set_temperature` changes it.
        hard: Compute the drawn edge alone, with the gradient of the soft weights.
        with_arch_param: Learn a weight of each edge. Without, all edges are added.
        alias: Key of the decision; the path in the model by default.
        init_cfg: Accepted for configs; edges carry their own.
        num_chosen: How many edges are kept.

    Raises:
        ConfigError: If `tau` is not positive.

    >>> route = GumbelChoiceRoute(dict(a=nn.Identity(), b=nn.Identity()), tau=0.5, with_arch_param=True)
    >>> sorted(route.arch_weights(torch.zeros(2)).tolist())
    [0.0, 1.0]

    Reference: Xie et al., SNAS: Stochastic Neural Architecture Search, ICLR 2019, https://arxiv.org/abs/1812.09926; computing
    the drawn edge alone is of Dong and Yang, GDAS, CVPR 2019, https://arxiv.org/abs/1910.04465
    """

    tau = 1.0
    hard = True

    def __init__(
        self,
        edges: Mapping[str, Any] | nn.ModuleDict,
        tau: float = 1.0,
        hard: bool = True,
        with_arch_param: bool = False,
        alias: str | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        num_chosen: int = 2,
    ) -> None:
        super().__init__(edges, num_chosen, with_arch_param, alias, init_cfg)
        self.set_temperature(tau)
        self.hard = hard

    def set_temperature(self, tau: float) -> None:
        """Set the temperature of the next draws."""
        if not tau > 0:
            raise ConfigError(f'The temperature `tau` must be positive, but got {tau!r}.')
        self.tau = tau

    def compute_arch_probs(self, arch_param: torch.Tensor) -> torch.Tensor:
        """Draw the weights of the edges."""
        return gumbel_weights(arch_param, self.tau, self.hard)
