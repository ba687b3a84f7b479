"""The settings of mmcv 1.x's runner, as configs of MMRazor 0.x have them, in the words of MMEngine."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from strop.compat.config_source import Edit, Settings, Source


@dataclass(frozen=True)
class Change:
    """What one setting needs.

    Args:
        line: Line of the file, from 1; None for the file as a whole.
        kind: 'change' (the edits do it), 'by hand' (they cannot), or 'note' (it works, but something is to be known).
        text: What is said.
        edits: What does it.
    """

    line: int | None
    kind: str
    text: str
    edits: tuple[Edit, ...] = ()


_GONE = {
    'dist_params': 'processes find each other by `--launcher pytorch`',
    'workflow': 'training and validation are `train_cfg` and `val_cfg`',
    'gpu_ids': 'processes are started by torchrun',
    'device': 'a GPU is used where there is one',
    'use_ddp_wrapper': 'a wrapper is put around every algorithm under `--launcher pytorch`',
}
#: Key of a config of MMRazor 0.x -> where it went. `strop migrate` rewrites what is plain.
REPLACED = {
    'algorithm': '`model`; understood as it is',
    'optimizer': '`optim_wrapper.optimizer`',
    'optimizer_config': '`optim_wrapper` (`clip_grad`, `accumulative_counts`)',
    'fp16': "`optim_wrapper` of type `'AmpOptimWrapper'`, or `--amp`",
    'lr_config': '`param_scheduler`',
    'runner': '`train_cfg`',
    'total_epochs': '`train_cfg.max_epochs`',
    'data': '`train_dataloader`, `val_dataloader`, `test_dataloader`',
    'evaluation': '`val_evaluator`, `test_evaluator`, `train_cfg.val_interval`',
    'checkpoint_config': '`default_hooks.checkpoint`',
    'log_config': '`default_hooks.logger`, `visualizer`',
    'searcher': '`train_cfg` of type `mmrazor.EvolutionSearchLoop`, in a config for `strop search`',
    'resume_from': '`load_from` and `resume`, or `--resume`',
    'cudnn_benchmark': '`env_cfg.cudnn_benchmark`',
    **{name: f'nothing: {why}' for name, why in _GONE.items()},
}
_SCORES = {
    'accuracy': "dict(type='Accuracy', topk=(1, 5))",
    'mIoU': "dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])",
    'bbox': "dict(type='mmdet.CocoMetric', metric='bbox', ann_file=...)",
}


#: Settings whose inside is mmcv's alone.
MMCV_ONLY = ('runner', 'log_config', 'lr_config', 'optimizer_config', 'evaluation', 'searcher', 'checkpoint_config', 'fp16')


class RuntimeKeys:
    """Finds the keys of mmcv 1.x's runner in a config and writes MMEngine's for them.

    Args:
        source: The config.

    >>> source = Source("optimizer = dict(type='SGD', lr=0.1)")
    >>> [change.text for change in RuntimeKeys(source).changes()]
    ["`optimizer` is `optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))`"]
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.assigned = source.assigned

    def changes(self) -> Iterator[Change]:
        """Yield what the config's keys need."""
        known: dict[str, Callable[[ast.Assign, Settings], Iterator[Change]]] = {
            'optimizer': self._optimizer,
            'lr_config': self._schedule,
            'runner': self._runner,
            'data': self._data,
            'checkpoint_config': self._hooks,
            'log_config': self._hooks,
            'evaluation': self._evaluation,
            'searcher': self._searcher,
        }
        for name, statement in self.assigned.items():
            if name in _GONE:
                yield self._rewritten(statement, '', f'`{name}` has no effect: {_GONE[name]}')
            elif name == 'resume_from':
                yield from self._resume(statement)
            elif name == 'total_epochs' and 'runner' not in self.assigned:
                cfg = f'train_cfg = dict(by_epoch=True, max_epochs={self.source.of(statement.value)}{self._interval()})'
                yield self._rewritten(statement, cfg, f'`total_epochs` is `{cfg}`')
            elif name in ('total_epochs', 'optimizer_config', 'fp16') and self._partner(name):
                yield self._rewritten(statement, '', f'`{name}` is part of `{self._partner(name)}` now')
            elif name in ('optimizer_config', 'fp16'):
                yield Change(statement.lineno, 'by hand', f'`{name}` belongs into `optim_wrapper` (clip_grad, loss_scale)')
            elif name == 'cudnn_benchmark':
                cfg = f'env_cfg = dict(cudnn_benchmark={self.source.of(statement.value)})'
                yield self._rewritten(statement, cfg, f'`cudnn_benchmark` is `{cfg}`')
            elif name in known:
                settings = self.source.settings(statement.value)
                if settings is None or not settings.whole:
                    yield Change(statement.lineno, 'by hand', f'`{name}` is of mmcv 1.x, and its value is not plain')
                else:
                    yield from known[name](statement, settings)

    # -- words -----------------------------------------------------------------------------

    def _rewritten(self, statement: ast.Assign, text: str, said: str) -> Change:
        return Change(statement.lineno, 'change', said, (self.source.replaced(statement, text),))

    def _joined(self, settings: Settings, leave_out: tuple[str, ...] = (), **renamed: str) -> str:
        parts = [f'{renamed.get(n, n)}={self.source.of(v)}' for n, v in settings.values.items() if n not in leave_out]
        return ', '.join(parts)

    def _partner(self, name: str) -> str:
        if name == 'total_epochs':
            return 'train_cfg' if 'runner' in self.assigned else ''
        return 'optim_wrapper' if 'optimizer' in self.assigned else ''

    def _named(self, name: str) -> Settings | None:
        statement = self.assigned.get(name)
        return self.source.settings(statement.value) if statement is not None else None

    def _interval(self) -> str:
        evaluation = self._named('evaluation')
        if evaluation is None or 'interval' not in evaluation.values:
            return ''
        return f', val_interval={self.source.of(evaluation.values["interval"])}'

    def _length(self) -> str | None:
        runner = self._named('runner')
        for name in ('max_epochs', 'max_iters') if runner is not None else ():
            if runner is not None and name in runner.values:
                return self.source.of(runner.values[name])
        total = self.assigned.get('total_epochs')
        return self.source.of(total.value) if total is not None else None

    # -- keys ------------------------------------------------------------------------------

    def _optimizer(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        inner, extra = self._joined(settings, ('paramwise_cfg',)), ''
        if 'paramwise_cfg' in settings.values:
            extra += f', paramwise_cfg={self.source.of(settings.values["paramwise_cfg"])}'
        config, half = self._named('optimizer_config'), self._named('fp16')
        for old, new in (('grad_clip', 'clip_grad'), ('cumulative_iters', 'accumulative_counts')):
            if config is not None and old in config.values:
                value = self.source.of(config.values[old])
                extra += f', {new}={value}' if value != 'None' else ''
        if half is not None:
            scale = self.source.of(half.values['loss_scale']) if 'loss_scale' in half.values else "'dynamic'"
            extra = f", type='AmpOptimWrapper', loss_scale={scale}{extra}"
        if 'type' in settings.values:
            cfg = f'optim_wrapper = dict(optimizer=dict({inner}){extra})'
        else:
            parts = [f'{name}=dict(optimizer={self.source.of(value)})' for name, value in settings.values.items()]
            cfg = f"optim_wrapper = dict(constructor='mmrazor.SeparateOptimWrapperConstructor', {', '.join(parts)})"
            if extra:
                yield Change(
                    statement.lineno, 'by hand', 'what was in `optimizer_config` belongs into each part of optim_wrapper'
                )
        yield self._rewritten(statement, cfg, f'`optimizer` is `{cfg}`')

    def _schedule(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        policy, length = str(settings.constant('policy')).lower(), self._length()
        by_epoch = self.source.of(settings.values['by_epoch']) if 'by_epoch' in settings.values else 'True'

        def value(name: str, default: str) -> str:
            return self.source.of(settings.values[name]) if name in settings.values else default

        low = f', eta_min={value("min_lr", "0")}' if 'min_lr_ratio' not in settings.values else ''
        low = low or f', eta_min_ratio={value("min_lr_ratio", "0")}'
        if policy == 'step':
            several = isinstance(settings.values.get('step'), (ast.List, ast.Tuple))
            kind, steps = ('MultiStepLR', 'milestones') if several else ('StepLR', 'step_size')
            main = f"dict(type='{kind}', {steps}={value('step', '1')}, gamma={value('gamma', '0.1')}"
        elif policy in ('cosineannealing', 'cosine') and length:
            main = f"dict(type='CosineAnnealingLR', T_max={length}{low}"
        elif policy == 'poly' and length:
            main = f"dict(type='PolyLR', power={value('power', '1.0')}{low}, end={length}"
        elif policy == 'exp':
            main = f"dict(type='ExponentialLR', gamma={value('gamma', '0.1')}"
        elif policy == 'fixed':
            yield self._rewritten(statement, '', '`lr_config` of a fixed rate needs no `param_scheduler`')
            return
        else:
            yield Change(
                statement.lineno, 'by hand', f'`lr_config` with policy {policy!r} is a list of schedulers in `param_scheduler`'
            )
            return
        parts = [f'{main}, by_epoch={by_epoch})']
        warmup = settings.constant('warmup')
        if warmup in ('linear', 'constant'):
            kind, factor = ('LinearLR', 'start_factor') if warmup == 'linear' else ('ConstantLR', 'factor')
            parts.insert(
                0,
                f"dict(type='{kind}', {factor}={value('warmup_ratio', '0.1')}, "
                f'by_epoch={value("warmup_by_epoch", "False")}, end={value("warmup_iters", "0")})',
            )
        elif warmup is not None:
            yield Change(statement.lineno, 'by hand', f'the warm-up {warmup!r} of `lr_config` has no scheduler of its name')
        cfg = f'param_scheduler = [{", ".join(parts)}]'
        yield self._rewritten(statement, cfg, f'`lr_config` is `{cfg}`')

    def _runner(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        kind = settings.constant('type')
        if kind in ('EpochBasedRunner', None) and 'max_epochs' in settings.values:
            cfg = (
                f'train_cfg = dict(by_epoch=True, max_epochs={self.source.of(settings.values["max_epochs"])}{self._interval()})'
            )
        elif kind == 'IterBasedRunner' and 'max_iters' in settings.values:
            cfg = (
                f'train_cfg = dict(by_epoch=False, max_iters={self.source.of(settings.values["max_iters"])}{self._interval()})'
            )
        else:
            loop = 'DartsEpochBasedTrainLoop' if 'MultiLoader' in str(kind) else 'EpochBasedTrainLoop'
            yield Change(
                statement.lineno, 'by hand', f"the runner {kind!r} is a loop now: train_cfg = dict(type='mmrazor.{loop}', ...)"
            )
            return
        yield self._rewritten(statement, cfg, f'`runner` is `{cfg}`')

    def _data(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        lines = []
        size = self.source.of(settings.values['samples_per_gpu']) if 'samples_per_gpu' in settings.values else '1'
        workers = self.source.of(settings.values['workers_per_gpu']) if 'workers_per_gpu' in settings.values else '0'
        for part in ('train', 'val', 'test'):
            if part not in settings.values:
                continue
            if isinstance(settings.values[part], (ast.List, ast.Tuple)):
                yield Change(statement.lineno, 'by hand', f'`data.{part}` is a list; each of it is a data loader of its own')
                return
            lines.append(
                f'{part}_dataloader = dict(\n    batch_size={size},\n    num_workers={workers},\n'
                f'    dataset={self.source.of(settings.values[part])},\n'
                f"    sampler=dict(type='DefaultSampler', shuffle={part == 'train'}),\n)"
            )
        names = [line.partition(' ')[0] for line in lines]
        if not names:
            yield Change(statement.lineno, 'by hand', '`data` is train_dataloader, val_dataloader and test_dataloader now')
            return
        lines += [f'{part}_cfg = dict()' for part in ('val', 'test') if f'{part}_dataloader' in names]
        yield self._rewritten(statement, '\n'.join(lines), f'`data` is {", ".join(f"`{name}`" for name in names)}')
        yield Change(
            statement.lineno,
            'note',
            "data sets take `data_root` where they took `data_prefix`, and pipelines end with dict(type='PackInputs')",
        )

    def _evaluation(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        metric = settings.constant('metric') or 'accuracy'
        if not isinstance(metric, str) or metric not in _SCORES:
            yield Change(
                statement.lineno, 'by hand', f'`evaluation` with {metric!r} is `val_evaluator` and `test_evaluator` now'
            )
            return
        cfg = f'val_evaluator = test_evaluator = {_SCORES[metric]}'
        if '...' in cfg:
            yield Change(statement.lineno, 'by hand', f'`evaluation` is `{cfg}`')
            return
        yield self._rewritten(statement, cfg, f'`evaluation` is `{cfg}` and `val_interval` of train_cfg')

    def _hooks(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        first = next(name for name in self.assigned if name in ('checkpoint_config', 'log_config'))
        name = 'checkpoint_config' if self.assigned.get('checkpoint_config') is statement else 'log_config'
        parts = []
        saved, logged = self._named('checkpoint_config'), self._named('log_config')
        if saved is not None:
            inner = self._joined(saved, ('type', 'meta'))
            parts.append(f"checkpoint=dict(type='CheckpointHook'{', ' + inner if inner else ''})")
        if logged is not None and 'interval' in logged.values:
            parts.append(f"logger=dict(type='LoggerHook', interval={self.source.of(logged.values['interval'])})")
        cfg = f'default_hooks = dict({", ".join(parts)})'
        if name == first:
            yield self._rewritten(statement, cfg, f'`{name}` is part of `{cfg}`')
        else:
            yield self._rewritten(statement, '', f'`{name}` is part of `default_hooks` now')
        if name == 'log_config' and 'hooks' in settings.values and 'Tensorboard' in self.source.of(settings.values['hooks']):
            backend = "vis_backends=[dict(type='TensorboardVisBackend')]"
            text = f"TensorBoard is written by visualizer = dict(type='Visualizer', {backend})"
            yield Change(statement.lineno, 'by hand', text)

    def _resume(self, statement: ast.Assign) -> Iterator[Change]:
        value = self.source.of(statement.value)
        if value == 'None':
            yield self._rewritten(
                statement, '', '`resume_from` is `load_from` with `resume = True`; `--resume` finds it by itself'
            )
            return
        cfg = f'load_from = {value}\nresume = True'
        yield self._rewritten(statement, cfg, f'`resume_from` is `load_from = {value}` and `resume = True`')

    def _searcher(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        names = dict(
            candidate_pool_size='num_candidates', candidate_top_k='top_k', max_epoch='max_epochs', num_mutation='num_mutation'
        ) | dict(num_crossover='num_crossover', mutate_prob='mutate_prob')
        kind = settings.constant('type')
        if kind != 'EvolutionSearcher':
            text = "a greedy search is test_cfg = dict(type='mmrazor.AutoSlimGreedySearchLoop', target_flops=..., ...)"
            yield Change(statement.lineno, 'by hand', f'`searcher` of type {kind!r} is a loop now: {text}')
            return
        parts = [f'{new}={self.source.of(settings.values[old])}' for old, new in names.items() if old in settings.values]
        limits = self.source.settings(settings.values['constraints']) if 'constraints' in settings.values else None
        if limits is not None:
            bounds = ', '.join(f'{name}=(0, ({self.source.of(value)}) / 1e6)' for name, value in limits.values.items())
            parts.append(f'constraints_range=dict({bounds})')
        cfg = (
            "train_cfg = dict(_delete_=True, type='mmrazor.EvolutionSearchLoop', dataloader=_base_.val_dataloader, "
            f'evaluator=_base_.val_evaluator, {", ".join(parts)})'
        )
        yield Change(
            statement.lineno, 'by hand', f'`searcher` is the training loop of a config of its own, for `strop search`: {cfg}'
        )
