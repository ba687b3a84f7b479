"""Models of transformers made smaller together with their config, so that `from_pretrained` needs nothing of Strop.

A transformers model is built from its config, which has one number for a width of all layers. So the config is what is
asked for, and the channel units of the model are cut to the shapes that it describes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from strop.errors import BudgetError, ConfigError, VerificationError, listed, near, try_import
from strop.estimators import count
from strop.graph import ChannelGraph, channel_units, verify
from strop.graph.forward import arguments_of, evaluated, in_double, moved_to, output_tensors, untouched
from strop.pruning.budgets import Budget, BudgetLike
from strop.pruning.config_sizes import (
    advice,
    built,
    check_sizes,
    configured,
    has_head_dim,
    head_dim_of,
    layer_lists,
    lengths_for,
    sizes_of,
    unquantized,
)
from strop.pruning.depth import BlockImportance, block_scores, remove_blocks
from strop.pruning.importance import ImportanceLike, build_importance, score
from strop.pruning.placements import loss_of
from strop.pruning.ranking import Ranking, Selection
from strop.pruning.record import Pruned, PruneRecord, Step, UnitChange
from strop.randomness import seeded

_PROBES = 16
_PREFIX = 'model.'


def prune_transformer(
    model: nn.Module,
    inputs: Any,
    sizes: Mapping[str, int] | None = None,
    *,
    budget: BudgetLike | None = None,
    over: Iterable[str] | str = ('intermediate_size',),
    round_to: int = 1,
    importance: ImportanceLike = 'l1',
    layers: BlockImportance | Sequence[int] = 'influence',
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> Pruned:
    """Prune a transformers model to the sizes of a smaller config, and return a model that is built from that config.

    `save_pretrained` writes what plain `from_pretrained` reads. Names are the config's own: `hidden_size`,
    `intermediate_size`, `num_attention_heads`, `num_key_value_heads`, `head_dim`, `num_hidden_layers`, `d_model`, ... All
    layers get the same widths, as a config has one number for them; which indices stay is each layer's own. Layers are
    taken out first, then channels. The result is compared with the masked original by numbers, and again as built anew.

    What a config can express differs. One with `head_dim` (Llama, Mistral, Qwen, Gemma) or `d_kv` (T5) takes any number of
    heads; with grouped queries `num_attention_heads` is a multiple of `num_key_value_heads`. In BERT's and its like a head
    is `hidden_size / num_attention_heads` wide: heads and the hidden width go together, so that a head keeps its width.
    (`pruned_heads`, by which transformers 4 stored single heads of single layers, is gone in transformers 5 and not used.)
    Rotary embeddings keep `head_dim`: their frequencies are computed from it.

    Args:
        model: A `PreTrainedModel`; it stays as it is.
        inputs: Example inputs: a mapping of keyword arguments, a tensor or a tuple; a batch of 2 or more.
        sizes: name -> number, of the config of the result.
        budget: Instead of some of the widths, what the result may cost: `dict(params=0.5)`, `dict(macs='2G')`.
        over: Which widths a budget makes smaller, all by about the same share.
        round_to: Widths that a budget chooses are multiples of this; heads are not rounded.
        importance: What indices are ranked by; see `prune`.
        layers: What layers are ranked by, see `block_scores`; or the numbers of the layers that stay.
        data: Batches, for an importance that looks at data, and for the layers.
        loss: `loss(model, batch)`, such as `lambda model, batch: model(**batch).loss`, for one that needs gradients.
        seed: Seed of whatever is random.

    Returns:
        The model, in eval mode, and a record; unpacks as `model, record`.

    Raises:
        MissingDependencyError: If transformers is not installed.
        ConfigError: If the model has no config, or the config cannot express the sizes.
        BudgetError: If the budget cannot be reached.
        GraphError: If the model cannot be traced.
        VerificationError: If the result does not compute what the masked original does.

    >>> from transformers import BertConfig, BertModel
    >>> config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    >>> inputs = {'input_ids': torch.arange(10).reshape(2, 5)}
    >>> slim, record = prune_transformer(BertModel(config), inputs, dict(intermediate_size=8, num_hidden_layers=1))
    >>> slim.config.intermediate_size, len(slim.encoder.layer), slim.encoder.layer[0].intermediate.dense.weight.shape
    (8, 1, torch.Size([8, 16]))
    """
    _check_model(model)
    given = Budget.of(budget)
    if sizes is None and given is None:
        raise ConfigError(
            'Say how small the model is to be: sizes=dict(intermediate_size=512, num_hidden_layers=4), or a budget.'
        )
    wanted = check_sizes(model.config, sizes) if sizes is not None else {}
    source, inputs = evaluated(copy.deepcopy(model)), moved_to(model, inputs)
    target = unquantized(model, configured(model.config, wanted))
    caches = _without_cache(source)
    given_loss = None if loss is None else (lambda probe, batch: loss_of(probe.model, batch, loss))
    probe = _Probe(source)
    kept = _shortened(probe, inputs, target, layers, data, given_loss)
    if given is not None:
        target = _within(given, source, target, inputs, over, round_to)
    twin = built(model, target)
    _without_cache(twin)
    probe.aim(twin, inputs)
    # One head may stay; what a length of 1 would broadcast to, the comparison by numbers finds.
    graph = channel_units(probe, inputs, minimum=1)
    lengths = lengths_for(graph, _shapes(twin), model.config, target)
    pruned, step = _cut(probe, graph, lengths, inputs, importance, data, given_loss, seed)
    _refill(twin, pruned.model, inputs)
    costs = [_costs(found, inputs) for found in (source, twin)]
    for path, part in _configs(twin):
        if path in caches:
            part.use_cache = caches[path]
    if getattr(model, 'generation_config', None) is not None:
        twin.generation_config = copy.deepcopy(model.generation_config)
    name = build_importance(importance)
    return Pruned(
        twin,
        PruneRecord(
            units=tuple(
                UnitChange(_plain(unit.name), unit.role, unit.size, lengths.get(unit.name, unit.size)) for unit in graph
            ),
            steps=(replace(step, macs=costs[1][0], params=costs[1][1]),),
            macs=(costs[0][0], costs[1][0]),
            params=(costs[0][1], costs[1][1]),
            importance=getattr(name, 'name', '') or getattr(name, '__name__', type(name).__name__),
            scope='config',
            seed=seed,
            budget=None if given is None else str(given),
            frozen=len(graph.frozen),
            removed=kept,
            notes=(_told(model.config, target),),
        ),
    )


# -- internals ----------------------------------------------------------------------------------------------


class _Probe(nn.Module):
    """A model whose outputs of the hidden width are looked at through fixed random directions.

    An output keeps its size; seen through the directions the hidden width is none, and can be pruned and compared.
    """

    probe: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.places: tuple[int, ...] = ()

    def aim(self, twin: nn.Module, inputs: Any) -> None:
        """Look through directions at the outputs that have another width in `twin`."""
        outputs = _outputs(self.model, inputs)
        try:
            others = _outputs(twin, inputs)
        except Exception as error:
            raise ConfigError(
                f'A {type(twin).__name__} of these sizes cannot run: {type(error).__name__}: {error}.{advice(twin.config)}'
            ) from error
        if len(outputs) != len(others):
            raise ConfigError(
                f'With these sizes the model gives {len(others)} tensors instead of {len(outputs)}. Ask for fewer outputs '
                '(output_hidden_states=False, output_attentions=False).'
            )
        places = [n for n, (one, two) in enumerate(zip(outputs, others)) if one.shape != two.shape]
        for place in places:
            one, two = outputs[place].shape, others[place].shape
            if one[:-1] != two[:-1]:
                raise ConfigError(f'With these sizes an output has the shape {tuple(two)} instead of {tuple(one)}.')
        widths = {outputs[place].shape[-1] for place in places}
        if len(widths) > 1:
            raise ConfigError(f'Outputs of several widths ({listed(sorted(widths))}) cannot be pruned at once.')
        self.places = tuple(places)
        if places:
            with seeded(0, 'probe'):
                directions = torch.randn(_PROBES, widths.pop())
            self.register_buffer('probe', directions.to(outputs[places[0]]), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        if not self.places:
            return output
        return [
            tensor @ self.probe.T if place in self.places else tensor for place, tensor in enumerate(output_tensors(output))
        ]


def _check_model(model: Any) -> None:
    transformers = try_import('transformers', 'transformers')
    if not isinstance(model, transformers.PreTrainedModel):
        told = type(model).__name__
        raise ConfigError(
            f'`model` must be a PreTrainedModel of transformers, which has a config, but got {told}. Any other model is pruned '
            'by strop.pruning.prune.'
        )


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = arguments_of(inputs)
    with untouched(model), torch.no_grad():
        model.eval()
        return list(output_tensors(model(*args, **kwargs)))


def _without_cache(model: nn.Module) -> dict[str, bool]:
    """Have a model give no keys and values, which are outputs and would keep their size; return what it did before."""
    before = {path: part.use_cache for path, part in _configs(model) if hasattr(part, 'use_cache')}
    for _, part in _configs(model):
        if hasattr(part, 'use_cache'):
            part.use_cache = False
    return before


def _configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the configs that the parts of a model look at: an encoder and a decoder have copies of their own."""
    for path, module in model.named_modules():
        if hasattr(module, 'config'):
            yield path, module.config


