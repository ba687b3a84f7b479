"""Taking whole residual blocks out of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from strop.errors import ConfigError, VerificationError, listed, near
from strop.graph.forward import arguments_of, in_double, moved_to, untouched
from strop.pruning.placements import batches_of, forward, loss_of
from strop.pruning.ranking import check_ratio
from strop.pruning.record import Pruned, PruneRecord

BlockImportance = Union[str, Callable[[str, nn.Module, nn.Module], float]]

_SCORES = ('influence', 'output', 'loss', 'magnitude')


class Skip(nn.Module):
    """Gives back what it is given: what a block of several arguments, or one that returns a tuple, is replaced by.

    Args:
        length: Length of the tuple that the block returned, whose other items become None; 0 where it returned a tensor.

    >>> Skip(2)(torch.ones(1), mask=None)
    (tensor([1.]), None)
    """

    def __init__(self, length: int = 0) -> None:
        super().__init__()
        self.length = length

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first argument."""
        first = args[0] if args else next(iter(kwargs.values()))
        return (first, *[None] * (self.length - 1)) if self.length else first

    def extra_repr(self) -> str:
        return f'length={self.length}' if self.length else ''


@dataclass(frozen=True)
class Block:
    """A block that gives back a tensor of the shape that it is given.

    Args:
        name: Its module path.
        residual: Whether it adds to its input: with every parameter zero it gives its input back.
        plain: Whether it takes one argument and returns a tensor.
        length: Length of the tuple it returns; 0 for a tensor.
    """

    name: str
    residual: bool
    plain: bool
    length: int


def residual_blocks(model: nn.Module, inputs: Any) -> dict[str, Block]:
    """Return the residual blocks of a model, which can be taken out one by one, in the order of the forward.

    A block counts if it is called once, gives back a tensor of the shape that it is given, and gives back that very
    tensor when all its parameters are zero. Of blocks inside blocks the inner ones count.

    Args:
        model: The model; it stays as it is.
        inputs: Example inputs.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = nn.Linear(4, 4)
    ...
    ...     def forward(self, x):
    ...         return x + self.linear(x)
    >>> list(residual_blocks(nn.Sequential(nn.Linear(4, 4), Block(), Block()), torch.rand(1, 4)))
    ['1', '2']
    """
    found = {name: block for name, block in _blocks(model, inputs, None).items() if block.residual}
    return {name: block for name, block in found.items() if not any(other.startswith(f'{name}.') for other in found)}


def block_scores(
    model: nn.Module,
    inputs: Any,
    names: Sequence[str],
    importance: BlockImportance = 'influence',
    *,
    data: Any = None,
    loss: Any = None,
) -> dict[str, float]:
    r"""Return how much each block matters.

    Args:
        model: The model; it stays as it is.
        inputs: Example inputs, used as the only batch where there is no data.
        names: Module paths of the blocks.
        importance: `'influence'`: :math:`1 - E \cos(x_{in}, x_{out})` over positions, in one pass (Men et al., ShortGPT,
            https://arxiv.org/abs/2403.03853); `'output'`: the relative change of the model's output when the block is
            skipped; `'loss'`: the rise of the loss; `'magnitude'`: the mean absolute parameter; or a function of
            `(name, block, model)`.
        data: Batches.
        loss: See `strop.pruning.loss_of`; needed for `'loss'`.

    Raises:
        ConfigError: If there is no such importance or block, or data or a loss is missing.
    """
    _check_blocks(model, names)
    if callable(importance):
        return {name: float(importance(name, model.get_submodule(name), model)) for name in names}
    if importance not in _SCORES:
        raise ConfigError(
            f'There is no block importance {importance!r}.{near(importance, _SCORES)} There are {listed(_SCORES)}.'
        )
    if importance == 'magnitude':
        return {name: _magnitude(model.get_submodule(name)) for name in names}
    if importance == 'loss' and (data is None or loss is None):
        raise ConfigError("The block importance 'loss' needs `data=` (batches) and `loss=` (a function of (model, batch)).")
    batches = list(batches_of(data)) if data is not None else [_Batch(*arguments_of(moved_to(model, inputs)))]
    with untouched(model), torch.no_grad():
        model.eval()
        if importance == 'influence':
            return _influence(model, batches, names)
        if importance == 'loss':
            base = sum(float(loss_of(model, batch, loss)) for batch in batches)
            return {name: _skipped_loss(model, name, batches, loss) - base for name in names}
        outputs = [_floats(_run(model, batch)) for batch in batches]
        return {name: _change(model, name, batches, outputs) for name in names}


