"""GPTQ through a whole model, one repeated block at a time.

What a block is asked for is found by running the model: the lists of modules whose members feed each other (the decoder layers
of a language model, the stages of an `nn.Sequential`). Each block is rounded on what the rounded blocks before it give, and
only the activations between two blocks are kept. Where members of a list don't simply feed each other, their layers are
rounded on full forwards instead, which takes longer and is right for any model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from strop.errors import ConfigError, DataError, StropError, listed
from strop.files import atomic_path, atomic_write, read_json
from strop.graph.forward import in_double
from strop.quantization.batches import Batches, taken_by
from strop.quantization.gptq import check_damping, gptq_round, output_errors
from strop.quantization.grouping import Rounded, round_weight
from strop.quantization.linear_layers import Target, stand_in

Call = tuple[tuple[Any, ...], dict[str, Any]]
Figures = dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Options:
    """What GPTQ does; see `quantize_weights`."""

    damping: float = 0.01
    act_order: bool = True
    scale_dtype: torch.dtype | None = None
    folder: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_damping(self.damping)


@dataclass(eq=False)
class Stage:
    """Layers that are rounded on the same inputs, and the chain of blocks that they are in."""

    chain: str | None = None
    layers: list[str] = field(default_factory=list)


def round_by_blocks(
    model: nn.Module, targets: Sequence[Target], data: Any, options: Options
) -> tuple[dict[str, Rounded], Figures, list[str]]:
    """Round the targets by GPTQ, in the order in which the model calls them.

    Args:
        model: A model in eval mode whose layers may be replaced; its tensors stay as they are.
        targets: The layers.
        data: Calibration batches.
        options: Options.

    Returns:
        The rounded weights and the relative output errors (GPTQ's, and those of rounding to nearest) by path, and notes.

    Raises:
        DataError: If the data is empty or holds NaN, or the model gives NaN on it.
        ConfigError: If the folder holds another run.
    """
    calls = _calls(data, model)
    by_path = {target.path: target for target in targets}
    notes: list[str] = []
    with torch.no_grad():
        seen, chains = _probe(model, by_path, calls[0])
        run = _Run(model, by_path, calls, options, notes)
        for stage in _stages(seen, chains, by_path):
            if stage.chain is not None:
                run.chain(stage.chain, chains[stage.chain], stage.layers)
            else:
                run.whole(stage.layers)
        left = [path for path in by_path if path not in run.rounded]
        if left and len(calls) > 1:  # another batch than the first may reach them
            run.whole(left)
        else:
            run.unreached += left
        run.uncalled()
    return run.rounded, run.figures, notes


class _Run:
    """The state of one run: what is rounded so far."""

    def __init__(
        self, model: nn.Module, targets: dict[str, Target], calls: list[Call], options: Options, notes: list[str]
    ) -> None:
        self.model, self.targets, self.calls, self.options, self.notes = model, targets, calls, options, notes
        self.rounded: dict[str, Rounded] = {}
        self.figures: Figures = {}
        self.shared: dict[int, Rounded] = {}
        self.unreached: list[str] = []
        self.done = _Kept(options, model, targets, calls) if options.folder is not None else None

    def chain(self, name: str, blocks: list[str], layers: list[str]) -> None:
        """Round the layers of blocks that feed each other."""
        try:
            feed = _Feed.captured(self.model, [self.model.get_submodule(block) for block in blocks], self.calls)
        except _BrokenChainError as error:
            self.notes.append(f'The blocks of {name!r} were run as parts of the whole model, because {error}.')
            for block in blocks:
                inside = [path for path in layers if _within(path, block)]
                if inside:
                    self.whole(inside)
            return
        for number, block in enumerate(blocks):
            module = self.model.get_submodule(block)
            inside = [path for path in layers if _within(path, block)]
            if inside:
                self._round(inside, partial(feed.run, module, number))
            # The block may be a layer itself, and then another module now.
            feed.advance(self.model.get_submodule(block), number)

    def whole(self, layers: list[str]) -> None:
        """Round layers on forwards of the whole model."""

        def run() -> None:
            for index, (args, kwargs) in enumerate(self.calls):
                with taken_by(type(self.model).__name__, (args, kwargs), index):
                    self.model(*args, **kwargs)

        self._round(layers, run)

    def uncalled(self) -> None:
        """Round to nearest what the data never reached, and say so."""
        if self.unreached:
            self.notes.append(f'The calibration data never reached {listed(self.unreached)}: rounded to nearest.')
        for path in self.unreached:
            self._keep(path, self._nearest(path), None)

    def _round(self, layers: list[str], run: Callable[[], Any]) -> None:
        if self.done is not None:
            kept = self.done.load(layers)
            if kept is not None:
                for path, (rounded, figures) in kept.items():
                    self._keep(path, rounded, figures)
                    self.unreached += [path] if figures[0] is None else []
                return
        grams = _grams({path: self.model.get_submodule(path) for path in layers}, run)
        for path in layers:
            gram = grams.get(path)
            if gram is None:
                self.unreached.append(path)
                self._keep(path, self._nearest(path), None)
                continue
            rounded, figures = self._rounded(path, gram)
            self._keep(path, rounded, figures)
        if self.done is not None:
            self.done.save({path: (self.rounded[path], self.figures.get(path, (None, None))) for path in layers})

    def _rounded(self, path: str, gram: Tensor) -> tuple[Rounded, tuple[float, float]]:
        target, options = self.targets[path], self.options
        weight = target.weight
        if not bool(gram.isfinite().all()):
            raise DataError(
                f'The inputs of {path!r} hold NaN or an infinity on the calibration data. '
                'Does the model give finite outputs on it?'
            )
        nearest, kept = self._nearest(path), self.shared.get(id(target.layer.weight))
        try:
            # Layers that share a weight keep sharing it: the one that is called first decides.
            found = kept or gptq_round(
                weight,
                gram,
                target.grid,
                damping=options.damping,
                act_order=options.act_order,
                scale_dtype=options.scale_dtype,
            )
        except DataError as error:
            raise DataError(f'{path!r}: {error}') from error
        errors = output_errors(weight, found.values(weight.dtype), gram)
        plain = output_errors(weight, nearest.values(weight.dtype), gram)
        # Outputs are independent of each other, so each may keep the better of the two.
        worse = errors > plain
        if kept is None and bool(worse.any()) and found.scales.dtype == nearest.scales.dtype:
            codes, scales = found.codes.clone(), found.scales.clone()
            zeros = None if found.zeros is None or nearest.zeros is None else found.zeros.clone()
            codes[worse], scales[worse] = nearest.codes[worse], nearest.scales[worse]
            if zeros is not None and nearest.zeros is not None:
                zeros[worse] = nearest.zeros[worse]
            found, errors = Rounded(target.grid, codes, scales, zeros), torch.minimum(errors, plain)
        nothing = output_errors(weight, torch.zeros_like(weight), gram)
        signal, kept_error, plain_error = (float(in_double(each).sum()) for each in (nothing, errors, plain))
        return found, (kept_error / (signal or 1.0), plain_error / (signal or 1.0))

    def _nearest(self, path: str) -> Rounded:
        return round_weight(self.targets[path].weight, self.targets[path].grid, self.options.scale_dtype)

    def _keep(self, path: str, rounded: Rounded, figures: tuple[float | None, float | None] | None) -> None:
        target = self.targets[path]
        rounded = self.shared.setdefault(id(target.layer.weight), rounded)
        self.rounded[path] = rounded
        if figures is not None:
            self.figures[path] = figures
        parent, _, name = path.rpartition('.')
        if name:
            setattr(self.model.get_submodule(parent), name, stand_in(target, rounded).eval())


# -- what the model calls -----------------------------------------------------------------------------------


def _calls(data: Any, model: nn.Module) -> list[Call]:
    """Read batches; unlike images, texts may have another length in each."""
    if data is None or isinstance(data, (str, bytes, Mapping)):
        raise ConfigError(
            f'Calibration data is an iterable of batches, such as a DataLoader or a list, but got {type(data).__name__}. '
            'Text is tokenized and cut first: see `token_windows`.'
        )
    device = next((parameter.device for parameter in model.parameters()), None)
    try:
        batches = [data] if isinstance(data, Tensor) else list(data)
    except TypeError:
        raise ConfigError(
            f'Calibration data is an iterable of batches, such as a DataLoader or a list, but got {type(data).__name__}.'
        ) from None
    if not batches:
        raise DataError('The calibration data is empty. An iterator can be used once only: give a list or a DataLoader.')
    calls = []
    for index, batch in enumerate(batches):
        try:
            calls.append(Batches.of([batch], device=device)[0])
        except DataError as error:
            raise DataError(str(error).replace('Batch 0', f'Batch {index}')) from None
        if any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in tree_leaves(calls[-1])):
            raise DataError(f'Batch {index} of the calibration data holds an empty tensor.')
    return calls


def _probe(model: nn.Module, targets: Mapping[str, Target], call: Call) -> tuple[list[str], dict[str, list[str]]]:
    """Run one batch: the paths of layers and blocks in the order of their calls, and the lists of blocks."""
    chains = _chains(model, targets)
    members = [block for blocks in chains.values() for block in blocks]
    seen: list[str] = []
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda module, args, path=path: seen.append(path))
        for path in dict.fromkeys([*targets, *members])
    ]
    try:
        args, kwargs = call
        model(*args, **kwargs)
    except StropError:
        raise
    except Exception as error:
        raise DataError(
            f'The model fails on the first batch of the calibration data: {type(error).__name__}: {error}. A batch is a '
            'tensor, a mapping of keyword arguments, or a tuple whose first item is one of these.'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return seen, chains


def _chains(model: nn.Module, targets: Mapping[str, Target]) -> dict[str, list[str]]:
    """Return the lists of modules that share the layers out best: list -> paths of its members.

    A long list is better than a short one, because less is rounded at once, and one of equal members (decoder layers) better
    than one of different ones (the parts of a decoder layer), because that is what is repeated.
    """

    def best(path: str, module: nn.Module) -> tuple[int, dict[str, list[str]]]:
        inner: dict[str, list[str]] = {}
        most = 0
        for name, child in module.named_children():
            worth, found = best(f'{path}.{name}' if path else name, child)
            most, inner = max(most, worth), {**inner, **found}
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            members = {f'{path}.{name}' if path else name: member for name, member in module._modules.items()}
            holding = [type(members[one]) for one in members if any(_within(target, one) for target in targets)]
            worth = len(holding) * (2 if len(set(holding)) == 1 else 1)
            if len(holding) > 1 and worth >= most:
                return worth, {path: list(members)}
        return most, inner

    return best('', model)[1]


def _stages(seen: Sequence[str], chains: Mapping[str, list[str]], targets: Mapping[str, Target]) -> list[Stage]:
    """Return what is rounded together, in the order of the calls.

    Blocks that run once each and in order are a chain, looked at more closely later; others are stages of their own. Layers
    outside of blocks that are called one after the other are one stage.
    """
    stages: list[Stage] = []
    of_block: dict[str, Stage] = {}
    chained = {name for name, blocks in chains.items() if [path for path in seen if path in blocks] == blocks}
    lists = {block: name for name, blocks in chains.items() for block in blocks}
    for path in dict.fromkeys(seen):
        if path not in targets:
            continue
        block = next((block for block in lists if _within(path, block)), None)
        if block is None:
            if not stages or stages[-1] in of_block.values():
                stages.append(Stage())
            stages[-1].layers.append(path)
            continue
        name = lists[block]
        key = f'chain {name}' if name in chained else f'block {block}'
        if key not in of_block:
            of_block[key] = Stage(name if name in chained else None)
            stages.append(of_block[key])
        of_block[key].layers.append(path)
    for path in targets:  # an expert that no token of the first batch was sent to may be called on another one
        block = next((block for block in lists if _within(path, block)), None)
        stage = None if block is None else of_block.get(f'chain {lists[block]}', of_block.get(f'block {block}'))
        if stage is not None and path not in seen:
            stage.layers.append(path)
    return stages


def _within(path: str, block: str) -> bool:
    return path == block or path.startswith(f'{block}.')


# -- what goes from block to block --------------------------------------------------------------------------


class _BrokenChainError(Exception):
    """Members of a list don't simply feed each other."""


class _EnoughError(Exception):
    """Stops a forward whose rest is not needed."""


@dataclass(frozen=True)
class _FromPrevious:
    """An argument that is one of the tensors that the block before gave."""

    place: int


class _Feed:
    """The arguments of each block on each batch; what earlier blocks give is filled in when they were run."""

    def __init__(self, calls: list[list[tuple[list[Any], Any]]]) -> None:
        #: For each batch and each block the flat arguments and their structure.
        self.calls = calls
        self.carried: list[list[Any]] = [[] for _ in calls]

    @classmethod
    def captured(cls, model: nn.Module, blocks: list[nn.Module], calls: Sequence[Call]) -> _Feed:
        """Run the model on every batch up to the last block, and note what each block is called with.

        Where the blocks of the first batch share all that the ones before them don't give, the rest run up to the first block.
        """
        first, last = cls._capture(model, blocks, calls[0])
        cls._check(cls([first]), blocks, last)
        found = [first]
        alike = _alike(first)
        for index, call in enumerate(calls[1:], 1):
            if alike:
                [(leaves, structure)], _ = cls._capture(model, blocks[:1], call, index)
                taken = [(_filled(marked, leaves), structure) for marked, _ in first]
            else:
                taken, _ = cls._capture(model, blocks, call, index)
            found.append(_interned(taken, first))
        return cls(found)

    @staticmethod
    def _capture(
        model: nn.Module, blocks: list[nn.Module], call: Call, index: int = 0
    ) -> tuple[list[tuple[list[Any], Any]], list[Any]]:
        taken: list[tuple[list[Any], Any]] = []
        given: list[Any] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            leaves, structure = tree_flatten((args, kwargs))
            number = len(taken)
            if number >= len(blocks) or module is not blocks[number]:
                raise _BrokenChainError('they are not called one after the other on every batch')
            places = {id(leaf): place for place, leaf in enumerate(given) if isinstance(leaf, Tensor)} if number else {}
            marked = [_FromPrevious(places[id(leaf)]) if id(leaf) in places else leaf for leaf in leaves]
            if number and not any(isinstance(leaf, _FromPrevious) for leaf in marked):
                raise _BrokenChainError('what one gives is not what the next one takes')
            taken.append((marked, structure))
            if number == len(blocks) - 1:
                given[:] = leaves
                raise _EnoughError

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given[:] = tree_leaves(output)

        hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
        hooks += [block.register_forward_hook(after, with_kwargs=True) for block in blocks]
        args, kwargs = call
        try:
            with taken_by(type(model).__name__, call, index):
                model(*args, **kwargs)
        except _EnoughError:
            return taken, given
        finally:
            for hook in hooks:
                hook.remove()
        raise _BrokenChainError('the last one is not called on every batch')

    @staticmethod
    def _check(feed: _Feed, blocks: list[nn.Module], last: list[Any]) -> None:
        """Run the blocks by themselves once: the last one must be given what it is given in the model."""
        for number, block in enumerate(blocks[:-1]):
            feed.advance(block, number)
        mine, _ = feed._arguments(0, len(blocks) - 1)
        for one, other in zip(mine, last, strict=True):
            if (
                isinstance(one, Tensor)
                and one.is_floating_point()
                and not torch.allclose(one, other, 1e-4, 1e-5, equal_nan=True)
            ):
                raise _BrokenChainError('they give something else when they are run by themselves')

    def run(self, block: nn.Module, number: int) -> Iterator[Any]:
        """Run a block on every batch."""
        for batch in range(len(self.calls)):
            leaves, structure = self._arguments(batch, number)
            args, kwargs = tree_unflatten(leaves, structure)
            yield block(*args, **kwargs)

    def advance(self, block: nn.Module, number: int) -> None:
        """Run a block and keep what it gives for the next one."""
        if number + 1 == len(self.calls[0]):
            return
        for batch, output in enumerate(self.run(block, number)):
            needed = {leaf.place for leaf in self.calls[batch][number + 1][0] if isinstance(leaf, _FromPrevious)}
            leaves = tree_leaves(output)
            self.carried[batch] = [leaf if place in needed else None for place, leaf in enumerate(leaves)]

    def _arguments(self, batch: int, number: int) -> tuple[list[Any], Any]:
        """Return what a block is called with: copies, since it may change them and is run more than once."""
        leaves, structure = self.calls[batch][number]
        carried = self.carried[batch]
        given = [carried[leaf.place] if isinstance(leaf, _FromPrevious) else leaf for leaf in leaves]
        copies = {id(leaf): leaf.clone() for leaf in given if isinstance(leaf, Tensor)}
        return [copies.get(id(leaf), leaf) for leaf in given], structure


def _alike(taken: list[tuple[list[Any], Any]]) -> bool:
    """Whether each block is called as the first one is, but for what the block before it gives."""
    leaves, structure = taken[0]
    return all(
        other == structure and all(isinstance(one, _FromPrevious) or one is leaf for one, leaf in zip(marked, leaves))
        for marked, other in taken
    )


def _filled(marked: list[Any], leaves: list[Any]) -> list[Any]:
    return [one if isinstance(one, _FromPrevious) else leaf for one, leaf in zip(marked, leaves, strict=True)]


def _interned(taken: list[tuple[list[Any], Any]], first: list[tuple[list[Any], Any]]) -> list[tuple[list[Any], Any]]:
    """Replace tensors that are equal to the first batch's (masks, positions) by those, so that they are kept once."""
    same: dict[tuple[int, int], Any] = {}

    def one(leaf: Any, known: Any) -> Any:
        if (
            not isinstance(leaf, Tensor)
            or not isinstance(known, Tensor)
            or leaf.shape != known.shape
            or leaf.dtype != known.dtype
        ):
            return leaf
        key = id(leaf), id(known)
        if key not in same:
            same[key] = known if torch.equal(leaf, known) else leaf
        return same[key]

    return [
        ([one(leaf, known) for leaf, known in zip(leaves, others)] if len(leaves) == len(others) else leaves, structure)
        for (leaves, structure), (others, _) in zip(taken, first, strict=True)
    ]


def _grams(layers: Mapping[str, nn.Module], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Return the sum of x x^T over the inputs of each layer that `run` reaches; layers with one input share the product."""
    found: dict[str, Tensor] = {}
    last: list[tuple[Tensor, int, Tensor]] = []

    def hook(path: str) -> Callable[..., None]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            changes = 0 if given.is_inference() else given._version  # in place it may have become another one
            gram = next((product for inputs, version, product in last if inputs is given and version == changes), None)
            if gram is None:
                rows = given.detach().reshape(-1, given.shape[-1])
                rows = rows if rows.dtype == torch.float64 else rows.float()
                gram = rows.t() @ rows
                # The query, key and value layers follow each other: one product is remembered, not all of the block's.
                last[:] = [(given, changes, gram)]
            found[path] = found[path] + gram if path in found else gram.clone()

        return before

    with _hooked(layers, hook):
        result = run()
        for _ in result if isinstance(result, Iterator) else ():
            last.clear()
    return found


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], hook: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(hook(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


# -- finished blocks ----------------------------------------------------------------------------------------


class _Kept:
    """A folder with the rounded layers of finished blocks, for one model, data and options.

    The first finished block makes it that run's own: a run that stops before, at an option out of range, leaves it as it was.
    """

    def __init__(self, options: Options, model: nn.Module, targets: Mapping[str, Target], calls: Sequence[Call]) -> None:
        if options.folder is None:
            raise ConfigError('A folder is needed to keep finished blocks.')
        self.folder = Path(options.folder)
        self.targets = targets
        # What a layer is given depends on all that the model holds, not on the rounded weights alone.
        state = [leaf for name, value in model.state_dict().items() if isinstance(value, Tensor) for leaf in (name, value)]
        self.mine = {
            'format': 'strop.gptq/2',
            'options': f'damping {options.damping}, act_order {options.act_order}, scales {options.scale_dtype}',
            'data': _digest(leaf for call in calls for leaf in tree_leaves(call)),
            'layers': {path: f'{target.grid}, search {target.grid.search}' for path, target in targets.items()},
            'weights': _digest(state),
        }
        self._is_mine()

    def _is_mine(self) -> bool:
        """Whether the folder has the head of this run; False if it has none.

        Raises:
            ConfigError: If it has that of another one.
        """
        head = self.folder / 'run.json'
        if not head.exists():
            return False
        there = read_json(head, 'the head of a GPTQ run')
        differing = [name for name in self.mine if not isinstance(there, dict) or there.get(name) != self.mine[name]]
        if differing:
            raise ConfigError(
                f'{self.folder} holds blocks of another run: {listed(differing)} differ. Give another folder, or empty it.'
            )
        return True

    def _file(self, layers: Sequence[str]) -> Path:
        return self.folder / f'{hashlib.blake2b(" ".join(layers).encode(), digest_size=8).hexdigest()}.safetensors'

    def load(self, layers: Sequence[str]) -> dict[str, tuple[Rounded, tuple[float | None, float | None]]] | None:
        """Return the rounded layers if they were finished before."""
        file = self._file(layers)
        if not file.exists():
            return None
        try:
            state = load_file(file)
            return {path: self._layer(path, state) for path in layers}
        except (SafetensorError, KeyError, OSError) as error:
            raise ConfigError(
                f'{file} is damaged ({type(error).__name__}: {error}). Delete it, and its block is rounded again.'
            ) from error

    def _layer(self, path: str, state: Mapping[str, Tensor]) -> tuple[Rounded, tuple[float | None, float | None]]:
        grid, device = self.targets[path].grid, self.targets[path].weight.device
        zeros = None if grid.symmetric else state[f'{path}.zeros'].to(device)
        error, nearest = (None if value != value else value for value in state[f'{path}.figures'].tolist())
        return Rounded(grid, state[f'{path}.codes'].to(device), state[f'{path}.scales'].to(device), zeros), (error, nearest)

    def save(self, layers: Mapping[str, tuple[Rounded, tuple[float | None, float | None]]]) -> None:
        """Write finished layers, all or none."""
        if not self._is_mine():
            atomic_write(self.folder / 'run.json', json.dumps(self.mine, indent=1) + '\n')
        state = {}
        for path, (rounded, figures) in layers.items():
            state[f'{path}.codes'], state[f'{path}.scales'] = rounded.codes.cpu(), rounded.scales.cpu()
            if rounded.zeros is not None:
                state[f'{path}.zeros'] = rounded.zeros.cpu()
            values = [float('nan') if value is None else value for value in figures]
            state[f'{path}.figures'] = torch.tensor(values, dtype=torch.float64)
        with atomic_path(self._file(list(layers))) as temporary:
            save_file({name: value.contiguous() for name, value in state.items()}, temporary)


def _digest(leaves: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f'{tuple(leaf.shape)}{leaf.dtype}'.encode())
            digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