def _shapes(twin: nn.Module) -> dict[str, tuple[int, ...]]:
    return {_PREFIX + name: tuple(value.shape) for name, value in twin.state_dict().items()}


def _plain(name: str) -> str:
    return name.removeprefix(_PREFIX)


def _costs(model: nn.Module, inputs: Any) -> tuple[int, int]:
    args, kwargs = arguments_of(inputs)
    resources = count(model, *args, **kwargs)
    return resources.macs, resources.params


def _told(old: Any, new: Any) -> str:
    before, after = sizes_of(old, aliases=False), sizes_of(new)
    changed = [f'{name} {before[name]} -> {after.get(name, 1)}' for name in before if after.get(name, 1) != before[name]]
    return f'Config: {", ".join(changed)}.'


def _shortened(
    probe: _Probe, inputs: Any, target: Any, importance: BlockImportance | Sequence[int], data: Any, loss: Any
) -> tuple[str, ...]:
    """Take out the layers that the config has fewer of, in the model inside `probe` and in the lists of the config."""
    source = probe.model
    shape = _list_lengths(source, target)
    lists = {
        path: len(module)
        for path, module in source.named_modules()
        if isinstance(module, nn.ModuleList) and shape.get(path, len(module)) < len(module)
    }
    removed: list[str] = []
    for path, number in lists.items():
        names = [f'{_PREFIX}{path}.{place}' for place in range(number)]
        stay = _staying(probe, inputs, names, shape[path], importance, data, loss)
        gone = [name for name in names if name not in stay]
        probe.model = remove_blocks(probe, inputs, names=gone).model.get_submodule('model')
        old = probe.model.get_submodule(path)
        places = [place for place, name in enumerate(names) if name in stay]
        parent, _, last = path.rpartition('.')
        setattr(probe.model.get_submodule(parent), last, nn.ModuleList(old[place] for place in places))  # type: ignore[index]
        _renumbered(probe.model.get_submodule(path), places)
        for config in (target, probe.model.config):
            for part, name in layer_lists(config, number):
                setattr(part, name, [getattr(part, name)[place] for place in places])
        removed.extend(map(_plain, gone))
    return tuple(removed)


