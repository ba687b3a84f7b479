"""What share of a zoo of models can be pruned by half, and is right afterwards: Strop and Torch-Pruning side by side.

Every model and tool is one process, with a limit on the tool's time; the clock starts when the model is built. Results are
kept cell by cell in a file of JSON lines, so that a run can be stopped and continued, and put together in the end.

Strop's cell calls `strop.prune(model, inputs, ratio=0.5)` (by L1, with its own check in float32), and proves equality in
float64 with random indices (`strop.graph.prove`). A model *counts* when

- the proof holds,
- at most 5 % of its parameters lie on axes frozen for want of a rule or of a solution to an equation between lengths,
- at least half of the channels on its prunable axes are gone, and
- no fewer parameters were removed than by Torch-Pruning, where that succeeds.

Torch-Pruning's cell follows its documentation: `MagnitudePruner` at ratio 0.5, the classifier ignored, attention heads told
and module attributes mended as its examples for timm, torchvision and transformers do; if that fails, once more without
the hints. It succeeds when the pruned model runs, returns outputs of the same shape and has fewer parameters. (Whether
what it computes is right is not asked of it.)

    python benchmarks/coverage.py --suite timm --tool torch_pruning     # cells only
    python benchmarks/coverage.py --out benchmarks/results/coverage.json --table benchmarks/results/coverage.md
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from model_zoo import SUITES, Entry, Inputs, call, entries
from record import ROOT, git, write_result
from torch import nn
from torch.utils._pytree import tree_leaves

from strop.files import atomic_write

os.environ.setdefault('HF_HUB_OFFLINE', '1')
RATIO = 0.5
TOOLS = ('torch_pruning', 'strop')
FROZEN_LIMIT, GONE_LIMIT = 0.05, 0.5
BUILD_LIMIT = 180.0
# Reasons of frozen axes that lie in what was inferred, not in the model.
UNSOLVED = {'rule', 'layout', 'tie', 'literal'}
WORK = ROOT / 'work_dirs' / 'coverage'


def tensors_of(out: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]


def shapes_of(model: nn.Module, inputs: Inputs, task: str) -> list[tuple[int, ...]]:
    """Shapes of all outputs; a detector's number of boxes depends on values and is left out."""
    with torch.no_grad():
        shapes = [tuple(leaf.shape) for leaf in tensors_of(call(model, inputs))]
    return [shape[1:] for shape in shapes] if task == 'detection' else shapes


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --------------------------------------------------------------------------------------------------------------------
# Torch-Pruning, as its documentation uses it
# --------------------------------------------------------------------------------------------------------------------
PROJECTIONS = (
    'qkv',
    'qkv_proj',
    'query',
    'key',
    'value',
    'q_proj',
    'k_proj',
    'v_proj',
    'q',
    'k',
    'v',
    'q_lin',
    'k_lin',
    'v_lin',
)


def _heads(module: nn.Module) -> int | None:
    for name in ('num_heads', 'num_attention_heads', 'n_heads', 'n_head'):
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    config = getattr(module, 'config', None)  # newer attention modules of transformers keep it there
    if config is not None and hasattr(module, 'head_dim'):
        return getattr(config, 'num_attention_heads', None)
    return None


def attention_hints(model: nn.Module) -> dict[nn.Module, int]:
    """Number of heads of each projection of an attention module, as the examples pass it."""
    hints: dict[nn.Module, int] = {}
    for module in model.modules():
        heads = _heads(module)
        if heads is None:
            continue
        grouped = getattr(getattr(module, 'config', None), 'num_key_value_heads', None) or heads
        for name in PROJECTIONS:
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear | nn.Conv2d):
                hints[layer] = grouped if name in ('k_proj', 'v_proj') else heads
    return hints


def mend_attention(model: nn.Module, heads_of: dict[nn.Module, int]) -> None:
    """Set the sizes that attention modules keep beside their layers, as the examples do after pruning."""
    for module in model.modules():
        for name in PROJECTIONS:
            layer = getattr(module, name, None)
            if layer not in heads_of:
                continue
            width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            width = width // 3 if name.startswith('qkv') else width
            heads = heads_of[layer]
            found = {
                'num_heads': heads,
                'num_attention_heads': heads,
                'n_heads': heads,
                'head_dim': width // heads,
                'attention_head_size': width // heads,
                'attn_dim': width,
                'all_head_size': width,
            }
            for attribute, value in found.items():
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, value)
            break
    if hasattr(model, 'hidden_dim') and hasattr(model, 'conv_proj'):  # torchvision's VisionTransformer
        model.hidden_dim = model.conv_proj.out_channels


