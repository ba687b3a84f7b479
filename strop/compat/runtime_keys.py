"""The settings of mmcv 1.x's runner, as configs of MMRazor 0.x have them, in the words of MMEngine."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from strop.compat.config_source import Change, Settings
from strop.compat.old_training import OldTraining

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
# Names of metrics by which a checkpoint is the best -> their names today.
_BEST = {'auto': 'auto', 'accuracy_top-1': 'accuracy/top1', 'mIoU': 'mIoU'}
# Hooks that log -> where MMEngine's visualizer writes the same.
_BACKENDS = {
    'TensorboardLoggerHook': 'TensorboardVisBackend',
    'WandbLoggerHook': 'WandbVisBackend',
    'MlflowLoggerHook': 'MLflowVisBackend',
}
_LOADER = {
    'samples_per_gpu': 'batch_size',
    'workers_per_gpu': 'num_workers',
    'persistent_workers': 'persistent_workers',
    'pin_memory': 'pin_memory',
}

#: Settings whose inside is mmcv's alone.
MMCV_ONLY = ('runner', 'log_config', 'lr_config', 'optimizer_config', 'evaluation', 'searcher', 'checkpoint_config', 'fp16')


class RuntimeKeys(OldTraining):
    """Finds the keys of mmcv 1.x's runner in a config and writes MMEngine's for them.

    Args:
        source: The config.

    >>> from strop.compat.config_source import Source
    >>> source = Source("optimizer = dict(type='SGD', lr=0.1)")
    >>> [change.text for change in RuntimeKeys(source).changes()]
    ["`optimizer` is `optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))`"]
    """

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
            if name in _GONE and not self.source.reads(name):
                yield self._rewritten(statement, '', f'`{name}` has no effect: {_GONE[name]}')
            elif name == 'resume_from':
                yield from self._resume(statement)
            elif name == 'total_epochs' and 'train_cfg' not in self.assigned:
                yield from self._total(statement)
            elif name in ('optimizer_config', 'fp16'):
                yield from self._wrapping(name, statement)
            elif name == 'cudnn_benchmark':
                cfg = f'env_cfg = dict(cudnn_benchmark={self.source.of(statement.value)})'
                yield self._rewritten(statement, cfg, f'`cudnn_benchmark` is `{cfg}`')
            elif name in known:
                settings = self._plain(name)
                if settings is None and isinstance(statement.value, ast.Call) and self._named(name) is None:
                    continue  # of a script, such as `optimizer = torch.optim.SGD(...)`
                if settings is None:
                    text = f'`{name}` is of mmcv 1.x, and its value is not plain, or is read again below'
                    yield Change(statement.lineno, 'by hand', text)
                else:
                    yield from known[name](statement, settings)

    # -- data ------------------------------------------------------------------------------

    def _data(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        parts = [part for part in ('train', 'val', 'test') if part in settings.values]
        for part in parts:
            if isinstance(settings.values[part], (ast.List, ast.Tuple)):
                yield Change(statement.lineno, 'by hand', f'`data.{part}` is a list; each of it is a data loader of its own')
                return
        if self.source.bases and 'train' not in parts and any(name in settings.values for name in _LOADER):
            parts = ['train', *parts]
        if not parts:
            yield Change(statement.lineno, 'by hand', '`data` is train_dataloader, val_dataloader and test_dataloader now')
            return
        lines = [self._loader(part, settings) for part in parts]
        lines += [f'{part}_cfg = dict()' for part in parts if part != 'train' and not self.source.bases]
        yield self._rewritten(statement, '\n'.join(lines), f'`data` is {", ".join(f"`{part}_dataloader`" for part in parts)}')
        yield from self._left('data', settings, ('train', 'val', 'test', *_LOADER))
        text = "data sets take `data_root` where they took `data_prefix`, and pipelines end with dict(type='PackInputs')"
        yield Change(statement.lineno, 'note', text)
        if self.source.bases:
            text = "a base's loaders change in what is written, others stay; new ones need sampler=dict(type='DefaultSampler')"
            yield Change(statement.lineno, 'note', text)

    def _loader(self, part: str, settings: Settings) -> str:
        words = {new: self.source.of(settings.values[old]) for old, new in _LOADER.items() if old in settings.values}
        if not self.source.bases:
            words = {'batch_size': '1', 'num_workers': '0', **words}
        if part in settings.values:
            words['dataset'] = self.source.of(settings.values[part])
        if not self.source.bases:
            words['sampler'] = f"dict(type='DefaultSampler', shuffle={part == 'train'})"
        return '\n'.join([f'{part}_dataloader = dict(', *(f'    {name}={value},' for name, value in words.items()), ')'])

    # -- scores ----------------------------------------------------------------------------

    def _evaluation(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        score, interval = self._score(settings), self._value(settings, 'interval', '')
        evaluator = f'val_evaluator = test_evaluator = {score}'
        lines = [evaluator] if score and '...' not in score else []
        if score is None:
            text = f'`evaluation` with metric={self._value(settings, "metric", "")} is `val_evaluator` and `test_evaluator` now'
            yield Change(statement.lineno, 'by hand', text)
        elif '...' in score:
            yield Change(statement.lineno, 'by hand', f'`evaluation` is `{evaluator}`')
        if interval and self._adds_interval():
            lines.append(f'train_cfg = dict(val_interval={interval})')
        elsewhere = ['`val_interval` of train_cfg'] if interval and self._says_length() else []
        elsewhere += ['`save_best` of default_hooks.checkpoint'] if self._best() else []
        if lines or (elsewhere and score == ''):
            said = ' and '.join([*(f'`{line}`' for line in lines), *elsewhere])
            yield self._rewritten(statement, '\n'.join(lines), f'`evaluation` is {said}')
        yield from self._left('evaluation', settings, self._taken(settings))

    def _score(self, settings: Settings) -> str | None:
        """Return the config of the metric: '' where a base has it, None where it is not known."""
        if 'metric' not in settings.values and self.source.bases:
            return ''
        metric = settings.constant('metric') if 'metric' in settings.values else 'accuracy'
        topk = self._topk(settings)
        if metric == 'accuracy' and topk:
            return f"dict(type='Accuracy', topk={topk})"
        return _SCORES.get(metric) if isinstance(metric, str) else None

    def _topk(self, settings: Settings) -> str:
        options = self.source.settings(settings.values['metric_options']) if 'metric_options' in settings.values else None
        return self._value(options, 'topk', '') if options is not None and options.whole and len(options.values) == 1 else ''

    def _adds_interval(self) -> bool:
        """Return whether the interval of validation is written for itself, on top of the `train_cfg` of a base."""
        return bool(self.source.bases) and not {'runner', 'total_epochs', 'train_cfg'} & set(self.assigned)

    def _taken(self, settings: Settings) -> list[str]:
        """Return what of `evaluation` is written, or needs no words."""
        taken = ['metric', 'pre_eval']
        # One epoch is what a loop of epochs takes by itself.
        alone = self._value(settings, 'interval', '') == '1' and self._counts() == 'epochs'
        taken += ['interval'] if alone or self._says_length() or self._adds_interval() else []
        taken += ['metric_options'] if 'Accuracy' in (self._score(settings) or '') and self._topk(settings) else []
        taken += ['save_best'] if self._best() else []
        agrees = str(settings.constant('by_epoch')) == str(self._counts() == 'epochs')
        return [*taken, 'by_epoch'] if self._counts() and agrees else taken

    # -- hooks -----------------------------------------------------------------------------

    def _best(self) -> str:
        """Return the metric by which the checkpoint hook keeps the best, if it and the hook are written."""
        evaluation = self._plain('evaluation')
        if evaluation is None or not self._saves():
            return ''
        return _BEST.get(str(evaluation.constant('save_best')), '')

    def _saves(self) -> bool:
        """Return whether `checkpoint_config` is plain, and it is known what its interval counts."""
        saved = self._plain('checkpoint_config')
        return saved is not None and ('interval' not in saved.values or 'by_epoch' in saved.values or bool(self._counts()))

    def _default_hooks(self) -> dict[str, str]:
        """Return statement -> what it is in `default_hooks`, but for what is to be done by hand."""
        parts: dict[str, str] = {}
        best = self._best()
        saved, logged = self._plain('checkpoint_config'), self._plain('log_config')
        if saved is not None and self._saves():
            words = ["type='CheckpointHook'", self._joined(saved, ('type', 'meta'))]
            words += ['by_epoch=False'] if self._counts() == 'iterations' and 'by_epoch' not in saved.values else []
            words += [f'save_best={best!r}'] if best else []
            parts['checkpoint_config'] = f'checkpoint=dict({", ".join(word for word in words if word)})'
        if logged is not None:
            interval = self._value(logged, 'interval', '')
            words = ["type='LoggerHook'", *([f'interval={interval}'] if interval else [])]
            parts['log_config'] = f'logger=dict({", ".join(words)})'
        return parts

    def _hooks(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        name = 'checkpoint_config' if self.assigned.get('checkpoint_config') is statement else 'log_config'
        parts = self._default_hooks()
        if name not in parts:
            text = 'a runner of iterations needs by_epoch=False beside its interval, and the runner is not in this file'
            yield Change(statement.lineno, 'by hand', f'`{name}` is `checkpoint` of `default_hooks`; {text}')
        elif name == next(each for each in self.assigned if each in parts):
            cfg = f'default_hooks = dict({", ".join(part for part in parts.values() if part)})'
            yield self._rewritten(statement, cfg, f'`{name}` is part of `{cfg}`')
        else:
            yield self._rewritten(statement, '', f'`{name}` is part of `default_hooks` now')
        if name == 'log_config':
            yield from self._loggers(settings)

    def _loggers(self, settings: Settings) -> Iterator[Change]:
        """Yield what logs elsewhere than on the terminal."""
        hooks = settings.values.get('hooks')
        for node in hooks.elts if isinstance(hooks, (ast.List, ast.Tuple)) else [] if hooks is None else [hooks]:
            hook = self.source.settings(node)
            kind = str(hook.constant('type')) if hook is not None else self.source.of(node)
            if kind in _BACKENDS:
                backend = f"vis_backends=[dict(type='{_BACKENDS[kind]}')]"
                text = f"what {kind} writes is written by visualizer = dict(type='Visualizer', {backend})"
                yield Change(node.lineno, 'by hand', text)
            elif kind != 'TextLoggerHook':
                yield Change(node.lineno, 'by hand', f'the hook {kind} of `log_config` is left out')

    # -- the rest --------------------------------------------------------------------------

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
