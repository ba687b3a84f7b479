"""Contracts that mutables, mutators, algorithms, strategies, tuners and distillation losses keep, as functions for your tests.

A class of your own that passes the check of its kind works with everything else here. A broken rule raises an
`AssertionError` that states it; other exceptions come from the checked class itself.
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import json
import math
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from strop.algorithms import BaseAlgorithm
from strop.engine import Trainer
from strop.errors import BindingError, ModeError, NotDecidedError, SubnetError, TrainingError
from strop.graph.forward import evaluated
from strop.mutables import (
    AnyOf,
    Guard,
    InputChoice,
    LayerChoice,
    Mutable,
    OneOf,
    Ordered,
    SearchSpaceFile,
    Space,
    Subnet,
    ValueChoice,
    extract,
    load_subnet,
    mutables_of,
    space_of,
)
from strop.mutators import BaseMutator
from strop.randomness import seeded
from strop.registry import MODELS
from strop.search import Constraint, Strategy, TunerStrategy, build_strategy, run

#: So many alternatives of a mutable are tried.
TRIED = 16


def check_mutable(make: Callable[[], Mutable], *inputs: Any) -> None:
    """Check a mutable: its forward is a function of its decision, which survives copies and extraction.

    Args:
        make: Makes a new mutable, each time alike.
        inputs: What its forward takes.

    Raises:
        AssertionError: If a rule is broken.

    >>> check_mutable(lambda: LayerChoice([nn.ReLU(), nn.Tanh()]), torch.randn(2, 3))
    """
    model = _Holder(make()).eval()
    mutable = model.choice
    _require(isinstance(mutable, Mutable), f'`make` must return a Mutable, not a {type(mutable).__name__}')
    name = type(mutable).__name__
    if mutable.decision is None:
        _raises(NotDecidedError, f'{name} without a decision must say so', lambda: model(*inputs))
    space = space_of(model)
    _require(len(space) >= 1, f'{name} must be found in a model that holds it')
    _require(len(mutable.domain) >= 1, f'{name} must have an alternative')
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for subnet in itertools.islice(space.grid(), TRIED):
        mutable.decide(subnet[mutable.key])
        _require(mutable.choice() == subnet.choices[mutable.key], f'{name}.choice() must be what was decided')
        output = model(*inputs)
        _require(_equal(output, model(*inputs)), f'{name} must give the same output twice for one decision')
        for copied in [duplicate(model) for duplicate in _duplicates(mutable)]:
            _require(copied.choice.choice() == mutable.choice(), f'a copy of {name} must keep the decision')
            _require(copied.choice.owner is None, f'a copy of {name} must not be bound')
            _require(_equal(output, copied(*inputs)), f'a copy of {name} must give the same output')
        plain = evaluated(extract(model, subnet))
        _require(not mutables_of(plain), f'{name} must be gone from an extracted model')
        _require(_equal(output, plain(*inputs)), f'the extracted model must give the output of {name}')
    _require(_same_state(state, model.state_dict()), f'decisions of {name} must not be in its state_dict')
    before = mutable.choice()
    wrong = 'no such alternative of any domain'
    _raises(SubnetError, f'{name} must refuse a choice outside its domain', lambda: mutable.decide(wrong))
    _require(mutable.choice() == before, f'a refused choice must leave the decision of {name} as it was')
    mutable.undecide()
    _require(mutable.decision is None, f'{name}.undecide() must forget the decision')


def check_mutator(make: Callable[[nn.Module], BaseMutator], model: nn.Module | None = None, *inputs: Any) -> None:
    """Check a mutator: one model for each, valid draws, verbs that fit together, no trace in weights or copies.

    Args:
        make: Makes the mutator of a model; its class will do.
        model: A model with decisions; a small one of three kinds of them by default.
        inputs: What the model's forward takes.

    Raises:
        AssertionError: If a rule is broken.

    >>> from strop.mutators import RandomMutator
    >>> check_mutator(RandomMutator)
    """
    if model is None:
        model, inputs = small_model(), (torch.randn(3, 4),)
    pristine = copy.deepcopy(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    mutator = make(model)
    name = type(mutator).__name__
    _require(isinstance(mutator, BaseMutator), f'`make` must return a BaseMutator, not a {name}')
    _require(mutator.model is model, f'{name}.model must be the model that it was given')
    _raises(BindingError, f'{name} must refuse a second model', lambda: mutator.prepare_from_supernet(pristine))
    _raises(BindingError, f'a model that has a {name} must refuse another mutator', lambda: make(model))
    _raises(BindingError, f'the model of a {name} must not be exchanged', lambda: setattr(mutator, 'model', pristine))
    foreign = {id(parameter) for parameter in model.parameters()}
    _require(
        not foreign & {id(parameter) for parameter in mutator.parameters()}, f'the parameters of {name} must be its own alone'
    )
    _require(_same_state(state, model.state_dict()), f'binding a {name} must not change the state_dict of the model')

    space = mutator.space
    drawn = []
    for seed in range(8):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            first = mutator.sample_subnet()
            torch.manual_seed(seed)
            second = mutator.sample_subnet()
        subnet = space.subnet(first)
        _require(subnet == space.subnet(second), f'{name}.sample_subnet() must be a function of the global generators')
        mutator.set_subnet(first)
        _require(_choices(mutator.current_subnet()) == _choices(subnet), f'{name}.set_subnet() must make the subnet current')
        model(*inputs)
        drawn.append(subnet)
    if not any(subnet.weighted for subnet in drawn):
        _check_verbs(mutator, drawn, name)
    copied_model, copied = copy.deepcopy((model, mutator))
    _require(copied.model is copied_model, f'{name} and its model, copied together, must stay together')
    copied.set_subnet(drawn[0])
    _require(_choices(mutator.current_subnet()) == _choices(drawn[-1]), f'a copy of {name} must not decide for the first')
    mutator.release()
    make(model).release()


def _check_verbs(mutator: BaseMutator, drawn: list[Subnet], name: str) -> None:
    space = mutator.space
    for subnet in drawn:
        for form in (subnet, subnet.masks(), dict(subnet)):
            mutator.set_subnet(form)
            _require(mutator.current_subnet() == subnet, f'{name}.set_subnet() must read every form of a subnet')
        kept = space.subnet(mutator.mutation(subnet.masks(), prob=0.0))
        _require(kept == subnet, f'{name}.mutation() with probability 0 must change nothing')
        space.subnet(mutator.mutation(subnet.masks(), prob=1.0))
        mutator.set_choices(mutator.current_choices)
        _require(mutator.current_subnet() == subnet, f'{name}.set_choices(current_choices) must change nothing')
        _require(space.subnet(mutator.export_fix_subnet()) == subnet, f'{name}.export_fix_subnet() must be readable again')
    for first, second in itertools.pairwise(drawn):
        child = space.subnet(mutator.crossover(first.masks(), second.masks()))
        inherited = all(
            choice in (first.choices.get(key, choice), second.choices.get(key, choice)) for key, choice in child.choices.items()
        )
        _require(inherited, f'each decision of {name}.crossover() must be that of a parent')
    for kind in ('max', 'min', 'random'):
        mutator.set_choices(mutator.sample_choices(kind))
    mutator.set_subnet(drawn[-1])


def check_algorithm(algorithm: Mapping[str, Any] | Callable[[], BaseAlgorithm], batch: Any) -> None:
    """Check an algorithm: three modes, training steps of both kinds that repeat themselves, copies, bad losses.

    Args:
        algorithm: A config, or a function that makes the algorithm.
        batch: A batch as a loader gives it, `(inputs, labels)` or with the keys `inputs` and `data_samples`; floats.

    Raises:
        AssertionError: If a rule is broken.

    >>> check_algorithm(lambda: BaseAlgorithm(nn.Linear(4, 2)), (torch.randn(6, 4), torch.arange(6) % 2))
    """

    def make() -> BaseAlgorithm:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            built = MODELS.build(copy.deepcopy(dict(algorithm))) if isinstance(algorithm, Mapping) else algorithm()
            _require(isinstance(built, BaseAlgorithm), f'a BaseAlgorithm is needed, not a {type(built).__name__}')
            return built

    made = make()
    name = type(made).__name__
    data = made.data_preprocessor(batch, True)
    inputs, samples = (data['inputs'], data.get('data_samples')) if isinstance(data, Mapping) else data
    losses = made(inputs, samples, mode='loss')
    _require(any('loss' in key for key in losses), f"{name} must return a mapping with a loss for mode='loss'")
    made.eval()
    made(inputs, samples, mode='tensor')
    predictions = made(inputs, samples, mode='predict')
    _require(len(predictions) == len(inputs), f"{name} must return one prediction for each sample for mode='predict'")
    _require(len(made.val_step(batch)) == len(inputs), f'{name}.val_step() must return one prediction for each sample')
    _raises(ModeError, f'{name} must refuse an unknown mode', lambda: made(inputs, samples, mode='train'))

    states = [_trained(make(), batch, wrap, name) for wrap in (OptimWrapper, OptimWrapper, lambda optimizer: optimizer)]
    _require(_same_state(states[0], states[1]), f'training {name} twice from one seed must give equal weights')
    _require(_same_state(states[0], states[2]), f'{name}.train_step() must do the same with a plain optimizer')
    for duplicate in _duplicates(made):
        copied = _trained(duplicate(make()), batch, OptimWrapper, name)
        _require(_same_state(states[0], copied), f'a copy of {name} must train alike')
    fresh = make()
    fresh.load_state_dict(states[0])
    _require(_same_state(states[0], fresh.state_dict()), f'{name} must load the state_dict of another one')

    spoiled = _scaled(batch, float('nan'))
    before = {key: value.detach().clone() for key, value in fresh.named_parameters()}
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    _raises(TrainingError, f'{name} must stop at a loss that is not finite', lambda: fresh.train_step(spoiled, optimizer))
    _require(
        _same_state(before, dict(fresh.named_parameters())), f'a loss that is not finite must not reach the weights of {name}'
    )


def check_trainer(make: Callable[[Path], Trainer]) -> None:
    """Check a trainer: it repeats itself, resumes bit by bit, exports an architecture, and stops at a loss of NaN.

    Args:
        make: Makes the trainer, of two epochs or more and each time alike, for the work directory that it is given.

    Raises:
        AssertionError: If a rule is broken.

    >>> from strop.algorithms import SinglePathTrainer
    >>> data = [(torch.randn(4), index % 2) for index in range(8)]
    >>> def make(folder):
    ...     torch.manual_seed(0)
    ...     model = small_model()
    ...     sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    ...     loss, options = nn.CrossEntropyLoss(), dict(workers=0, work_dir=folder, log_level='ERROR')
    ...     return SinglePathTrainer(model, loss, None, sgd, 2, data, data, **options)
    >>> check_trainer(make)
    Loads checkpoint by ...
    """

    def trained(folder: Path, epochs: int, resume: bool = False) -> Trainer:
        trainer = make(folder)
        trainer.num_epochs = epochs
        trainer.train(resume=resume)
        return trainer

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        first = make(root / 'first')
        name, epochs = type(first).__name__, first.num_epochs
        _require(isinstance(first, Trainer), f'`make` must return a Trainer, not a {name}')
        _require(not (root / 'first').exists(), f'making a {name} must write nothing')
        before = {key: value.detach().clone() for key, value in first.network.state_dict().items()}
        first.train()
        whole = {key: value.detach().clone() for key, value in _state_of(first).items()}
        _require(not _same_state(before, whole), f'{name}.train() must change something')
        _require(_same_state(whole, _state_of(trained(root / 'second', epochs))), f'{name}.train() must repeat itself')
        trained(root / 'third', 1)
        resumed = trained(root / 'third', epochs, resume=True)
        _require(_same_state(whole, _state_of(resumed)), f'{name} must go on from a checkpoint as if it had never stopped')
        metrics = first.validate()
        _require(
            metrics is None or all(math.isfinite(float(value)) for value in metrics.values()),
            f'{name}.validate() must return None or finite numbers by name',
        )
        first.export(root / 'final.json')
        load_subnet(root / 'final.json', first.mutator.space)
        spoiled = make(root / 'spoiled')
        state = {key: value.detach().clone() for key, value in spoiled.network.named_parameters()}
        spoiled.loss = lambda outputs, labels: outputs.sum() * float('nan')
        _raises(TrainingError, f'{name} must stop at a loss that is not finite', spoiled.train)
        _require(
            _same_state(state, dict(spoiled.network.named_parameters())),
            f'a loss that is not finite must not reach the weights of {name}',
        )


def check_strategy(strategy: str | Callable[[], Strategy]) -> None:
    """Check a search strategy: no repetition, constraints, determinism, resumption, an end in a small space.

    Args:
        strategy: A name of `strop.search.STRATEGIES`, or a function that makes the strategy.

    Raises:
        AssertionError: If a rule is broken.

    >>> check_strategy('random')
    """

    def make(**options: Any) -> Strategy:
        return build_strategy({'type': strategy, **options} if isinstance(strategy, str) else strategy())

    name = make().name
    space = Space(
        {'a': OneOf((0, 1, 2)), 'b': Ordered((2, 4, 8)), 'c': AnyOf((1, 2)), 'd': OneOf((0, 1))},
        {'d': ((Guard.on('a', [1, 2]),),)},
    )

    def score(subnet: Subnet) -> float:
        return float(subnet['a'] + subnet['b'] + sum(subnet['c']))

    def found(trials: int, seed: int = 0, **options: Any) -> list[tuple[Subnet, Any]]:
        return [
            (trial.subnet, trial.values)
            for trial in run(space, score, strategy=make(), trials=trials, seed=seed, **options).trials
        ]

    every = found(100)
    _require(len(every) == space.count(), f'{name} must propose every subnet of a small space, and then end')
    _require(len({subnet for subnet, _ in every}) == len(every), f'{name} must not propose a subnet twice')
    _require(found(20) == found(20) == every[:20], f'{name} must repeat itself for one seed, however many trials are asked for')
    bound = Constraint('score', score, low=3, high=8)
    _require(
        all(3 <= score(subnet) <= 8 for subnet, _ in found(12, constraints=[bound])), f'{name} must keep to the constraints'
    )
    store = _memory_store()
    for trials in (3, 11, 20):
        resumed = found(trials, store=store)
    _require(resumed == every[:20], f'{name} must go on from a store as if it had never stopped')


def check_tuner(make: Callable[[], Any], entries: Mapping[str, Any] | None = None, repeats: bool = True) -> None:
    """Check a tuner by NNI's contract: proposals within the space and as JSON, failed trials, imported results, resumption.

    Args:
        make: Makes a new tuner, each time alike; its class will do.
        entries: A search space in NNI's form that it understands; by default one with choices of layers, of one, two and
            any number of inputs, and of a value.
        repeats: Whether it draws only from generators that are seeded, its own or the global ones. With False it need not
            end a search that was broken off with the same trials.

    Raises:
        AssertionError: If a rule is broken.
        TunerError: If the tuner raises an error, or proposes what is not in the space.

    >>> from strop.search import StrategyTuner
    >>> check_tuner(StrategyTuner)
    """
    file = SearchSpaceFile(dict(_TUNED if entries is None else entries))
    name = type(make()).__name__

    def score(subnet: Subnet) -> float:
        if int(subnet.digest, 16) % 5 == 0:
            raise RuntimeError('a trial that fails')
        return float(sum(sum(map(float, choice)) for choice in subnet.choices.values()))

    def search(trials: int, **options: Any) -> list[tuple[Subnet, Any]]:
        found = run(file.space, score, strategy=TunerStrategy(make, file), trials=trials, **options)
        return [(trial.subnet, trial.values) for trial in found.trials]

    whole = search(12)
    _require(len(whole) == 12, f'{name} must have parameters for 12 trials, not only for {len(whole)}')
    store = _memory_store()
    resumed = [search(trials, store=store) for trials in (3, 8, 12)]
    _require(resumed[2][:8] == resumed[1] and resumed[1][:3] == resumed[0], f'{name} must leave finished trials as they are')
    _require(len(resumed[2]) == 12, f'{name} must go on from a store')
    if repeats:
        _require(resumed[2] == whole, f'{name} must go on from a store as if it had never stopped')

    with seeded(0, 'tuner'):
        tuner = make()
        tuner.update_search_space(file.to_dict())
        if hasattr(tuner, 'import_data'):
            done = [(subnet, values) for subnet, values in whole if values is not None]
            data = [{'parameter': file.parameters(subnet, complete=True), 'value': values['score']} for subnet, values in done]
            tuner.import_data(data)
        later: list[Any] = []
        ask = getattr(tuner, 'generate_multiple_parameters', None)
        if ask is not None:
            later += ask([0, 1, 2], st_callback=lambda parameter_id, parameters: later.append(parameters))
        for parameters in later:
            written = json.loads(json.dumps(parameters))
            _require(file.subnet(written) == file.subnet(parameters), f'{name} must propose what JSON can hold')


_TUNED: dict[str, Any] = {
    'layer': {'_type': 'layer_choice', '_value': ['conv', 'pool', 'skip']},
    'one': {'_type': 'input_choice', '_value': {'candidates': ['layer', ''], 'n_chosen': 1}},
    'two': {'_type': 'input_choice', '_value': {'candidates': ['', '', ''], 'n_chosen': 2}},
    'any': {'_type': 'input_choice', '_value': {'candidates': ['layer', 'one'], 'n_chosen': None}},
    'width': {'_type': 'choice', '_value': [8, 16, 32]},
}


def check_distill_loss(make: Callable[[], nn.Module], *inputs: Any) -> None:
    """Check a distillation loss: arguments by name, a finite scalar, a gradient for its first input, copies, half precision.

    Args:
        make: Makes the loss, each time alike; its class will do.
        inputs: What its forward takes, the student's tensor (or tuple of them) first.

    Raises:
        AssertionError: If a rule is broken.

    >>> from strop.distill import KLDivergence
    >>> check_distill_loss(KLDivergence, torch.randn(4, 3), torch.randn(4, 3))
    """

    def made() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make()

    def run(loss: nn.Module, *given: Any, **named: Any) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return loss(*given, **named)

    loss = made()
    name = type(loss).__name__
    _require(isinstance(loss, nn.Module), f'a loss is an nn.Module, not a {name}')
    arguments = inspect.signature(loss.forward).parameters
    by_name = all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in arguments.values())
    _require(by_name and len(arguments) >= len(inputs), f'{name}.forward() must take each of its inputs by name')
    before = copy.deepcopy(inputs)
    result = run(loss, *inputs)
    _require(
        isinstance(result, torch.Tensor) and result.ndim == 0 and result.is_floating_point() and bool(result.isfinite()),
        f'{name} must return a finite scalar',
    )
    _require(all(map(_equal, _tensors(inputs), _tensors(before))), f'{name} must leave its inputs as they are')
    _require(_equal(run(made(), **dict(zip(arguments, inputs))), result), f'{name} must give the same by names of arguments')
    for duplicate in _duplicates(made()):
        _require(_equal(run(duplicate(made()), *inputs), result), f'a copy of {name} must give the same loss')
    if hasattr(loss, 'loss_weight'):
        heavier = made()
        heavier.loss_weight *= 2
        _require(torch.allclose(run(heavier, *inputs), 2 * result), f'{name} must be proportional to its loss_weight')
    _require(bool(run(made(), *_cast(inputs, torch.bfloat16)).isfinite()), f'{name} must be finite in half precision')
    first = [tensor.requires_grad_() for tensor in _tensors(_cast(inputs[:1], torch.float64, copy=True))]
    student = tuple(first) if isinstance(inputs[0], (tuple, list)) else first[0]
    run(made().double(), student, *_cast(inputs[1:], torch.float64)).backward()
    gradients = [tensor.grad for tensor in first if tensor.grad is not None]
    _require(any(bool(gradient.any()) for gradient in gradients), f'{name} must give its first input a gradient')
    _require(all(bool(gradient.isfinite().all()) for gradient in gradients), f'{name} must give finite gradients')


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (tuple, list)) else []


def _cast(value: Any, dtype: torch.dtype, copy: bool = False) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to(dtype, copy=copy) if value.is_floating_point() else value
    return type(value)(_cast(item, dtype, copy) for item in value) if isinstance(value, (tuple, list)) else value


def small_model() -> nn.Module:
    """Return a model of shape (n, 4) -> (n, 2) with a choice of layers, one of inputs and one of a value.

    >>> space_of(small_model()).count()
    27
    """
    return _Small()


def _state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {key: value.detach() for key, value in trainer.network.state_dict().items()}


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerChoice({'linear': nn.Linear(4, 4), 'narrow': nn.Linear(4, 4, bias=False), 'id': nn.Identity()})
        self.source = InputChoice(n_candidates=3, n_chosen=1)
        self.scale = ValueChoice([0.5, 1.0, 2.0])
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return self.head(self.source([x, y, x + y]) * self.scale())


class _Holder(nn.Module):
    def __init__(self, choice: Any) -> None:
        super().__init__()
        self.choice = choice

    def forward(self, *inputs: Any) -> Any:
        return self.choice(*inputs)


def _memory_store() -> Any:
    from optuna.storages import InMemoryStorage

    return InMemoryStorage()


def _trained(algorithm: BaseAlgorithm, batch: Any, wrap: Callable[[Any], Any], name: str) -> dict[str, torch.Tensor]:
    algorithm.train()
    before = {key: value.detach().clone() for key, value in algorithm.named_parameters()}
    optimizer = wrap(torch.optim.SGD(algorithm.parameters(), lr=0.01))
    for step in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(step)
            log = algorithm.train_step(batch, optimizer)
        _require('loss' in log, f"{name}.train_step() must return the sum of its losses as 'loss'")
        _require(bool(torch.isfinite(torch.as_tensor(log['loss']))), f'the loss of {name} must be finite on the given batch')
    _require(not _same_state(before, dict(algorithm.named_parameters())), f'{name}.train_step() must change parameters')
    return {key: value.detach().clone() for key, value in algorithm.state_dict().items()}


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, torch.Tensor):
        return value * factor if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _scaled(item, factor) for key, item in value.items()}
    return type(value)(_scaled(item, factor) for item in value) if isinstance(value, (list, tuple)) else value


def _choices(subnet: Subnet) -> dict[str, Any]:
    return {key: [round(float(part), 5) for part in choice] for key, choice in subnet.choices.items()}


def _duplicates(checked: nn.Module) -> list[Callable[[Any], Any]]:
    # Python pickles by name, and a class made inside a function has none.
    local = '<locals>' in type(checked).__qualname__
    return [copy.deepcopy] if local else [copy.deepcopy, lambda value: pickle.load(io.BytesIO(pickle.dumps(value)))]


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)


def _same_state(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise AssertionError(f'{rule[0].upper()}{rule[1:]}.')


def _raises(kind: type[Exception], rule: str, action: Callable[[], Any]) -> None:
    try:
        action()
    except kind:
        return
    raise AssertionError(f'{rule[0].upper()}{rule[1:]}: a {kind.__name__} was expected, but nothing was raised.')