def ignored_layers(model: nn.Module, item: Entry) -> list[nn.Module]:
    """The layers that the task reads: by width, and for detectors those that the examples name."""
    classes = getattr(model, 'num_classes', 0) or item.classes
    found: list[nn.Module] = []
    for module in model.modules():
        width = getattr(module, 'out_features', getattr(module, 'out_channels', None))
        if isinstance(module, nn.Linear | nn.Conv2d) and classes and width == classes:
            found.append(module)
    for path in (
        *('rpn.head.cls_logits', 'rpn.head.bbox_pred', 'roi_heads', 'backbone.fpn'),
        *('head.classification_head.cls_logits', 'head.regression_head.bbox_reg', 'head.regression_head.bbox_ctrness'),
        *('head.classification_head.module_list', 'head.regression_head.module_list'),
    ):
        if item.family == 'detection':
            try:
                found.append(model.get_submodule(path))
            except AttributeError:
                continue
    return found


def torch_pruning_once(item: Entry, model: nn.Module, inputs: Inputs, hints: bool) -> dict[str, Any]:
    import torch_pruning as tp

    if item.suite == 'timm' and hints:
        for module in model.modules():  # the examples switch fused attention off
            if isinstance(getattr(module, 'fused_attn', None), bool):
                module.fused_attn = False
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    before, shapes = parameters_of(model), shapes_of(model, inputs, item.family)
    heads = attention_hints(model) if hints else {}
    begin = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored_layers(model, item),
        num_heads=dict(heads),
        round_to=model.encoder.layers[0].num_heads if item.suite == 'torchvision' and item.name.startswith('vit_') else None,
        output_transform=lambda out: [leaf for leaf in tensors_of(out) if leaf.grad_fn is not None],
        out_channel_groups={},
        in_channel_groups={},
    )
    pruner.step()
    seconds = time.perf_counter() - begin
    mend_attention(model, {layer: pruner.num_heads.get(layer, count) for layer, count in heads.items()})
    after = parameters_of(model)
    cell = {'parameters': before, 'left': after, 'seconds': seconds, 'status': 'ok'}
    try:
        found = shapes_of(model, inputs, item.family)
    except Exception as error:
        return {**cell, 'status': 'pruned model raises', 'error': first_line(error)}
    if found != shapes:
        return {**cell, 'status': 'output changed', 'error': f'outputs of {shapes[:2]} became {found[:2]}'}
    return cell if after < before else {**cell, 'status': 'nothing pruned'}


def torch_pruning_cell(item: Entry, made: tuple[nn.Module, Inputs], report: Any) -> dict[str, Any]:
    """With the hints of the examples, and without them if that fails; the first failure is reported if both do."""
    cell: dict[str, Any] = {}
    for hints in (True, False):
        try:
            found = {**torch_pruning_once(item, *(made if hints else item.make()), hints), 'hints': hints}
        except Exception as error:
            found = {'status': 'raises', 'error': first_line(error), 'hints': hints}
        if found['status'] == 'ok' or not cell:
            cell = found
            report(cell)  # what a run without hints, if it never ends, leaves to say
        if cell['status'] == 'ok':
            break
    return cell


