"""What trains in a config of MMRazor 0.x: runner, optimizer and learning rate of mmcv 1.x, and MMEngine's words for them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from strop.compat.config_source import Change, Settings, Source

# Length of a run -> the runner that has it, and whether it counts epochs.
_LENGTHS = {'max_epochs': ('EpochBasedRunner', True), 'max_iters': ('IterBasedRunner', False)}
_SMOOTH = ('poly', 'cosineannealing', 'cosine')
_WARM_UPS = {'linear': ('LinearLR', 'start_factor'), 'constant': ('ConstantLR', 'factor')}
# Hooks around an optimizer -> whether they compute in half precision.
_OPTIMIZER_HOOKS = {
    'OptimizerHook': False,
    'GradientCumulativeOptimizerHook': False,
    'Fp16OptimizerHook': True,
    'GradientCumulativeFp16OptimizerHook': True,
}
_WRAPPED = {'grad_clip': 'clip_grad', 'cumulative_iters': 'accumulative_counts'}
# How gradients of several processes were sent, which DDP knows by itself.
_SENT = ('coalesce', 'bucket_size_mb', 'distributed')
# What stood among the optimizer's arguments and is its wrapper's.
_OF_WRAPPER = ('paramwise_cfg', 'constructor')
# (key, argument) that nothing written takes -> what does.
_ELSEWHERE = {
    ('evaluation', 'interval'): '`val_interval` of `train_cfg`',
    ('evaluation', 'save_best'): '`save_best` of the CheckpointHook in `default_hooks`, with the name of the metric today',
    ('evaluation', 'rule'): '`rule` of the CheckpointHook in `default_hooks`',
    ('data', 'train_dataloader'): '`train_dataloader`',
    ('data', 'val_dataloader'): '`val_dataloader`',
    ('data', 'test_dataloader'): '`test_dataloader`',
}


class OldTraining:
    """Finds what trains in a config of mmcv 1.x's runner and writes MMEngine's words for it.

    Args:
        source: The config.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.assigned = source.assigned

    # -- words -----------------------------------------------------------------------------

    def _rewritten(self, statement: ast.Assign, text: str, said: str) -> Change:
        return Change(statement.lineno, 'change', said, (self.source.replaced(statement, text),))

    def _joined(self, settings: Settings, leave_out: Collection[str] = ()) -> str:
        return ', '.join(f'{name}={self.source.of(value)}' for name, value in settings.values.items() if name not in leave_out)

    def _moved(self, node: ast.expr) -> str:
        """Return a value for a statement that may stand above this one: a name of something plain becomes what it names."""
        named = self.assigned.get(node.id) if isinstance(node, ast.Name) else None
        plain = named is not None and (
            isinstance(named.value, (ast.Constant, ast.List, ast.Tuple)) or self.source.settings(named.value) is not None
        )
        return self.source.of(named.value if named is not None and plain else node)

    def _value(self, settings: Settings | None, name: str, default: str) -> str:
        return self.source.of(settings.values[name]) if settings is not None and name in settings.values else default

    def _named(self, name: str) -> Settings | None:
        statement = self.assigned.get(name)
        return self.source.settings(statement.value) if statement is not None else None

    def _plain(self, name: str) -> Settings | None:
        settings = self._named(name)
        return settings if settings is not None and settings.whole and not self.source.reads(name) else None

    def _left(self, name: str, settings: Settings, taken: Collection[str]) -> Iterator[Change]:
        """Yield what of a statement nothing written takes."""
        for argument, value in settings.values.items():
            if argument not in taken:
                said = ' '.join(self.source.of(value).split())
                where = _ELSEWHERE.get((name, argument), 'not known')
                yield Change(value.lineno, 'by hand', f'`{argument}={said}` of `{name}` is left out; what takes it is {where}')

    # -- the runner ------------------------------------------------------------------------

    def _counts(self) -> str:
        """Return what the runner counts, 'epochs' or 'iterations', or '' where a base is to say it."""
        runner = self._named('runner')
        kind = str(runner.constant('type')) if runner is not None else ''
        names = runner.values if runner is not None else {}
        if 'Iter' in kind or ('Epoch' not in kind and 'max_iters' in names):
            return 'iterations'
        if 'Epoch' in kind or 'max_epochs' in names or 'total_epochs' in self.assigned:
            return 'epochs'
        return '' if self.source.bases or 'runner' in self.assigned else 'epochs'

    def _length(self) -> str | None:
        runner, total = self._named('runner'), self.assigned.get('total_epochs')
        for name in _LENGTHS:
            if runner is not None and name in runner.values:
                return self._moved(runner.values[name])
        return self._moved(total.value) if total is not None and self._counts() == 'epochs' else None

    def _interval(self) -> str:
        evaluation = self._named('evaluation')
        interval = self._moved(evaluation.values['interval']) if evaluation and 'interval' in evaluation.values else ''
        return f', val_interval={interval}' if interval else ''

    def _says_length(self) -> bool:
        """Return whether the file has a `train_cfg` or a hint at one, in which `val_interval` is."""
        return self._plain('runner') is not None or ('total_epochs' in self.assigned and 'runner' not in self.assigned)

    def _runner(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        kind = settings.constant('type') if 'type' in settings.values else ''
        for name, (runner, by_epoch) in _LENGTHS.items():
            if name in settings.values and kind in ('', runner):
                # Without a type it changes the runner of a base, which says what is counted.
                parts = [] if self.source.bases and not kind else [f'by_epoch={by_epoch}']
                parts = ['_delete_=True', *parts] if '_delete_' in settings.values else parts
                length = f'{name}={self._moved(settings.values[name])}{self._interval()}'
                cfg = f'train_cfg = dict({", ".join([*parts, length])})'
                yield self._rewritten(statement, cfg, f'`runner` is `{cfg}`')
                return
        loop = 'DartsEpochBasedTrainLoop' if 'MultiLoader' in str(kind) else 'EpochBasedTrainLoop'
        text = f"the runner {kind!r} is a loop now: train_cfg = dict(type='mmrazor.{loop}', ...{self._interval()})"
        yield Change(statement.lineno, 'by hand', text)

    def _total(self, statement: ast.Assign) -> Iterator[Change]:
        read = self.source.reads('total_epochs')
        if 'runner' in self.assigned:
            if not read:
                yield self._rewritten(statement, '', '`total_epochs` is part of `train_cfg` now')
            return
        cfg = f'train_cfg = dict(by_epoch=True, max_epochs={self._moved(statement.value)}{self._interval()})'
        start, end = self.source.span(statement)
        kept = f'{self.source.text[start:end]}\n' if read else ''
        yield self._rewritten(statement, kept + cfg, f'`total_epochs` is `{cfg}`')

    # -- the optimizer ---------------------------------------------------------------------

    def _typed(self, node: ast.expr) -> bool | None:
        """Return whether a value is settings with a type, or None if it is no settings."""
        if isinstance(node, ast.Name) and node.id in self.assigned:
            node = self.assigned[node.id].value
        settings = self.source.settings(node)
        return None if settings is None else 'type' in settings.values

    def _optimizers(self) -> str:
        """Return whether `optimizer` is 'one' or 'several', or '' where that is not to be told."""
        settings = self._plain('optimizer')
        if settings is None:
            return ''
        typed = {name: self._typed(value) for name, value in settings.values.items()}
        if 'type' in typed or all(kind is None or name in _OF_WRAPPER for name, kind in typed.items()):
            return 'one'
        return 'several' if all(typed.values()) else ''

    def _optimizer(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        found = self._optimizers()
        if not found:
            text = '`optimizer` has settings without a type; each of several is dict(optimizer=dict(...)) in `optim_wrapper`'
            yield Change(statement.lineno, 'by hand', text)
            return
        if found == 'several':
            parts = [f'{name}=dict(optimizer={self.source.of(value)})' for name, value in settings.values.items()]
            parts = ["constructor='mmrazor.SeparateOptimWrapperConstructor'", *parts]
        else:
            inner = self._joined(settings, _OF_WRAPPER)
            of_wrapper = [name for name in _OF_WRAPPER if name in settings.values]
            parts = [f'optimizer=dict({inner})'] if inner else []
            parts += [*self._wrapper(), *(f'{name}={self._value(settings, name, "")}' for name in of_wrapper)]
        cfg = f'optim_wrapper = dict({", ".join(parts)})'
        yield self._rewritten(statement, cfg, f'`optimizer` is `{cfg}`')

    def _understood(self, name: str) -> Settings | None:
        """Return `optimizer_config` or `fp16` if it is known what the wrapper takes of it."""
        settings = self._plain(name)
        if settings is None or ('type' in settings.values and str(settings.constant('type')) not in _OPTIMIZER_HOOKS):
            return None
        return settings

    def _wrapper(self) -> list[str]:
        """Return the arguments that `optimizer_config` and `fp16` give to an optimizer's wrapper."""
        config, half = self._understood('optimizer_config'), self._understood('fp16')
        if half is None and config is not None and _OPTIMIZER_HOOKS.get(str(config.constant('type'))):
            half = config
        scale = self._moved(half.values['loss_scale']) if half is not None and 'loss_scale' in half.values else "'dynamic'"
        parts = ["type='AmpOptimWrapper'", f'loss_scale={scale}'] if half is not None else []
        statement = self.assigned.get('optimizer_config')
        child = bool(self.source.bases) and self._optimizers() == 'one'
        if child and statement is not None and self.source.of(statement.value) == 'None':
            return [*parts, 'clip_grad=None']  # else the base's would stay
        given = {new: self._moved(config.values[old]) for old, new in _WRAPPED.items() if config and old in config.values}
        return parts + [f'{name}={value}' for name, value in given.items() if value != 'None' or child]

    def _wrapping(self, name: str, statement: ast.Assign) -> Iterator[Change]:
        found, settings = self._optimizers(), self._understood(name)
        if not found or (settings is None and self.source.of(statement.value) != 'None'):
            yield Change(statement.lineno, 'by hand', f'`{name}` belongs into `optim_wrapper` (clip_grad, loss_scale)')
        elif found == 'several' and self._wrapper():
            text = f'`{name}` belongs into each part of `optim_wrapper` (clip_grad, loss_scale)'
            yield Change(statement.lineno, 'by hand', text)
        else:
            yield self._rewritten(statement, '', f'`{name}` is part of `optim_wrapper` now')
            if settings is not None:
                yield from self._left(name, settings, ('type', 'loss_scale', *_WRAPPED, *_SENT))

    # -- the learning rate -----------------------------------------------------------------

    def _schedule(self, statement: ast.Assign, settings: Settings) -> Iterator[Change]:
        policy = str(settings.constant('policy')).lower()
        why = self._unclear(policy, settings)
        if why:
            yield Change(statement.lineno, 'by hand', f'`lr_config` with policy {policy!r} {why} in `param_scheduler`')
            return
        parts = [*self._warm_up(settings), *self._main(policy, settings)]
        warm_up = self._value(settings, 'warmup', 'None')
        known = warm_up == 'None' or str(settings.constant('warmup')) in _WARM_UPS
        if not known:
            yield Change(statement.lineno, 'by hand', f'the warm-up {warm_up} of `lr_config` has no scheduler of its name')
        if parts or (known and self.source.bases):  # an empty list is in the place of a base's
            cfg = f'param_scheduler = [{", ".join(parts)}]'
            yield self._rewritten(statement, cfg, f'`lr_config` is `{cfg}`')
        elif known:
            yield self._rewritten(statement, '', '`lr_config` of a fixed rate needs no `param_scheduler`')
        if self.source.bases and 'warmup' not in settings.values and '_delete_' not in settings.values:
            text = '`param_scheduler` is in the place of the whole list of a base; what its `lr_config` adds, such as a warm-up'
            yield Change(statement.lineno, 'by hand', f'{text}, is to be written here, too')
        if policy in ('step', 'exp') and not self._counts() and 'by_epoch' not in settings.values:
            text = 'the steps of `lr_config` are taken for epochs; under a runner of iterations they are by_epoch=False'
            yield Change(statement.lineno, 'note', text)

    def _unclear(self, policy: str, settings: Settings) -> str:
        """Return why a policy has to be translated by hand, or ''."""
        if policy not in ('step', 'exp', 'fixed', *_SMOOTH):
            return 'is a list of schedulers'
        if policy in _SMOOTH and self._length() is None:
            return 'goes over the whole run, whose length is not in this file; it is a list of schedulers'
        if policy in ('step', 'exp') and self._value(settings, 'min_lr', 'None') != 'None':
            return 'has a `min_lr`, which no such scheduler has; it is a list of schedulers'
        steps = self._steps(settings)
        if policy == 'step' and steps is not None and not isinstance(steps, (ast.List, ast.Tuple, ast.Constant)):
            return 'has steps that are one number or several, which is not to be seen; it is a list of schedulers'
        return ''

    def _steps(self, settings: Settings) -> ast.expr | None:
        node = settings.values.get('step')
        named = self.assigned.get(node.id) if isinstance(node, ast.Name) else None
        return named.value if named is not None else node

    def _warm_up(self, settings: Settings) -> list[str]:
        kind, factor = _WARM_UPS.get(str(settings.constant('warmup')), ('', ''))
        ratio, length = self._value(settings, 'warmup_ratio', '0.1'), self._value(settings, 'warmup_iters', '0')
        counted = 'by_epoch=False'
        if 'warmup_by_epoch' in settings.values:
            by_epoch = self._value(settings, 'warmup_by_epoch', 'False')
            # The length is one of epochs; the rate rose in each iteration all the same.
            counted = f'by_epoch={by_epoch}' + (f', convert_to_iter_based={by_epoch}' if by_epoch != 'False' else '')
        return [f"dict(type='{kind}', {factor}={ratio}, {counted}, end={length})"] if kind else []

    def _main(self, policy: str, settings: Settings) -> list[str]:
        """Return the scheduler of a policy; a fixed rate has none."""
        by_epoch = self._value(settings, 'by_epoch', str(self._counts() != 'iterations'))
        if policy in _SMOOTH:
            return [self._smooth(policy, settings, by_epoch)]
        gamma = self._value(settings, 'gamma', '0.1')
        if policy == 'exp':
            return [f"dict(type='ExponentialLR', gamma={gamma}, by_epoch={by_epoch})"]
        if policy == 'fixed':
            return []
        several = isinstance(self._steps(settings), (ast.List, ast.Tuple))
        kind, steps = ('MultiStepLR', 'milestones') if several else ('StepLR', 'step_size')
        return [f"dict(type='{kind}', {steps}={self._value(settings, 'step', '1')}, gamma={gamma}, by_epoch={by_epoch})"]

    def _smooth(self, policy: str, settings: Settings, by_epoch: str) -> str:
        low = f'eta_min={self._value(settings, "min_lr", "0")}'
        if 'min_lr_ratio' in settings.values:
            low = f'eta_min_ratio={self._value(settings, "min_lr_ratio", "0")}'
        length, counted = self._length(), f'by_epoch={by_epoch}'
        # A runner of epochs whose rate is changed in each iteration: the length stays one of epochs.
        converted = by_epoch == 'False' and self._counts() == 'epochs'
        if converted:
            counted = 'by_epoch=True, convert_to_iter_based=True'
        if policy == 'poly':
            return f"dict(type='PolyLR', power={self._value(settings, 'power', '1.0')}, {low}, end={length}, {counted})"
        counted = f'begin=0, end={length}, {counted}' if converted else counted
        return f"dict(type='CosineAnnealingLR', T_max={length}, {low}, {counted})"
