"""Mutators with architecture parameters, which are trained by gradient descent: DARTS, Gumbel-softmax, ProxylessNAS.

All of them hold one vector of logits for each decision that mixes modules. `reset()` turns the logits into weights and
writes these as the decision, gradient included; the model then computes a weighted sum, and its loss reaches the logits
through it. `export()` and `sample_final()` give the architecture that the logits mean.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from strop.errors import ConfigError, SpaceError, UnknownKeyError, listed, near
from strop.mutables import DiffChoiceRoute, InputChoice, LayerChoice, Mutable, Subnet, gumbel_weights
from strop.mutables.choice import reduce_outputs
from strop.mutators.mutator import Mutator
from strop.registry import MODELS


class KeyedParameters(nn.ParameterDict):
    """Parameters by the keys of decisions, for mutators that learn some.

    A key may be the path of a module, such as `cells.0.op`; names of parameters have no dots, so that a plain `ParameterDict`
    refuses it. Checkpoints have the key with its dots as `%2E`.

    >>> logits = KeyedParameters({'cells.0.op': torch.zeros(2), 'act': torch.zeros(3)})
    >>> sorted(logits), sorted(name for name, _ in logits.named_parameters())
    (['act', 'cells.0.op'], ['act', 'cells%2E0%2Eop'])
    >>> logits['cells.0.op'].shape
    torch.Size([2])
    """

    def _key_to_attr(self, key: str) -> str:
        name = super()._key_to_attr(key).replace('%', '%25').replace('.', '%2E')
        return f'%{name}' if hasattr(nn.ParameterDict, name) or name.startswith('_') else name


@MODELS.register_module(name=['DifferentiableMutator', 'DiffModuleMutator'])
class DifferentiableMutator(Mutator):
    r"""Weigh the alternatives of each choice by the softmax of its logits.

    A choice may say itself what its logits mean, by a method `arch_weights` (`DiffMutableOP` and its kin). An `InputChoice`,
    and a `DiffChoiceRoute` without parameters, has no logits: all of its inputs are added in search, and at the end it takes
    those whose `LayerChoice` (named in `choose_from`, or in the edge) has the greatest weight.

    Args:
        model: The model to bind; leave it out and call `prepare_from_supernet` later.
        init_cfg: MMEngine's initialization config.
        custom_groups: Lists of keys or module paths that are to be one decision.
        ignore: Names of candidates that are never the final choice, nor count for the rank of an edge: the zero
            operation, whose weight says nothing about the others (section 2.4 of DARTS).
        init_std: Logits start from a normal distribution of this standard deviation.

    Raises:
        SpaceError: If a decision is of a kind that has no mixture, such as a `ValueChoice`.

    One backward pass may follow each `reset()`; call it again before the next.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    >>> mutator = DifferentiableMutator(model)
    >>> mutator.reset()
    >>> model(torch.tensor([-1.0])).backward()
    >>> mutator.arch_params['act'].grad.shape
    torch.Size([2])
    >>> mutator.export(readable=True)['act'] in (0, 1)
    True
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        custom_groups: Sequence[Sequence[str]] | None = None,
        *,
        ignore: Sequence[str] = ('zero', 'none'),
        init_std: float = 1e-3,
    ) -> None:
        self.ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
        self.init_std = init_std
        super().__init__(None, init_cfg, custom_groups)
        self.arch_params = KeyedParameters()
        if model is not None:
            self.prepare_from_supernet(model)

    def prepare_from_supernet(self, supernet: nn.Module) -> None:
        """Bind `supernet` and make the logits of its choices.

        Raises:
            BindingError: If this mutator or the model is bound already.
            SpaceError: If the mutables do not form a space, or one of them has no mixture.
        """
        super().prepare_from_supernet(supernet)
        values = [key for key, mutable in self._deciding() if not isinstance(mutable, (LayerChoice, InputChoice))]
        if values:
            self.release()
            raise SpaceError(
                f'{type(self).__name__} adds the weighted outputs of alternatives, which values do not have: {listed(values)}. '
                'Fix them first (apply_subnet and extract), or search them with a RandomMutator or an evolution.'
            )
        device = next((parameter.device for parameter in supernet.parameters()), None)
        # One dictionary for good, in which optimizers made before may already have looked.
        self.arch_params.clear()
        for key, mutable in self._deciding():
            if self.learns(mutable):
                logits = self.init_std * torch.randn(self._number_of_logits(mutable))
                self.arch_params[key] = nn.Parameter(logits.to(device))

    def _deciding(self) -> Iterator[tuple[str, Mutable]]:
        return ((key, mutables[0]) for key, mutables in self.binding.by_key.items())

    def learns(self, mutable: Mutable) -> bool:
        """Tell whether a decision has logits; override to leave some out."""
        return not isinstance(mutable, InputChoice) and bool(getattr(mutable, 'with_arch_param', True))

    def _number_of_logits(self, mutable: Mutable) -> int:
        return len(mutable.domain)

    def logits(self, key: str) -> nn.Parameter:
        """Return the architecture parameters of a decision, shape `(alternatives,)`.

        Raises:
            UnknownKeyError: If it has none.
        """
        if key not in self.arch_params:
            raise UnknownKeyError(f'There are no architecture parameters of {key!r}.{near(key, self.choices)}')
        return self.arch_params[key]

    @property
    def choices(self) -> dict[str, nn.Parameter]:
        """Key -> logits, for every decision that has some."""
        return {key: self.logits(key) for key in self.space if key in self.arch_params}

    # -- in search -------------------------------------------------------------------------

    def weigh(self, mutable: Mutable, logits: torch.Tensor) -> torch.Tensor:
        """Return the weights of a choice's alternatives, with their gradient; override to weigh otherwise."""
        weights = getattr(mutable, 'arch_weights', None)
        return weights(logits) if callable(weights) else torch.softmax(logits, dim=0)

    def sample_search(self) -> dict[str, Any]:
        """Return a FloatTensor of weights for every key, with its gradient."""
        return {
            key: self.weigh(mutable, self.logits(key)) if self.learns(mutable) else torch.ones(len(mutable.domain))
            for key, mutable in self._deciding()
        }

    # -- at the end ------------------------------------------------------------------------

    @torch.no_grad()
    def probabilities(self) -> dict[str, torch.Tensor]:
        """Return key -> softmax of the logits, one for each alternative."""
        return {key: torch.softmax(logits, 0)[: len(self.space[key])].clone() for key, logits in self.choices.items()}

    @torch.no_grad()
    def sample_final(self) -> dict[str, Any]:
        """Return a BoolTensor for every key: the alternative of greatest weight, the inputs whose choices have them.

        A `LayerChoice` that only inputs left out would use is all false, so that it is not computed.
        """
        probabilities = self.probabilities()
        for key, mutable in self._deciding():
            if key in probabilities and isinstance(mutable, LayerChoice) and not isinstance(mutable, DiffChoiceRoute):
                ignored = [index for index, name in enumerate(mutable.names) if name in self.ignore]
                if len(ignored) < len(mutable):
                    probabilities[key][ignored] = 0
        strengths = {key: float(weights.max()) for key, weights in probabilities.items()}
        result: dict[str, Any] = {}
        wanted: dict[str, bool] = {}
        for key, mutable in self._deciding():
            domain = self.space[key]
            if isinstance(mutable, InputChoice):
                result[key] = self._inputs(mutable, strengths)
                for source, taken in zip(mutable.choose_from, result[key].tolist()):
                    if source in self.space.paths or source in self.space:
                        source = self.space.key_of(source)
                        wanted[source] = wanted.get(source, False) or taken
            elif key not in probabilities:
                assert isinstance(mutable, DiffChoiceRoute), 'other choices of modules have logits'
                result[key] = _greatest([self._strength(edge, strengths) for edge in mutable.candidates], mutable.num_chosen)
            elif callable(sample := getattr(mutable, 'sample_choice', None)):
                result[key] = domain.mask(domain.parse(sample(probabilities[key].log())))
            else:
                result[key] = torch.arange(len(domain)) == int(probabilities[key].argmax())
        for key, taken in wanted.items():
            # A route chooses so many of its edges in any case.
            if not taken and isinstance(self.binding.by_key[key][0], LayerChoice) and self.space[key].mixable:
                result[key] = torch.zeros(len(self.space[key]), dtype=torch.bool)
        return result

    def _inputs(self, choice: InputChoice, strengths: Mapping[str, float]) -> torch.Tensor:
        if choice.n_chosen is None:
            return torch.ones(len(choice), dtype=torch.bool)
        known = {**self.space.paths, **{key: key for key in self.space}}
        unknown = [source for source in choice.choose_from if known.get(source) not in strengths]
        if unknown and choice.n_chosen < len(choice):
            print_log(
                f'{len(unknown)} inputs of {choice.key!r} come from no LayerChoice named in `choose_from`, so nothing is known '
                'of their worth: they are taken last.',
                logger='current',
                level=logging.WARNING,
            )
        return _greatest([strengths.get(known.get(source, ''), 0.0) for source in choice.choose_from], choice.n_chosen)

    def _strength(self, edge: nn.Module, strengths: Mapping[str, float]) -> float:
        keys = [module.key for module in edge.modules() if isinstance(module, Mutable) and module.key in strengths]
        return strengths[keys[0]] if keys else 0.0

    def best_subnet(self) -> Subnet:
        """Return the final architecture as a `Subnet`."""
        return self.space.subnet(self.sample_final())

    def sample_choices(self, kind: str = 'final') -> dict[str, Any]:
        """Return readable choices: those of `sample_final`, or 'random', 'max' and 'min' as every mutator's."""
        if kind == 'final':
            return dict(self.best_subnet())
        if kind == 'random':
            return dict(self.space.subnet({key: self.get_random_mask(info) for key, info in self.search_spaces.items()}))
        return super().sample_choices(kind)