# --------------------------------------------------------------------------------------------------------------------
# Strop
# --------------------------------------------------------------------------------------------------------------------
def unsolved_share(graph: Any, model: nn.Module) -> tuple[float, list[str]]:
    """The share of parameters on positions that are frozen for want of a rule or solution, and the reasons."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    total = sum(shape.numel() for shape in shapes.values())
    open_share: dict[str, dict[int, float]] = {}
    reasons: dict[str, int] = {}
    for axis in graph.frozen:
        if axis.kind not in UNSOLVED or axis.tensor not in shapes:
            continue
        part = open_share.setdefault(axis.tensor, {})
        part[axis.axis] = min(1.0, part.get(axis.axis, 0.0) + axis.size / shapes[axis.tensor][axis.axis])
        reason = f'{axis.kind}: {axis.reason}'
        reasons[reason] = reasons.get(reason, 0) + 1
    frozen = 0.0
    for name, parts in open_share.items():
        free = 1.0
        for share in parts.values():
            free *= 1.0 - share
        frozen += shapes[name].numel() * (1.0 - free)
    return frozen / max(total, 1), sorted(reasons, key=reasons.__getitem__, reverse=True)[:5]


def channels(graph: Any, lengths: dict[str, int]) -> tuple[int, int]:
    """Prunable channels before and after: the lengths of all different axes of parameters, each set of coupled ones once.

    Of an axis that is put together from several, the parts are counted. Groups times channels of a group (heads times head
    dimensions) are one axis; the channels of a group, which are an axis of other parameters too, aren't counted again.
    """
    from strop.graph.terms import Cat, atoms, length, resolve

    values = {unit.atom: lengths[name] for name, unit in graph.units.items()}
    free = {unit.atom for unit in graph if unit.minimum < unit.size}
    parts: dict[str, Any] = {}
    todo = [place.term for unit in graph for place in unit.placements]
    while todo:
        term = resolve(todo.pop())
        if isinstance(term, Cat):
            todo += term.segments
        elif any(atom in free for atom in atoms(term)):
            parts[repr(term)] = term
    made_of = {key: frozenset(atoms(term)) for key, term in parts.items()}
    whole = [term for key, term in parts.items() if not any(made_of[key] < other for other in made_of.values())]
    return sum(term.size for term in whole), sum(length(term, values) for term in whole)


def strop_cell(item: Entry, made: tuple[nn.Module, Inputs], report: Any) -> dict[str, Any]:
    from strop.graph import channel_units, prove
    from strop.pruning import prune

    model, inputs = made
    before, shapes = parameters_of(model), shapes_of(model, inputs, item.family)
    begin = time.perf_counter()
    graph = channel_units(model, inputs)
    cell: dict[str, Any] = {'status': 'raises', 'parameters': before, 'units': len(graph), 'note': graph.note}
    cell['seconds_units'] = time.perf_counter() - begin
    cell['unsolved'], cell['reasons'] = unsolved_share(graph, model)
    report(cell)
    begin = time.perf_counter()
    pruned, record = prune(model, inputs, ratio=RATIO)
    cell['seconds'] = time.perf_counter() - begin
    cell['left'] = parameters_of(pruned)
    whole, rest = channels(graph, {unit.name: unit.after for unit in record.units})
    cell['gone'] = 1 - rest / whole if whole else 0.0
    report(cell)
    found = shapes_of(pruned, inputs, item.family)
    if found != shapes:
        return {**cell, 'status': 'output changed', 'error': f'outputs of {shapes[:2]} became {found[:2]}'}
    del pruned
    begin = time.perf_counter()
    proof = prove(model, inputs, ratio=RATIO, seed=0)
    cell |= {'error_of_proof': proof.error, 'difference': proof.difference, 'holds': proof.holds, 'note_of_proof': proof.note}
    return {**cell, 'status': 'ok', 'seconds_proof': time.perf_counter() - begin}


# --------------------------------------------------------------------------------------------------------------------
# One process a cell
# --------------------------------------------------------------------------------------------------------------------
def first_line(error: BaseException) -> str:
    text = f'{type(error).__name__}: {error}'.strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]


def child(pipe: Any, item: Entry, tool: str, log: Path) -> None:
    """Run one cell; of what is sent, the last counts."""
    with open(log, 'w') as file:  # what libraries print is no report
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warnings.simplefilter('ignore')
    made = item.make()
    pipe.send({'built': True})
    try:
        pipe.send({**(torch_pruning_cell if tool == 'torch_pruning' else strop_cell)(item, made, pipe.send), 'done': True})
    except Exception as error:
        traceback.print_exc()
        pipe.send({'status': 'raises', 'error': first_line(error), 'done': True})


class Running:
    """The process of one cell."""

    def __init__(self, item: Entry, tool: str) -> None:
        self.item, self.tool = item, tool
        self.log = WORK / 'logs' / f'{item.key.replace("/", ".")}.{tool}.log'
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # Forked, so that the libraries, which take longer to import than many models to prune, are imported once.
        context = multiprocessing.get_context('fork')
        self.pipe, other = context.Pipe(duplex=False)
        self.process = context.Process(target=child, args=(other, item, tool, self.log), daemon=True)
        self.cell: dict[str, Any] = {}
        self.built = False
        self.began = self.deadline = time.monotonic()
        self.deadline += BUILD_LIMIT
        self.process.start()
        other.close()

    def finished(self, limit: float) -> bool:
        """Take what was sent; end the process when its time is over. The limit is counted from when the model is built."""
        try:
            while self.pipe.poll():
                said = self.pipe.recv()
                if said.pop('built', False):
                    self.built, self.deadline = True, time.monotonic() + limit
                self.cell.update(said)
        except EOFError:
            self.process.join()
        if self.process.is_alive() and time.monotonic() > self.deadline and 'done' not in self.cell:
            self.process.kill()
            self.process.join()
            if self.built:
                earlier = {'earlier': self.cell['status']} if 'status' in self.cell else {}
                self.cell |= {**earlier, 'status': 'timeout', 'done': True}
        if 'done' in self.cell:
            self.process.join()
        return not self.process.is_alive()

    def result(self) -> dict[str, Any]:
        if not self.cell.pop('done', False):
            last = self.log.read_text(errors='replace').strip().splitlines()[-1:]
            self.cell |= {'status': 'raises', 'error': f'exit {self.process.exitcode}: {" ".join(last)[:200]}'}
        return {**self.cell, 'seconds_all': time.monotonic() - self.began}


def run_cells(todo: list[tuple[Entry, str]], limit: float, jobs: int) -> Iterator[tuple[Entry, str, dict[str, Any]]]:
    """Run every cell in a process of its own, and yield each as it ends."""
    import timm  # noqa: F401
    import torch_pruning  # noqa: F401
    import torchvision  # noqa: F401

    import strop.graph
    import strop.pruning  # noqa: F401

    torch.set_num_threads(1)
    waiting, running = list(reversed(todo)), []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Running(*waiting.pop()))
        time.sleep(0.02)
        for one in list(running):
            if one.finished(limit):
                running.remove(one)
                yield one.item, one.tool, one.result()


def read_cells(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The latest cell of each model and tool; a line cut short by a kill is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            cell = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[cell['key'], cell['tool']] = cell
    return found


def judge(ours: dict[str, Any] | None, peer: dict[str, Any] | None) -> tuple[bool | None, list[str]]:
    """Whether a model counts, and why not."""
    if ours is None:
        return None, []
    if ours['status'] != 'ok':
        return False, [f'{ours["status"]}: {ours.get("error", "")}'.strip(': ')]
    causes = []
    if not ours['holds']:
        causes.append(f'proof: error {ours["error_of_proof"]:.1e}, difference {ours["difference"]:.1e}')
    if ours['unsolved'] > FROZEN_LIMIT:
        causes.append(f'{100 * ours["unsolved"]:.1f} % frozen: {"; ".join(ours["reasons"][:1])}')
    if ours['gone'] < GONE_LIMIT:
        causes.append(f'{100 * ours["gone"]:.1f} % of channels gone')
    if peer and peer['status'] == 'ok' and ours['left'] > peer['left']:
        causes.append(f'{ours["left"]:,} parameters left, {peer["left"]:,} by Torch-Pruning')
    return not causes, causes


def summary(items: list[Entry], cells: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for suite in SUITES:
        keys = [item.key for item in items if item.suite == suite]
        if not keys:
            continue
        ours = [judge(cells.get((key, 'strop')), cells.get((key, 'torch_pruning')))[0] for key in keys]
        states = [cells[key, 'torch_pruning']['status'] for key in keys if (key, 'torch_pruning') in cells]
        found[suite] = {
            'models': len(keys),
            'strop_tried': sum(value is not None for value in ours),
            'strop_counts': sum(value is True for value in ours),
            'strop_proved': sum(bool(cells.get((key, 'strop'), {}).get('holds')) for key in keys),
            'torch_pruning_tried': len(states),
            'torch_pruning': {state: states.count(state) for state in sorted(set(states))},
        }
    return found


def table(items: list[Entry], cells: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Write the comparison as Markdown, a row for each model."""
    lines = [
        '# Models pruned by half',
        '',
        'Made by `benchmarks/coverage.py`, whose first lines say what counts. *left*: share of parameters that is left at',
        'ratio 0.5. *error*: relative difference between the pruned model and the masked original in float64.',
        '*unsolved*: parameters on axes frozen for want of a rule or of a solution to an equation between lengths.',
        'Seconds: tracing, finding units, pruning and the check in float32; the proof beside it.',
        '',
    ]
    for suite, found in summary(items, cells).items():
        states = ', '.join(f'{count} {state}' for state, count in found['torch_pruning'].items())
        lines += [
            f'## {suite}: {found["strop_counts"]} of {found["strop_tried"]} count; Torch-Pruning: {states or "not run"}',
            '',
            '| model | M | counts | error | unsolved | gone | left | s (+ proof) | Torch-Pruning | left | s |',
            '|---|--:|---|--:|--:|--:|--:|--:|---|--:|--:|',
        ]
        for item in items:
            if item.suite == suite:
                lines.append(_row(item, cells.get((item.key, 'strop')), cells.get((item.key, 'torch_pruning'))))
        causes = []
        for item in items:
            if item.suite == suite:
                good, why = judge(cells.get((item.key, 'strop')), cells.get((item.key, 'torch_pruning')))
                if good is False:
                    causes.append(f'- {item.name}: {"; ".join(why)}')
        lines += ['', *(['Not counted:', '', *causes, ''] if causes else [])]
    return '\n'.join(lines).rstrip() + '\n'