def _list_lengths(model: nn.Module, config: Any) -> dict[str, int]:
    """Return the path of every list of layers -> how many there are in a model of this config."""
    config = copy.deepcopy(config)
    count = sizes_of(model.config).get('num_hidden_layers', 0)
    number = getattr(config, 'num_hidden_layers', count)
    for part, name in layer_lists(config, count) if number != count else ():
        setattr(part, name, list(getattr(part, name))[:number])
    twin = built(model, config, meta=True)
    return {path: len(module) for path, module in twin.named_modules() if isinstance(module, nn.ModuleList)}


def _staying(
    probe: _Probe,
    inputs: Any,
    names: Sequence[str],
    number: int,
    importance: BlockImportance | Sequence[int],
    data: Any,
    loss: Any,
) -> set[str]:
    if isinstance(importance, Sequence) and not isinstance(importance, str):
        chosen = sorted(set(importance))
        if len(chosen) != number or not all(isinstance(n, int) and 0 <= n < len(names) for n in chosen):
            raise ConfigError(
                f'`layers` must name the {number} layers that stay, numbers from 0 to {len(names) - 1}, but got {importance!r}.'
            )
        return {names[place] for place in chosen}
    scores = block_scores(probe, inputs, names, importance, data=data, loss=loss)
    return set(sorted(names, key=lambda name: scores[name], reverse=True)[:number])


