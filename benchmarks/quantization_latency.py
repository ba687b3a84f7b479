"""Is 8-bit really faster? Every backend's int8 beside its own floats and the fastest float of all runtimes.

A cell is a model, a batch size and a number of threads; in it everything is measured together, in turns, by
`strop.estimators.measure`: int8, fp32 and (where the runtime has it) bf16 of every backend that runs here. The float model goes
through the same export and the same runtime as the quantized one. Ratios are medians of paired rounds with bootstrap intervals;
above 1 means that int8 is faster.

In turns, a call follows those of a dozen other programs: caches hold their weights, and a core that did wide fp32 vectors comes
back to its clock only after some tenths of a second. So int8 and fp32 of each backend are measured again in bursts, by the same
function: in each round one is called for about `BURST_MS` before a sample, which is the mean of as many calls. That is a model
which serves steadily; in turns, one which is called now and then.

Beside them stands what the processor does in products of large matrices: VNNI alone does four times the multiply-adds of fp32
vectors in the same time, AMX several times more, and no network can gain more than that. Weights are random with batch norms
calibrated on noise: latency doesn't depend on them.

Each cell is written when it is done; a second call goes on. Run it on a machine that does nothing else.

    python benchmarks/quantization_latency.py
    python benchmarks/quantization_latency.py --quick      # ResNet-18, batch 1, one thread, few rounds; writes nothing
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import ROOT, write_result
from torch import nn

from strop.errors import EstimateError
from strop.estimators import measure
from strop.quantization import backends, quantize

BURST_MS = 400  # of int8, before a sample and in it
MODELS = ('resnet18', 'mobilenetv2_100', 'vit_tiny_patch16_224')


def network(name: str) -> nn.Module:
    """Return a model of timm with random weights whose batch norms have seen data."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 224, 224))
    return model.eval()


def calls(result: Any, inputs: torch.Tensor, threads: int) -> dict[str, Any]:
    """Return name -> a call of the quantized and of the float model in one runtime."""
    name = result.backend.name
    found = {f'{name} int8': result.bind(inputs, threads)}
    for precision in result.backend.precisions:
        try:
            found[f'{name} {precision}'] = result.bind(inputs, threads, precision, floats=True)
        except EstimateError as error:  # of a precision that the processor has not
            print(f'{name} is not measured in {precision}: {error}')
    return found


def peaks(threads: int, size: int = 2048) -> dict[str, float]:
    """Return billions of multiply-adds a second in products of square matrices: what the processor gives at best."""
    torch.set_num_threads(threads)
    floats = torch.randn(size, size)
    halves, integers = floats.bfloat16(), torch.randint(-127, 128, (size, size), dtype=torch.int8)
    entries = {
        'f32': partial(torch.mm, floats, floats),
        'bf16': partial(torch.mm, halves, halves),
        'int8': partial(torch._int_mm, integers, integers),
    }
    few = measure({'f32': partial(torch.mm, floats[:16], floats), 'bf16': partial(torch.mm, halves[:16], halves)}, runs=3)
    if few['bf16'].median_ms > 5 * few['f32'].median_ms:  # only imitated, and minutes of it
        del entries['bf16']
    times = measure(entries, runs=15, threads=threads, warmup=2)
    return {name: size**3 / times[name].median_ms / 1e6 for name in entries}


def cell(model: nn.Module, batch: int, threads: int, names: list[str], runs: int, rounds: int) -> dict[str, Any]:
    """Measure everything in one setting."""
    torch.manual_seed(1)
    torch.set_num_threads(threads)
    inputs = torch.randn(batch, 3, 224, 224)
    entries: dict[str, Any] = {}
    facts = {}
    for name in names:
        result = quantize(model, [torch.randn(4, 3, 224, 224) for _ in range(2)], backend=name, check=False)
        facts[name] = {'in_float': list(result.record.left), 'sqnr_db': result.record.sqnr_db}
        entries |= calls(result, inputs, threads)
    times = measure(entries, runs=runs, threads=threads, warmup=3)
    floats = [name for name in entries if not name.endswith('int8')]
    fastest = min(floats, key=lambda name: times[name].median_ms)
    ratios: dict[str, Any] = {}
    for name in names:
        own = [precision for precision in backends()[name].precisions if f'{name} {precision}' in entries]
        row = {f'own {precision}': f'{name} {precision}' for precision in own} | {'fastest float': fastest}
        ratios[name] = {}
        for label, other in row.items():
            ratio = times.ratio(other, f'{name} int8')
            ratios[name][label] = {'value': ratio.value, 'low': ratio.low, 'high': ratio.high}
        print(
            f'{name:12} int8 {times[f"{name} int8"].median_ms:8.2f} ms; faster than '
            + ', '.join(f'{label} {entry["value"]:.2f}x' for label, entry in ratios[name].items()),
            flush=True,
        )
    bursts = {name: in_bursts(name, entries, times[f'{name} int8'].median_ms, threads, rounds) for name in names}
    return {'times': times.to_dict(), 'fastest_float': fastest, 'faster_by': ratios, 'bursts': bursts, 'models': facts}


def in_bursts(name: str, entries: dict[str, Any], median_ms: float, threads: int, rounds: int) -> dict[str, Any]:
    """Measure int8 and fp32 of one backend, each called many times in a row."""
    calls = max(4, math.ceil(BURST_MS / median_ms))
    pair = {label: entries[label] for label in (f'{name} int8', f'{name} f32')}
    times = measure(pair, runs=rounds, settle=calls, calls=calls, threads=threads, warmup=1)
    ratio = times.ratio(f'{name} f32', f'{name} int8')
    print(f'{name:12} in bursts of {calls} calls: int8 {times[f"{name} int8"].median_ms:8.2f} ms; faster than own f32 {ratio}')
    return {'times': times.to_dict(), 'own f32': {'value': ratio.value, 'low': ratio.low, 'high': ratio.high}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=MODELS, help='timm names')
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 16])
    parser.add_argument('--threads', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--backends', nargs='+', default=[name for name, entry in backends().items() if entry.load is not None])
    parser.add_argument('--runs', type=int, default=40)
    parser.add_argument('--bursts', type=int, default=12, help='rounds of bursts')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/quantization_latency.json')
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    if options.quick:
        options.models, options.batches, options.threads, options.runs, options.bursts = ['resnet18'], [1], [1], 10, 3
    names = [name for name in options.backends if backends()[name].available]
    best = {str(threads): peaks(threads) for threads in options.threads}
    print(f'Billions of multiply-adds a second, by threads: {best}', flush=True)
    cells: dict[str, Any] = {}
    if options.out.is_file() and not options.quick:
        cells = json.loads(options.out.read_text())['cells']
    for name in options.models:
        model = network(name)
        for batch in options.batches:
            for threads in options.threads:
                key = f'{name}, batch {batch}, {threads} thread{"s" * (threads != 1)}'
                if key in cells:
                    continue
                print(key, flush=True)
                # Some batches take seconds on slow paths; fewer rounds there keep the whole within an hour.
                cells[key] = cell(
                    model, batch, threads, names, options.runs if batch == 1 else max(8, options.runs // 4), options.bursts
                )
                if not options.quick:
                    packages = ('torchao', 'onnxruntime', 'openvino', 'executorch', 'timm')
                    content = {'runs': options.runs, 'bursts': options.bursts, 'peak_gmacs_by_threads': best, 'cells': cells}
                    write_result(options.out, 'quantization_latency', content, packages=packages)


if __name__ == '__main__':
    main()
