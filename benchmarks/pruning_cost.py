"""What pruning itself costs: trace, channel units and a cut to half by L1, beside Torch-Pruning's graph and cut.

Both prune the same fresh model at ratio 0.5 by an L1 norm, the classifier kept, in one process and in turns (the order changes
from round to round). Strop is timed twice: as users call it, with its check of the result by numbers, and without, which is
what Torch-Pruning does. Reported: medians of the rounds, and the ratio of Strop's to Torch-Pruning's. Torch-Pruning is told the
attention heads, where a model has some, as its examples do.

    python benchmarks/pruning_cost.py --out benchmarks/results/pruning_cost.json
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from coverage import attention_hints, parameters_of
from record import write_result
from torch import nn

from strop.graph import channel_units
from strop.pruning import prune

MODELS = ('resnet18', 'resnet50', 'mobilenetv2_100', 'densenet121', 'convnext_tiny', 'vit_base_patch16_224')
RATIO = 0.5


def by_strop(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    return prune(model, inputs, ratio=RATIO, importance='l1', verify=False, inplace=True).model


def by_strop_verified(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    return prune(model, inputs, ratio=RATIO, importance='l1').model


def by_peer(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    import torch_pruning as tp

    classifier = model.get_classifier()  # type: ignore[operator]
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=RATIO,
        ignored_layers=[classifier],
        num_heads=attention_hints(model),
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    return model


TOOLS: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
    'strop': by_strop,
    'strop_verified': by_strop_verified,
    'torch_pruning': by_peer,
}


def timed(make: Callable[[], nn.Module], tool: str, inputs: torch.Tensor) -> tuple[float, int]:
    """Seconds of one pruning of a fresh model, and the parameters that are left."""
    model = make()
    gc.collect()
    begin = time.perf_counter()
    pruned = TOOLS[tool](model, inputs)
    return time.perf_counter() - begin, parameters_of(pruned)


def units_only(make: Callable[[], nn.Module], inputs: torch.Tensor) -> float:
    model = make()
    begin = time.perf_counter()
    channel_units(model, inputs)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=MODELS, help='timm names')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', help='write the result file, such as benchmarks/results/pruning_cost.json')
    options = parser.parse_args()
    os.environ['TIMM_FUSED_ATTN'] = '0'  # as Torch-Pruning's examples have it; Strop needs it neither way
    import timm

    warnings.simplefilter('ignore')
    torch.set_num_threads(options.threads)
    rows: dict[str, Any] = {}
    for name in options.models:
        state = timm.create_model(name).eval().state_dict()

        def make(name: str = name, state: dict[str, torch.Tensor] = state) -> nn.Module:
            with torch.device('meta'):
                model = timm.create_model(name).eval()
            model.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
            return model.requires_grad_(True)

        inputs = torch.randn(1, 3, 224, 224)
        names = list(TOOLS)
        samples: dict[str, list[float]] = {tool: [] for tool in (*names, 'strop_units')}
        left = {tool: timed(make, tool, inputs)[1] for tool in names}  # also the warm-up
        for index in range(options.rounds):
            for tool in names[index % len(names) :] + names[: index % len(names)]:
                samples[tool].append(timed(make, tool, inputs)[0])
            samples['strop_units'].append(units_only(make, inputs))
        medians = {tool: float(np.median(values)) for tool, values in samples.items()}
        rows[name] = {
            'parameters': sum(value.numel() for value in make().parameters()),
            'left': left,
            'median_s': medians,
            'ratio': medians['strop'] / medians['torch_pruning'],
            'ratio_verified': medians['strop_verified'] / medians['torch_pruning'],
            'samples_s': samples,
        }
        shown = ', '.join(f'{tool} {value:.3f} s' for tool, value in medians.items())
        print(
            f'{name}: {shown}; ratio {rows[name]["ratio"]:.2f}, with the check {rows[name]["ratio_verified"]:.2f}', flush=True
        )
    if options.out:
        settings = {'ratio': RATIO, 'rounds': options.rounds, 'threads': options.threads}
        write_result(options.out, 'pruning_cost', {**settings, 'models': rows}, packages=('torch-pruning', 'timm'))


if __name__ == '__main__':
    main()
