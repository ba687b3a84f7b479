"""Scoring subnets of a supernet: what the search loop and the validation loop of subnets share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, is_distributed
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope, init_default_scope
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from strop.codebases import codebase_of
from strop.engine.calibration import kept_batch_norms, recalibrate_batch_norms
from strop.engine.train_loop import unwrapped
from strop.errors import BindingError, ConfigError, StropError, listed, near
from strop.estimators import SpaceEstimator, example_arguments
from strop.graph.forward import evaluated
from strop.mutables import Subnet, extract
from strop.randomness import seeded
from strop.search import Constraint

# Resource -> (name in the space estimator, size of its unit). MMRazor calls MACs flops and counts them in millions.
UNITS = {'flops': ('macs', 1e6), 'macs': ('macs', 1e6), 'params': ('params', 1e6), 'memory': ('activation_bytes', 2**20)}


#: How the message begins that no other subnet can escape.
NO_SUCH_KEY = '`score_key`'


def _on_all_ranks(work: Callable[[], Any]) -> Any:
    """Do something; what fails on one rank fails on all, so that none waits for another."""
    if not is_distributed():
        return work()
    found, error = None, None
    try:
        found = work()
    except Exception as caught:
        error = caught
    told = all_gather_object(None if error is None else f'{type(error).__name__}: {error}')
    if error is not None:
        raise error
    other = next((text for text in told if text is not None), None)
    if other is not None:
        raise StropError(f'Scoring failed on another rank: {other}')
    return found


def _evaluated(evaluator: Any, size: int) -> dict[str, float]:
    """Return the metrics; rank 0 computes them, and the others hear of it where it cannot."""
    if not is_distributed():
        return dict(evaluator.evaluate(size))
    failures: list[Exception] = []

    def noting(compute: Callable[[Any], Any], results: Any) -> Any:
        try:
            return compute(results)
        except Exception as error:
            failures.append(error)
            return {}

    with ExitStack() as stack:
        for metric in evaluator.metrics:
            stack.callback(vars(metric).pop, 'compute_metrics', None)
            metric.compute_metrics = partial(noting, metric.compute_metrics)
        found = dict(evaluator.evaluate(size))

    def told() -> dict[str, float]:
        if failures:
            raise failures[0]
        return found

    return dict(_on_all_ranks(told))


def mutator_of(algorithm: Any) -> Any:
    """Return the algorithm's mutator.

    Raises:
        BindingError: If it has none, or none that is bound.
    """
    mutator = getattr(algorithm, 'mutator', None)
    if mutator is None or not hasattr(mutator, 'space'):
        raise BindingError(
            f'{type(algorithm).__name__} has no mutator, so it has no subnets. Use an algorithm with one, such as '
            "dict(type='SPOS', mutator=dict(type='OneShotMutator'), architecture=...)."
        )
    return mutator


def set_subnet(algorithm: Any, subnet: Mapping[str, Any]) -> None:
    """Make a subnet current by the mutator's `set_subnet`, given as the masks that an overridden one expects."""
    mutator = mutator_of(algorithm)
    mutator.set_subnet(mutator.space.subnet(subnet).masks())