def _renumbered(layers: nn.Module, places: Sequence[int]) -> None:
    for number, layer in enumerate(layers.children()):
        for module in layer.modules():
            for name in ('layer_idx', 'layer_id', 'layer_number'):
                if vars(module).get(name) == places[number]:
                    setattr(module, name, number)


def _cut(
    probe: _Probe,
    graph: ChannelGraph,
    lengths: Mapping[str, int],
    inputs: Any,
    importance: ImportanceLike,
    data: Any,
    loss: Any,
    seed: int,
) -> tuple[Any, Step]:
    """Return the probe cut to these lengths and what was done; its costs are counted later."""
    if not lengths:
        return probe, Step(0.0, {}, 0, 0)
    scores = score(graph, probe, importance, data=data, loss=loss, seed=seed)
    unjudged = [name for name in lengths if name not in scores]
    if unjudged:
        raise ConfigError(f'The importance has no scores for {listed(map(_plain, unjudged), 4)}. Take another, such as "l1".')
    keep = Ranking(graph, probe, scores, Selection()).keep(lengths)
    slicing = graph.slicing(keep)
    pruned = slicing.apply(probe)
    error = verify(probe, pruned, slicing, inputs)
    gone = sum(graph.units[name].size - number for name, number in lengths.items())
    ratio = gone / sum(graph.units[name].size for name in lengths)
    return pruned, Step(ratio, {_plain(name): tuple(index.tolist()) for name, index in keep.items()}, 0, 0, error)