def skip(model: nn.Module, inputs: Any, names: Iterable[str]) -> None:
    """Replace blocks by the identity, in place.

    A block of one argument that returns a tensor becomes `nn.Identity`; others become `Skip`.

    Args:
        model: The model.
        inputs: Example inputs.
        names: Module paths; each block gives back a tensor of the shape that it is given.

    Raises:
        ConfigError: If a name is no module, or its output has another shape than its input.
    """
    names = list(names)
    _check_blocks(model, names)
    found = _blocks(model, inputs, set(names))
    for name in names:
        if name not in found:
            raise ConfigError(
                f'{name!r} cannot be skipped: it must be called once and give back a tensor of the shape that it is given.'
            )
    for name in names:
        path, _, last = name.rpartition('.')
        block = found[name]
        replacement = nn.Identity() if block.plain else Skip(block.length)
        replacement.training = model.get_submodule(name).training
        setattr(model.get_submodule(path), last, replacement)


def remove_blocks(
    model: nn.Module,
    inputs: Any,
    *,
    count: int | None = None,
    ratio: float | None = None,
    names: Sequence[str] | None = None,
    candidates: Sequence[str] | None = None,
    importance: BlockImportance = 'influence',
    data: Any = None,
    loss: Any = None,
    inplace: bool = False,
) -> Pruned:
    """Take the least important residual blocks out of a model: depth instead of width.

    Args:
        model: Any model; if anything fails it stays as it is.
        inputs: Example inputs.
        count: How many blocks to remove.
        ratio: Or which share of the candidates.
        names: Or which blocks, by module path.
        candidates: The blocks to choose among; by default `residual_blocks(model, inputs)`. Blocks that are not residual
            (a post-norm transformer layer) may be named too if they keep the shape.
        importance: See `block_scores`.
        data: Batches.
        loss: Loss of a batch.
        inplace: Change `model` itself instead of a copy.

    Returns:
        The model and a record.

    Raises:
        ConfigError: If it is not said what to remove, or there are not that many blocks.
        VerificationError: If the shorter model does not compute what the original does with these blocks skipped.
    """
    if sum(value is not None for value in (count, ratio, names)) != 1:
        raise ConfigError('Say what to remove by one of `count=`, `ratio=` (share of the blocks) and `names=`.')
    if not isinstance(model, nn.Module):
        raise ConfigError(f'`model` must be an nn.Module, but got {type(model).__name__}.')
    inputs = moved_to(model, inputs)
    if names is None:
        blocks = list(residual_blocks(model, inputs)) if candidates is None else list(candidates)
        number = _number(blocks, count, ratio)
        scores = block_scores(model, inputs, blocks, importance, data=data, loss=loss)
        chosen = set(sorted(blocks, key=lambda name: scores[name])[:number])
        names = [name for name in blocks if name in chosen]
    shorter = copy.deepcopy(model)
    skip(shorter, inputs, names)
    error = _verified(model, shorter, inputs, names)
    before, after = (_costs(m, inputs) for m in (model, shorter))
    record = PruneRecord(
        units=(),
        steps=(),
        macs=(before[0], after[0]),
        params=(before[1], after[1]),
        importance=importance if isinstance(importance, str) else getattr(importance, '__name__', 'a function'),
        scope='blocks',
        ratio=ratio,
        removed=tuple(names),
        notes=(f'The output equals that of the original with these blocks skipped (relative difference {error:.1e}).',),
    )
    if inplace:
        skip(model, inputs, names)
    return Pruned(model if inplace else shorter, record)


# -- internals ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def _run(model: nn.Module, batch: Any) -> Any:
    return model(*batch.args, **batch.kwargs) if isinstance(batch, _Batch) else forward(model, batch)


def _tensor_of(output: Any) -> tuple[Tensor | None, int]:
    """Return the tensor that a block gives out, and the length of the tuple that it is in."""
    if isinstance(output, Tensor):
        return output, 0
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        return output[0], len(output)
    return None, 0


def _blocks(model: nn.Module, inputs: Any, wanted: set[str] | None) -> dict[str, Block]:
    """Return the blocks that keep the shape, in the order of their calls; without `wanted` those that may be residual."""
    calls: dict[str, list[Block | None]] = {}
    paths = [
        (path, m) for path, m in model.named_modules(remove_duplicate=False) if path and (wanted is None or path in wanted)
    ]
    testing = False

    def hook(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal testing
        if testing:
            return
        given = args[0] if args else next(iter(kwargs.values()), None)
        result, length = _tensor_of(output)
        block = None
        if isinstance(given, Tensor) and result is not None and given.shape == result.shape and given.is_floating_point():
            residual = False
            if wanted is None:
                testing = True
                try:
                    residual = _adds(module, args, kwargs, given)
                finally:
                    testing = False
            block = Block(path, residual, len(args) == 1 and not kwargs and not length, length)
        calls.setdefault(path, []).append(block)

    handles = [
        module.register_forward_hook(lambda m, a, k, out, p=path: hook(p, m, a, k, out), with_kwargs=True)  # type: ignore[misc]
        for path, module in paths
        if wanted is not None or any(True for _ in module.parameters())
    ]
    args, kwargs = arguments_of(inputs)
    try:
        with untouched(model), torch.no_grad():
            model.eval()
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    # Hooks fire when a module is done, so an inner block comes before its outer one; siblings are in forward order.
    return {path: found[0] for path, found in calls.items() if len(found) == 1 and found[0] is not None}


def _adds(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], given: Tensor) -> bool:
    if not any(sum(size > 1 for size in parameter.shape) > 1 for parameter in module.parameters()):
        return False  # a normalisation that adds its input is no block
    zeros = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        result, _ = _tensor_of(torch.func.functional_call(module, {**zeros, **buffers}, args, kwargs))
    except Exception:
        # A block that cannot run with zero parameters is no candidate.
        return False
    return result is not None and torch.equal(result, given)