def _greatest(values: Sequence[float], number: int) -> torch.Tensor:
    """Return a mask of the `number` greatest values, the first of equal ones."""
    order = sorted(range(len(values)), key=lambda index: -values[index])[:number]
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[order] = True
    return mask


@MODELS.register_module()
class DartsMutator(DifferentiableMutator):
    """The mutator of DARTS: softmax weights, and one alternative more, which is nothing.

    Args:
        model: The model to bind.
        init_cfg: MMEngine's initialization config.
        custom_groups: Lists of keys or module paths that are to be one decision.
        with_none: Give each `LayerChoice` that has no candidate named in `ignore` a logit for "none of them", as the
            operation `none` of the paper's space: its weight is lost to the others, and it is never the final choice.
        kwargs: `ignore`, `init_std`: see `DifferentiableMutator`.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    >>> mutator = DartsMutator(model)
    >>> mutator.reset()
    >>> [round(weight, 2) for weight in mutator.status()['act']]
    [0.33, 0.33]

    Reference: Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019, https://arxiv.org/abs/1806.09055
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        custom_groups: Sequence[Sequence[str]] | None = None,
        *,
        with_none: bool = True,
        **kwargs: Any,
    ) -> None:
        self.with_none = with_none
        super().__init__(model, init_cfg, custom_groups, **kwargs)

    def _number_of_logits(self, mutable: Mutable) -> int:
        plain = isinstance(mutable, LayerChoice) and not hasattr(mutable, 'arch_weights')
        extra = self.with_none and plain and not set(self.ignore) & set(getattr(mutable, 'names', ()))
        return len(mutable.domain) + int(extra)

    def weigh(self, mutable: Mutable, logits: torch.Tensor) -> torch.Tensor:
        """Return the weights, without that of "none"."""
        return super().weigh(mutable, logits)[: len(mutable.domain)]


@MODELS.register_module()
class GumbelMutator(DifferentiableMutator):
    """Draw the weights of each step by the Gumbel-softmax.

    Args:
        model: The model to bind.
        init_cfg: MMEngine's initialization config.
        custom_groups: Lists of keys or module paths that are to be one decision.
        tau: Temperature; assign `mutator.tau` to anneal it.
        hard: Compute the drawn alternative alone, with the gradient of the soft weights (GDAS); otherwise all (SNAS).
        kwargs: `ignore` (nothing by default), `init_std`: see `DifferentiableMutator`.

    Raises:
        ConfigError: If `tau` is not positive.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity()], key='act'))
    >>> mutator = GumbelMutator(model, tau=0.5)
    >>> mutator.reset()
    >>> sorted(mutator.status()['act'])
    [0.0, 1.0]

    Reference: Dong and Yang, Searching for a Robust Neural Architecture in Four GPU Hours, CVPR 2019,
    https://arxiv.org/abs/1910.04465; Xie et al., SNAS, ICLR 2019, https://arxiv.org/abs/1812.09926
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        custom_groups: Sequence[Sequence[str]] | None = None,
        *,
        tau: float = 1.0,
        hard: bool = True,
        ignore: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        if not tau > 0:
            raise ConfigError(f'The temperature `tau` must be positive, but got {tau!r}.')
        self.tau = tau
        self.hard = hard
        super().__init__(model, init_cfg, custom_groups, ignore=ignore, **kwargs)

    def weigh(self, mutable: Mutable, logits: torch.Tensor) -> torch.Tensor:
        """Draw the weights."""
        return gumbel_weights(logits, self.tau, self.hard)


