"""Is a model with half the multiply-adds really faster? Measured latency of pruned models divided by the original's.

ResNet-50 and MobileNetV2 are pruned to half their MACs (every unit by the same share) with several values of `round_to`,
and all variants of a model are measured together, in turns, on each runtime (strop.estimators.measure). Reported: the median
of paired ratios with its bootstrap interval; 0.5 would be as much faster as there is less to compute. Latency doesn't depend
on the values of weights: they are random.

    python benchmarks/pruning_speed.py --out benchmarks/results/pruning_speed.json
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from record import write_result
from torch import nn

from strop.estimators import count, measure
from strop.pruning import prune

MODELS = ('resnet50', 'mobilenetv2_100')


def variants(name: str, share: float, rounding: list[int], inputs: torch.Tensor) -> dict[str, nn.Module]:
    """The original and its pruned forms."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    found = {'original': model}
    for multiple in rounding:
        found[f'round_to={multiple}'] = prune(model, inputs, budget={'macs': share}, round_to=multiple).model.eval()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=MODELS, help='timm names')
    parser.add_argument('--share', type=float, default=0.5, help='of the MACs')
    parser.add_argument('--round-to', type=int, nargs='+', default=[1, 4, 8, 16, 32])
    parser.add_argument('--runtimes', nargs='+', default=['eager', 'onnxruntime', 'openvino'])
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--runs', type=int, default=40)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', help='write the result file, such as benchmarks/results/pruning_speed.json')
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    inputs = torch.randn(options.batch, 3, options.size, options.size)
    rows: dict[str, Any] = {}
    for name in options.models:
        models = variants(name, options.share, options.round_to, inputs)
        costs = {variant: count(model, inputs) for variant, model in models.items()}
        whole = costs['original']
        rows[name] = {
            variant: {'macs': cost.macs, 'of_macs': cost.macs / whole.macs, 'parameters': cost.params, 'latency': {}}
            for variant, cost in costs.items()
        }
        for runtime in options.runtimes:
            entries = {variant: (model, (inputs,)) for variant, model in models.items()}
            found = measure(entries, runs=options.runs, threads=options.threads, runtime_name=runtime)
            for variant in models:
                ratio = found.ratio(variant, 'original')
                latency = {'median_ms': found[variant].median_ms, 'iqr_ms': found[variant].iqr_ms}
                latency |= {'of_original': ratio.value, 'low': ratio.low, 'high': ratio.high}
                rows[name][variant]['latency'][runtime] = latency
                print(
                    f'{name:18} {runtime:12} {variant:12} {100 * rows[name][variant]["of_macs"]:5.1f} % of the MACs, '
                    f'{latency["median_ms"]:7.2f} ms, {ratio} of the original',
                    flush=True,
                )
    if options.out:
        settings = {'share': options.share, 'batch': options.batch, 'size': options.size, 'threads': options.threads}
        packages = ('timm', 'onnxruntime', 'openvino')
        write_result(options.out, 'pruning_speed', {**settings, 'runs': options.runs, 'models': rows}, packages=packages)


if __name__ == '__main__':
    main()