def _check_blocks(model: nn.Module, names: Sequence[str]) -> None:
    known = [path for path, _ in model.named_modules() if path]
    for name in names:
        if name not in known:
            raise ConfigError(f'The model has no block {name!r}.{near(name, known)}')
        outer = next((other for other in names if name.startswith(f'{other}.')), None)
        if outer is not None:
            raise ConfigError(f'{name!r} is a part of {outer!r}, and both are named. Name one of them.')


def _number(blocks: Sequence[str], count: int | None, ratio: float | None) -> int:
    if not blocks:
        raise ConfigError(
            'The model has no residual blocks that can be taken out: no module gives back its input when its parameters are '
            'zero. Name blocks that keep the shape by `candidates=` or `names=`.'
        )
    number = int(len(blocks) * check_ratio(ratio) + 1e-9) if ratio is not None else count
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= len(blocks):
        asked = f'count={count}' if ratio is None else f'ratio={ratio}'
        raise ConfigError(f'There are {len(blocks)} blocks to choose among, {listed(blocks)}, but {asked} was asked for.')
    return number


def _magnitude(block: nn.Module) -> float:
    parameters = [parameter.detach() for parameter in block.parameters()]
    return float(sum(p.abs().sum() for p in parameters)) / max(sum(p.numel() for p in parameters), 1)


@contextmanager
def _skipping(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        length = _tensor_of(output)[1]
        return Skip(length)(*args, **kwargs)

    handles = [model.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _influence(model: nn.Module, batches: list[Any], names: Sequence[str]) -> dict[str, float]:
    totals = {name: [0.0, 0] for name in names}

    def hook(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        result = _tensor_of(output)[0]
        if isinstance(result, Tensor) and isinstance(given, Tensor):
            axis = _channel_axis(model.get_submodule(name), given)
            cosine = torch.nn.functional.cosine_similarity(in_double(given), in_double(result), dim=axis)
            totals[name][0] += float((1 - cosine).sum())
            totals[name][1] += cosine.numel()

    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, a, k, out, n=name: hook(n, a, k, out), with_kwargs=True)  # type: ignore[misc]
        for name in names
    ]
    try:
        for batch in batches:
            _run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(number, 1) for name, (total, number) in totals.items()}


def _channel_axis(block: nn.Module, given: Tensor) -> int:
    """Return the axis of the channels: the first of images or the last, and that which norms and biases are long as."""
    usual, other = (1, -1) if given.dim() >= 4 else (-1, 1)
    widths = {len(parameter) for parameter in block.parameters() if parameter.dim() == 1}
    return other if given.shape[usual] not in widths and given.shape[other] in widths else usual


def _skipped_loss(model: nn.Module, name: str, batches: list[Any], loss: Any) -> float:
    with _skipping(model, [name]):
        return sum(float(loss_of(model, batch, loss)) for batch in batches)


def _floats(output: Any) -> list[Tensor]:
    return [in_double(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _relative(outputs: list[Tensor], others: list[Tensor]) -> float:
    norm = sum(float(output.norm()) ** 2 for output in outputs) ** 0.5
    return sum(float((output - other).norm()) ** 2 for output, other in zip(outputs, others)) ** 0.5 / (norm or 1.0)


def _change(model: nn.Module, name: str, batches: list[Any], outputs: list[list[Tensor]]) -> float:
    with _skipping(model, [name]):
        found = [_floats(_run(model, batch)) for batch in batches]
    return sum(_relative(output, other) for output, other in zip(outputs, found)) / len(batches)


def _verified(model: nn.Module, shorter: nn.Module, inputs: Any, names: Sequence[str]) -> float:
    batch = _Batch(*arguments_of(inputs))
    results = []
    for net, skipped in ((model, names), (shorter, ())):
        with untouched(net), torch.no_grad(), _skipping(net, skipped):
            net.eval()
            results.append(_floats(_run(net, batch)))
    if [output.shape for output in results[0]] != [output.shape for output in results[1]]:
        raise VerificationError('The model without these blocks gives outputs of other shapes.')
    error = _relative(*results)
    if not error <= 1e-5:
        raise VerificationError(
            f'The model without {listed(names)} does not compute what the original does with them skipped: the relative '
            f'difference is {error:.2e}. Does something read the blocks besides calling them?'
        )
    return error


def _costs(model: nn.Module, inputs: Any) -> tuple[int, int]:
    from strop.estimators import count

    args, kwargs = arguments_of(inputs)
    resources = count(model, *args, **kwargs)
    return resources.macs, resources.params