@MODELS.register_module(name=['ProxylessMutator', 'ProxylessNasMutator'])
class ProxylessMutator(DifferentiableMutator):
    r"""Compute one path of each choice to train weights, and two to train the architecture, so that memory is that of a path.

    To train weights, one alternative is drawn by the softmax of the logits. Inside `binary_gates()` two are drawn, of which
    one is active by their renormalized probabilities :math:`p`; with gates :math:`g` the gradient of the logits is
    :math:`\partial L / \partial \alpha_i = \sum_j (\partial L / \partial g_j)\, p_j (\delta_{ij} - p_i)` over the two.

    Args:
        model: The model to bind.
        init_cfg: MMEngine's initialization config.
        custom_groups: Lists of keys or module paths that are to be one decision.
        kwargs: `ignore` (nothing by default), `init_std`: see `DifferentiableMutator`.

    >>> model = nn.Sequential(LayerChoice([nn.ReLU(), nn.Identity(), nn.Tanh()], key='act'))
    >>> mutator = ProxylessMutator(model)
    >>> with mutator.binary_gates():
    ...     mutator.reset()
    ...     model(torch.tensor([-1.0])).backward()
    >>> int((mutator.logits('act').grad != 0).sum())
    2

    Reference: Cai, Zhu, Han: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware, ICLR 2019,
    https://arxiv.org/abs/1812.00332
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        custom_groups: Sequence[Sequence[str]] | None = None,
        *,
        ignore: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self._two_paths = False
        self._pairs: dict[str, list[int]] = {}
        self._before: dict[str, torch.Tensor] = {}
        super().__init__(model, init_cfg, custom_groups, ignore=ignore, **kwargs)

    @contextmanager
    def binary_gates(self) -> Iterator[None]:
        """While active, `reset()` draws two paths of each choice, with gradients for the logits."""
        before, self._two_paths = self._two_paths, True
        try:
            yield
        finally:
            self._two_paths = before

    def sample_search(self) -> dict[str, Any]:
        """Draw a path for every choice, or (inside `binary_gates()`) two with their gates."""
        self._pairs.clear()
        self._before = {key: logits.detach().clone() for key, logits in self.choices.items()}
        return super().sample_search()

    def weigh(self, mutable: Mutable, logits: torch.Tensor) -> torch.Tensor:
        """Draw the active path; with gates, its partner is in `_pairs`."""
        probabilities = torch.softmax(logits.detach(), dim=0)
        if not self._two_paths or len(logits) == 1:
            return torch.zeros_like(probabilities).index_fill(0, torch.multinomial(probabilities, 1), 1.0)
        pair = torch.multinomial(probabilities.clamp(min=1e-12), 2)
        renormalized = torch.softmax(logits[pair], dim=0)
        active = pair[torch.multinomial(renormalized.detach(), 1)]
        gates = torch.zeros_like(logits).index_fill(0, active, 1.0)
        self._pairs[mutable.key] = pair.tolist()
        # Adds zeros, whose gradient is that of the two probabilities.
        return gates.index_add(0, pair, renormalized - renormalized.detach())

    def on_forward_layer_choice(self, mutable: LayerChoice, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:
        """Compute the drawn path; with gates, its partner too, which only the gradient of its gate sees."""
        decision = mutable.decided()
        pair = self._pairs.get(mutable.key)
        if pair is None or not isinstance(decision, torch.Tensor) or not decision.requires_grad:
            return super().on_forward_layer_choice(mutable, *args, **kwargs)
        outputs = []
        for index in pair:
            active = bool(decision[index].detach())
            with torch.set_grad_enabled(active and torch.is_grad_enabled()):
                output = mutable.run_candidate(index, *args, **kwargs)
            outputs.append(output * decision[index])
        # One of the two is active: what is reduced is that one.
        return reduce_outputs([outputs[0] + outputs[1]], mutable.reduction), mutable.mask()

    @torch.no_grad()
    def rescale(self) -> None:
        """After the logits of two paths were updated, shift both so that the probabilities of all others stay as they were."""
        for key, pair in self._pairs.items():
            logits, before = self.logits(key), self._before[key]
            logits[pair] += torch.logsumexp(before[pair], 0) - torch.logsumexp(logits[pair], 0)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), '_pairs': {}, '_before': {}}