def sample_batch(runner: Any, dataloader: Iterable[Any]) -> Any:
    """Return the model inputs of the first sample, on the model's device; the loader's own iteration is left alone.

    For a model of mmpretrain, mmdet or mmseg it is a tuple, of the inputs and the list of its data sample.
    """
    algorithm = unwrapped(runner.model)
    batch = algorithm.data_preprocessor(_first(dataloader), False)
    inputs = batch['inputs'] if isinstance(batch, Mapping) else batch[0]
    if isinstance(inputs, torch.Tensor):
        samples = codebase_of(getattr(algorithm, 'architecture', algorithm)) and _samples_in(batch)
        return (inputs[:1], samples[:1]) if samples else inputs[:1]
    if isinstance(inputs, Mapping):
        return {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    return inputs[:1]


def sample_arguments(runner: Any, dataloader: Iterable[Any]) -> tuple[Any, ...]:
    """Return `sample_batch` as the positional arguments of a forward."""
    inputs = sample_batch(runner, dataloader)
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _first(dataloader: Iterable[Any]) -> Any:
    # An iterator of a loader that is being trained on would take batches away from it, or begin it anew.
    if isinstance(dataloader, DataLoader) and dataloader.batch_size and not isinstance(dataloader.dataset, IterableDataset):
        return dataloader.collate_fn([dataloader.dataset[0]])
    return next(iter(dataloader))


class Scorer:
    """Score the subnets of a runner's algorithm by its evaluator, with batch norms recalibrated first if asked.

    A scorer can be pickled: it leaves the runner behind and takes the algorithm, the data and the calibration images along.

    Args:
        runner: MMEngine's runner.
        dataloader: Data that subnets are scored on.
        evaluator: Evaluator of the scores.
        calibrate_sample_num: Images of the *training* data for recalibration; none if not positive.
        fp16: Score under autocast.
    """

    def __init__(
        self, runner: Any, dataloader: Any, evaluator: Evaluator, calibrate_sample_num: int = -1, fp16: bool = False
    ) -> None:
        self.runner = runner
        self.dataloader = dataloader
        self.evaluator = evaluator
        self.images = calibrate_sample_num
        self.fp16 = fp16
        self._calibration: list[Any] | None = None
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The runner's model, in any distributed wrapper."""
        return self._model if self.runner is None else self.runner.model

    @property
    def algorithm(self) -> Any:
        """The algorithm, out of any distributed wrapper."""
        return unwrapped(self.model)

    def __getstate__(self) -> dict[str, Any]:
        self.prepare()
        loader = copy.copy(self.dataloader)
        if getattr(loader, '_iterator', None) is not None:
            loader._iterator = None  # the processes of persistent workers stay here
        scope = DefaultScope.get_current_instance()
        taken = {'runner': None, 'dataloader': loader, '_model': self.algorithm, 'scope': scope and scope.scope_name}
        return {**self.__dict__, **taken}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Metrics and transforms may build parts by name only when they are called.
        init_default_scope(state.pop('scope') or 'strop')
        self.__dict__.update(state)

    def prepare(self) -> None:
        """Load the calibration images, if any are asked for; what is wrong with them shows before the first subnet."""
        if self.images > 0:
            self.calibration_batches()

    def metrics(self, subnet: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Return the metrics of a subnet; of the model as it is if None. The model's statistics are left as they were."""
        if subnet is not None:
            set_subnet(self.algorithm, subnet)
        with kept_batch_norms(self.algorithm):
            if self.images > 0:
                recalibrate_batch_norms(self.algorithm, self.calibration_batches(), self._forward, self.images)
            return self._evaluate()

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        self.algorithm.eval()
        for metric in self.evaluator.metrics:
            metric.results.clear()  # where scoring failed, it holds what the subnet before gave
        device = next(self.algorithm.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16 if device == 'cpu' else torch.float16, enabled=self.fp16):
            _on_all_ranks(self._process)
        return _evaluated(self.evaluator, len(self.dataloader.dataset))

    def _process(self) -> None:
        for batch in self.dataloader:
            self.evaluator.process(data_samples=self.model.val_step(batch), data_batch=batch)

    def _forward(self, batch: Any) -> int:
        data = self.algorithm.data_preprocessor(batch, False)
        inputs = data['inputs'] if isinstance(data, Mapping) else data[0]
        self.algorithm(inputs, _samples_in(data), mode='tensor')
        return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)

    def calibration_batches(self) -> list[Any]:
        """Return batches of the training data, drawn once and kept for every subnet."""
        if self._calibration is None:
            config = getattr(self.runner, '_train_dataloader', None)
            if config is None:
                raise ConfigError(
                    '`calibrate_sample_num` recalibrates batch norms on training images, but the config has no '
                    '`train_dataloader`. Add one, or set calibrate_sample_num=-1.'
                )
            seed = self.runner.seed or 0
            loader = self.runner.build_dataloader(config, seed=seed) if isinstance(config, Mapping) else config
            self._calibration = []
            count = 0
            # Seeded, so that a resumed search calibrates on the images that the first part of it took.
            with seeded(seed, f'calibration/{get_rank()}'):
                for batch in loader:
                    self._calibration.append(batch)
                    count += _batch_length(batch)
                    if count >= self.images:
                        break
        return self._calibration


class SubnetScores:
    """The evaluation of a search: a scorer's metrics of a subnet, as numbers. Workers that it is sent to share the weights.

    Args:
        scorer: What scores.
        score_key: The metric that the search is for.

    Raises:
        ConfigError: When called, if the evaluator has no such metric.
    """

    def __init__(self, scorer: Scorer, score_key: str) -> None:
        self.scorer = scorer
        self.score_key = score_key

    def __call__(self, subnet: Mapping[str, Any]) -> dict[str, float]:
        metrics = self.scorer.metrics(subnet)
        if self.score_key not in metrics:
            raise ConfigError(
                f'{NO_SUCH_KEY} {self.score_key!r} is none of the metrics of the evaluator: {listed(metrics)}.'
                f'{near(self.score_key, metrics)}'
            )
        return {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}


def _samples_in(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return batch.get('data_samples')
    return batch[1] if len(batch) > 1 else None


def _batch_length(batch: Any) -> int:
    inputs = batch['inputs'] if isinstance(batch, Mapping) else batch[0]
    return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)


class ResourceMeter:
    """Resources of subnets, by the names and in the units of `constraints_range`.

    'flops' (or 'macs') are millions of multiply-adds and 'params' millions of parameters, of one sample; 'memory' is
    the peak of live activations in MiB; 'latency' is measured, in milliseconds, on this machine.

    Args:
        algorithm: The algorithm whose subnets are measured. A `get_subnet_flops` that a user overrode is used.
        inputs: Inputs of one sample; a tuple are several arguments.
        estimator_cfg: MMRazor's estimator config; of it, `input_shape` replaces `inputs`. `part='backbone'` measures that
            module alone, as the search of a detector's backbone does, on inputs of `input_shape`.

    Raises:
        ConfigError: If there is no such part, or its inputs are unknown.
    """

    def __init__(self, algorithm: Any, inputs: Any, estimator_cfg: Mapping[str, Any] | None = None) -> None:
        self.algorithm = algorithm
        config = dict(estimator_cfg or {})
        shape, part = config.get('input_shape'), config.get('part')
        self.model, binding = algorithm.architecture, mutator_of(algorithm).binding
        if part is not None:
            if shape is None:
                raise ConfigError(
                    f'What {part!r} is measured on is unknown: estimator_cfg=dict(part={part!r}, input_shape=...).'
                )
            self.model, binding = _Part(algorithm.architecture, part), None
        if shape is not None:
            inputs = example_arguments(self.model if part is not None else algorithm, shape)
        self.inputs = inputs
        self.estimator = SpaceEstimator(self.model, inputs if isinstance(inputs, tuple) else (inputs,), binding=binding)

    def measure(self, subnet: Subnet, names: Sequence[str] = ('flops', 'params')) -> dict[str, float]:
        """Return the named resources of a subnet."""
        return {name: self.measure_many([subnet], name)[0] for name in names}

    def measure_many(self, subnets: Sequence[Subnet], name: str) -> list[float]:
        """Return one resource of several subnets."""
        known = [*UNITS, 'latency']
        if name not in known:
            raise ConfigError(f'A resource must be one of {listed(known)}, but got {name!r}.{near(name, known)}')
        if name == 'latency':
            return [self._latency(subnet) for subnet in subnets]
        if name == 'flops' and self._user_flops is not None:
            counted = [self._counted_by_user(subnet) for subnet in subnets]
            if None not in counted:  # which a method that is still empty returns
                return counted  # type: ignore[return-value]
        resource, unit = UNITS[name]
        own = [self.estimator.space.subnet(subnet) for subnet in subnets]
        return [float(value) / unit for value in self.estimator.estimate_many(own, [resource])[resource]]

    def constraints(self, ranges: Mapping[str, Any] | None) -> list[Constraint]:
        """Return search constraints from `constraints_range`, such as `dict(flops=(0, 330))`.

        Raises:
            ConfigError: If a range is not (low, high) of numbers.
        """
        result = []
        for name, bounds in (ranges or {}).items():
            if not (isinstance(bounds, (list, tuple)) and len(bounds) == 2 and all(_is_bound(bound) for bound in bounds)):
                raise ConfigError(f'`constraints_range[{name!r}]` must be (low, high), numbers or None, but got {bounds!r}.')
            low, high = bounds

            def many(subnets: Sequence[Subnet], name: str = name) -> list[float]:
                return self.measure_many(subnets, name)

            many([mutator_of(self.algorithm).space.first()])
            result.append(Constraint(name, low=low or None, high=high, measure_many=many))
        return result

    @property
    def _user_flops(self) -> Callable[[], float | None] | None:
        own = [getattr(self.algorithm, name, None) for name in ('get_subnet_flops', '_init_flops')]
        if all(method is None or method.__module__.split('.')[0] == 'strop' for method in own):
            return None
        return own[0]

    def _counted_by_user(self, subnet: Subnet) -> float | None:
        set_subnet(self.algorithm, subnet)
        assert self._user_flops is not None, 'called only where a user overrode it'
        counted = self._user_flops()
        return None if counted is None else float(counted) / 1e6

    def _latency(self, subnet: Subnet) -> float:
        from strop.estimators import measure

        model = evaluated(extract(self.model, subnet))
        return float(measure({'subnet': (model, self.inputs)}, runs=20, warmup=3)['subnet'].median_ms)


class _Part(nn.Module):
    """A copy of one module of a model, at the same path, run alone."""

    def __init__(self, model: nn.Module, path: str) -> None:
        super().__init__()
        known = [name for name, _ in model.named_children()]
        try:
            found = copy.deepcopy(model.get_submodule(path))
        except AttributeError:
            raise ConfigError(
                f'`part` of estimator_cfg must be the path of a module of the {type(model).__name__}, but got {path!r}.'
                f'{near(path, known)} Its parts are {listed(known)}.'
            ) from None
        *parents, name = path.split('.')
        self._path, holder = path, self
        for parent in parents:
            holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)  # type: ignore[assignment]
        holder.add_module(name, found)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(self._path)(*args, **kwargs)


def _is_bound(bound: Any) -> bool:
    return bound is None or (isinstance(bound, (int, float)) and not isinstance(bound, bool))