def _row(item: Entry, ours: dict[str, Any] | None, peer: dict[str, Any] | None) -> str:
    ours, peer = ours or {}, peer or {}
    good = judge(ours or None, peer or None)[0]
    size = ours.get('parameters') or peer.get('parameters')

    def share(cell: dict[str, Any]) -> str:
        return f'{100 * cell["left"] / cell["parameters"]:.0f} %' if 'left' in cell else ''

    def percent(name: str) -> str:
        return f'{100 * ours[name]:.1f} %' if name in ours else ''

    time_ours = f'{ours["seconds"]:.2f}' if 'seconds' in ours else ''
    time_ours += f' (+ {ours["seconds_proof"]:.1f})' if 'seconds_proof' in ours else ''
    fields = [
        item.name,
        f'{size / 1e6:.2f}' if size else '',
        {True: 'yes', False: '**no**', None: ''}[good],
        f'{ours["error_of_proof"]:.0e}' if 'error_of_proof' in ours else ours.get('status', ''),
        percent('unsolved'),
        percent('gone'),
        share(ours),
        time_ours,
        peer.get('status', ''),
        share(peer) if peer.get('status') == 'ok' else '',
        f'{peer["seconds"]:.2f}' if peer.get('status') == 'ok' else '',
    ]
    return '| ' + ' | '.join(fields) + ' |'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--suite', choices=SUITES, action='append', help='only this suite; may be given more than once')
    parser.add_argument('--tool', choices=TOOLS, action='append', help='only this tool; may be given more than once')
    parser.add_argument('--only', nargs='*', default=(), help='names of models')
    parser.add_argument('--full', action='store_true', help='every torchvision classifier')
    parser.add_argument('--limit', type=float, default=120.0, help='seconds for one model and tool')
    parser.add_argument('--jobs', type=int, default=1, help='cells at a time')
    parser.add_argument('--again', action='store_true', help='run the selected cells even if there are results')
    parser.add_argument('--cells', type=Path, default=WORK / 'cells.jsonl', help='where results are kept cell by cell')
    parser.add_argument('--out', type=Path, help='write the results of every model of the zoo here, as JSON')
    parser.add_argument('--table', type=Path, help='and here, as Markdown')
    options = parser.parse_args()
    chosen = [
        item for item in entries(tuple(options.suite or SUITES), options.full) if not options.only or item.name in options.only
    ]
    options.cells.parent.mkdir(parents=True, exist_ok=True)
    done = {} if options.again else read_cells(options.cells)
    todo = [(item, tool) for tool in options.tool or TOOLS for item in chosen if (item.key, tool) not in done]
    commit = git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain', '--', 'strop') else '')
    of = {'strop': commit, 'torch_pruning': version('torch-pruning')}
    for item, tool, found in run_cells(todo, options.limit, options.jobs):
        cell = {'key': item.key, 'tool': tool, 'of': of[tool], 'limit': options.limit, **found}
        with open(options.cells, 'a') as file:
            file.write(json.dumps(cell, default=str) + '\n')
        said = ' '.join(f'{name}={cell[name]}' for name in ('parameters', 'left', 'seconds', 'holds', 'error') if name in cell)
        print(f'{item.key:48} {tool:14} {cell["status"]:20} {said}', flush=True)
    if options.out or options.table:
        items = entries(SUITES, options.full)
        cells = read_cells(options.cells)
        if options.out:
            rows = []
            for item in items:
                row: dict[str, Any] = {'model': item.key, 'family': item.family}
                row |= {tool: cells[item.key, tool] for tool in TOOLS if (item.key, tool) in cells}
                row['counts'], row['why_not'] = judge(row.get('strop'), row.get('torch_pruning'))
                rows.append(row)
            content = {'ratio': RATIO, 'limit_s': options.limit, 'summary': summary(items, cells), 'models': rows}
            packages_used = ('torch-pruning', 'timm', 'torchvision', 'transformers')
            write_result(options.out, 'coverage', content, packages=packages_used)
        if options.table:
            atomic_write(options.table, table(items, cells))


if __name__ == '__main__':
    main()
