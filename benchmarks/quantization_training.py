"""What a CIFAR ResNet-20 scores with 8, 4 and 2 bits for weights and activations, trained with them and not.

The network, its published weights and the images ("CIFAR-10-JPEG": CIFAR-10 stored as lossy JPEG) are those of
`pruning_accuracy.py`. For each seed it is fine-tuned on the images first. From there every row but `ptq8` is fine-tuned once
more in one and the same way, `fp32` too: the same images in the same order, the same optimizer, learning rates and epochs.

- `fp32`: no quantization.
- `ptq8`: 8 bits, steps from the ranges of training images, no training.
- `qat8`, `plain4`, `plain2`: steps from ranges while training (a step for each channel of a weight; moving average for inputs).
- `lsq4`, `lsq2`: learned steps (as many as above) that begin with the least squared error of rounding.
- With `--full`, `lsq4-paper` and `lsq2-paper`: learned steps from the beginning of the paper, `2 mean(|x|) / sqrt(p)`; `lsq+4`
  and `lsq+2`: learned steps and offsets from the beginning of LSQ+; `lsq4-ptq` and `lsq2-ptq`: learned steps that begin with
  those of calibration, where `plain4` and `plain2` begin, too; `lsq4-tensor`: one step for a whole weight; `pact4`, `lsq3`,
  `plain3`.

Below 8 bits the first convolution and the last layer have 8 bits. Learned steps are not decayed. Training images only are used
to fine-tune and calibrate; test images are scored once in the end. Methods and settings were chosen with `--score held`, which
scores the last 5,000 training images, that nothing is trained on, in place of the test images. `converted` compares the model
with integer weights and folded batch norms with the one that was trained, on the first 1,000 of the images that are scored.

Cells (a base for each seed; each row and seed) are kept in the work folder, so that the benchmark resumes.

    python benchmarks/quantization_training.py --data cifar10_jpeg.npz --weights cifar10_resnet20_weights.npz
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pruning_accuracy import Images, ResNet20, accuracy, fine_tune, load_data, load_weights, normalised
from record import write_result

from strop.files import atomic_write
from strop.quantization import QConfig, calibrate, convert, parameter_groups, prepare_qat


def paper(bits: int) -> QConfig:
    """LSQ from the beginning of its paper."""
    chosen = QConfig.of(f'lsq{bits}')
    sides = (None if spec is None else replace(spec, observer='LSQObserver') for spec in (chosen.weight, chosen.input))
    return QConfig(*sides)


QCONFIGS: dict[str, str | QConfig | None] = {
    'fp32': None,
    'ptq8': 'int8',
    'qat8': 'int8',
    'plain4': 'int4',
    'lsq4': 'lsq4',
    'lsq2': 'lsq2',
    'plain2': 'int2',
    'lsq4-paper': paper(4),
    'lsq2-paper': paper(2),
    'lsq4-ptq': 'lsq4',
    'lsq2-ptq': 'lsq2',
    'lsq+4': 'lsq+4',
    'lsq+2': 'lsq+2',
    'lsq4-tensor': QConfig.of('lsq4', per_channel=False),
    'pact4': 'pact4',
    'lsq3': 'lsq3',
    'plain3': 'int3',
}
DEFAULT = ('fp32', 'ptq8', 'qat8', 'plain4', 'lsq4', 'lsq2', 'plain2')


def first_last(row: str) -> Any:
    return 'lsq8' if row == 'lsq4-tensor' else 'auto'


class Study:
    """The cells of one setting, kept in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(options.work) / f'{options.images}-{options.epochs}-{options.lr}-{options.batch}-{options.score}'
        self.folder.mkdir(parents=True, exist_ok=True)
        self._data: dict[str, Images] | None = None

    @property
    def data(self) -> dict[str, Images]:
        if self._data is None:
            self._data = load_data(self.options.data, self.options.images, 5000, self.options.device)
            if self.options.quick:
                self._data = {part: (x[:1000], y[:1000]) for part, (x, y) in self._data.items()}
        return self._data

    def scores(self, model: torch.nn.Module) -> dict[str, float]:
        return {'score': accuracy(model, self.data[self.options.score])}

    def base(self, seed: int) -> tuple[ResNet20, dict[str, Any]]:
        """The network of the published weights, fine-tuned on the images."""
        model = ResNet20()
        weights, cell = self.folder / f'base-{seed}.pt', self.folder / f'base-{seed}.json'
        if not cell.exists():
            model.load_state_dict(load_weights(self.options.weights), strict=False)
            model.to(self.options.device)
            begin = time.perf_counter()
            fine_tune(model, self.data['train'], seed, self.options)
            figures = {**self.scores(model), 'seconds': time.perf_counter() - begin}
            torch.save({name: value.cpu() for name, value in model.state_dict().items()}, weights)
            atomic_write(cell, json.dumps(figures))
            print(f'base, seed {seed}: {figures}', flush=True)
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.to(self.options.device).eval(), json.loads(cell.read_text())

    def cell(self, row: str, seed: int) -> dict[str, Any]:
        """Quantize, fine-tune and score."""
        file = self.folder / f'{row}-{seed}.json'
        if file.exists():
            return json.loads(file.read_text())
        model: torch.nn.Module = self.base(seed)[0]
        begin = time.perf_counter()
        qconfig = QCONFIGS[row]
        pixels = self.data['train'][0]
        begin_ptq = row.endswith('-ptq')
        if qconfig is not None:
            model = prepare_qat(
                model, f'int{row[3]}' if begin_ptq else qconfig, first_last='int8' if begin_ptq else first_last(row)
            )
        if row == 'ptq8' or begin_ptq:
            calibrate(model, [normalised(part) for part in pixels[:1024].split(128)])
        if begin_ptq:
            model = prepare_qat(model, qconfig, first_last='lsq8')
        if row != 'ptq8':
            fine_tune(model, self.data['train'], seed + 1000, self.options, parameter_groups(model, 5e-4))
        figures: dict[str, Any] = {**self.scores(model), 'seconds': time.perf_counter() - begin}
        if qconfig is not None:
            integers = convert(copy.deepcopy(model).cpu(), normalised(pixels[:16].cpu()))
            few = tuple(part[:1000].cpu() for part in self.data[self.options.score])
            figures['converted'] = {'first 1,000': accuracy(integers, few), 'fake-quantized': accuracy(model.cpu(), few)}
        atomic_write(file, json.dumps(figures))
        print(f'{row}, seed {seed}: {figures}', flush=True)
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='../shared/data/cifar10_jpeg.npz')
    parser.add_argument('--weights', default='../shared/data/cifar10_resnet20_weights.npz')
    parser.add_argument('--images', type=int, default=8000, help='training images')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--lr', type=float, default=0.02)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--rows', nargs='+', choices=QCONFIGS)
    parser.add_argument('--score', choices=('test', 'held'), default='test', help='the images that are scored')
    parser.add_argument('--quick', action='store_true', help='1,000 images and one seed, to see that it runs')
    parser.add_argument('--full', action='store_true', help='all rows, four seeds, 40,000 images and six epochs')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--work', default='work_dirs/quantization_training')
    parser.add_argument('--out', help='write the result file, such as benchmarks/results/quantization_training.json')
    options = parser.parse_args()
    if options.quick:
        options.images, options.epochs, options.seeds = 1000, 1, [0]
    if options.full:
        options.images, options.epochs, options.seeds = 40_000, 6, [0, 1, 2, 3]
    rows = options.rows or (tuple(QCONFIGS) if options.full else DEFAULT)
    torch.set_num_threads(options.threads)
    study = Study(options)
    bases = {seed: study.base(seed)[1] for seed in options.seeds}
    cells = {row: {seed: study.cell(row, seed) for seed in options.seeds} for row in rows}
    figures: dict[str, Any] = {'base': float(np.mean([bases[seed]['score'] for seed in options.seeds]))}
    for row, found in cells.items():
        scores = [found[seed]['score'] for seed in options.seeds]
        figures[row] = {'mean': float(np.mean(scores)), 'lowest': min(scores), 'highest': max(scores)}
    verdicts = {}
    scored = {row: [found[seed]['score'] for seed in options.seeds] for row, found in cells.items()}
    if {'fp32', 'qat8'} <= set(rows):
        verdicts['qat8_within_half_a_point_of_fp32'] = figures['fp32']['mean'] - figures['qat8']['mean'] <= 0.5
    if {'lsq4', 'plain4'} <= set(rows):
        verdicts['lsq4_above_plain4'] = all(a > b for a, b in zip(scored['lsq4'], scored['plain4'], strict=True))
    print(json.dumps({**figures, **verdicts}, indent=2))
    if options.out:
        settings = {name: getattr(options, name) for name in ('images', 'epochs', 'lr', 'batch', 'seeds', 'device', 'score')}
        content = {'data': 'CIFAR-10-JPEG', 'settings': settings, 'figures': figures, 'verdicts': verdicts}
        write_result(options.out, 'quantization_training', {**content, 'bases': bases, 'rows': cells}, packages=('torchao',))


if __name__ == '__main__':
    main()