def _refill(twin: nn.Module, pruned: nn.Module, inputs: Any) -> None:
    """Give the model built from the config the pruned weights, and compare the two."""
    weights = pruned.state_dict()
    missing = twin.load_state_dict(weights, strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        names = listed([*missing.missing_keys, *missing.unexpected_keys], 4)
        raise ConfigError(f'A model built from the config has other tensors than the pruned one: {names}.')
    others = dict(twin.named_buffers())
    for name, buffer in pruned.named_buffers():
        other = others.get(name)
        if name in weights or other is None:
            continue
        if other.shape != buffer.shape or not torch.equal(other, buffer):
            hint = ' Rotary embeddings need head_dim as it is: prune heads instead.' if 'inv_freq' in name else ''
            raise ConfigError(
                f'{name!r} is computed from the config, and has other values there than in the pruned model: the config cannot '
                f'express these sizes.{hint}'
            )
    parts = dict(twin.named_modules())
    for path, module in pruned.named_modules():
        for name, value in vars(module).items():
            other = vars(parts[path]).get(name, value) if path in parts else value
            if isinstance(value, float) and isinstance(other, float) and other != value:
                hint = ' A head has to keep its width: prune heads and the hidden width together.' if 'scal' in name else ''
                raise ConfigError(
                    f'{path}.{name} is computed from the config, {other:.4g} there and {value:.4g} in the pruned model: the '
                    f'config cannot express these sizes.{hint}'
                )
    for name, parameter in pruned.named_parameters():
        twin.get_parameter(name).requires_grad_(parameter.requires_grad)
    got, want = _outputs(twin, inputs), _outputs(pruned, inputs)
    error = max((_relative(one, two) for one, two in zip(got, want)), default=0.0)
    # The same operators on the same weights: anything but rounding is a difference of the models.
    if len(got) != len(want) or not error <= 1e-6:
        raise VerificationError(
            f'Built from its config, the pruned model computes something else (relative difference {error:.2g}). Does the '
            'config hold everything that this model was built with?'
        )


def _relative(one: Tensor, two: Tensor) -> float:
    if one.shape != two.shape:
        return float('inf')
    one, two = in_double(one), in_double(two)
    return float((one - two).norm()) / (float(two.norm()) or 1.0)


def _within(budget: Budget, model: nn.Module, target: Any, inputs: Any, over: Iterable[str] | str, round_to: int) -> Any:
    """Return the largest config within a budget whose widths `over` are all smaller by about one share."""
    names = (over,) if isinstance(over, str) else tuple(over)
    known = sizes_of(target)
    for name in names:
        if name not in known:
            raise ConfigError(f'`over` names {name!r}, which is no size of this config.{near(name, known)}')
    if not names or 'latency' in budget.resources:
        raise ConfigError('A budget of a config is of macs or params, and `over` names the widths that it makes smaller.')
    costs = dict(zip(('macs', 'params'), _costs(model, inputs)))
    limits = {resource: budget.limit(resource, costs[resource]) for resource in budget.resources}
    tried: dict[tuple[int, ...], bool] = {}
    best: Any = None
    low = float('inf')
    least, most = 0, _STEPS
    while least <= most:
        middle = (least + most) // 2
        chosen = _scaled(target, names, middle / _STEPS, round_to)
        sizes = tuple(sizes_of(chosen).values())
        if sizes not in tried:
            found = {'params': float(sum(p.numel() for p in built(model, chosen, meta=True).parameters()))}
            if 'macs' in limits:
                found['macs'] = float(_costs(built(model, chosen), inputs)[0])
            tried[sizes] = all(found[resource] <= limit for resource, limit in limits.items())
            low = min([low, *(found[resource] / limit for resource, limit in limits.items())])
        if tried[sizes]:
            best, most = chosen, middle - 1
        else:
            least = middle + 1
    if best is None:
        raise BudgetError(
            f'The budget {budget} cannot be met by {listed(names)}: the smallest is {low:.3g} times what is allowed. Name more '
            'widths in `over`, or take out layers by sizes=dict(num_hidden_layers=...).'
        )
    return best


_STEPS = 64


def _scaled(config: Any, names: Sequence[str], share: float, round_to: int) -> Any:
    """Return a copy of a config without this share of the widths; numbers that depend on each other stay consistent."""
    old = sizes_of(config)
    heads, groups, hidden = 'num_attention_heads', 'num_key_value_heads', 'hidden_size'
    new = {}
    for name in names:
        step = 1 if 'head' in name else round_to
        new[name] = min(max(round(old[name] * (1 - share) / step) * step, step), old[name])
    if heads in new and groups in old and old[groups] <= old[heads]:
        ratio = old[heads] // old[groups]
        if groups in new:
            new[heads] = new[groups] * ratio
        else:
            new[heads] = max(new[heads] // old[groups], 1) * old[groups]
    if not has_head_dim(config) and heads in old and hidden in old:
        # Without a number for it, a head keeps its width if heads and hidden width go together.
        width = head_dim_of(config) or 1
        if heads in new:
            new[hidden] = new[heads] * width
        elif hidden in new:
            new[heads] = max(round(new[hidden] / width), 1)
            new[hidden] = new[heads] * width
    return configured(config, new)


__all__ = ['prune_transformer']
