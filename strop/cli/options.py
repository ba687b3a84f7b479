"""Options that several commands share, and the decorator that makes a command with its examples."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

F = TypeVar('F', bound=Callable[..., Any])

DEBUG = click.Option(['--debug'], is_flag=True, expose_value=False, help='Show the whole traceback of an error.')


def _is_setting(argument: str) -> bool:
    return '=' in argument and not argument.startswith('-')


# Options that take several values in a row, as argparse's nargs='+' does: which further arguments belong to them.
SEVERAL: Mapping[str, Callable[[str], bool]] = {'--cfg-options': _is_setting, '--input-shape': str.isdigit}


class Command(click.Command):
    """A command whose options of `SEVERAL` take all the values that follow them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, after each of several values got its option name."""
        return super().parse_args(ctx, spread(args))


def spread(args: list[str]) -> list[str]:
    """Return arguments with the option name repeated before each of its values.

    >>> spread(['a.py', '--cfg-options', 'x=1', 'y.z=2', '--amp'])
    ['a.py', '--cfg-options', 'x=1', '--cfg-options', 'y.z=2', '--amp']
    """
    result: list[str] = []
    option: str | None = None
    taken = 0
    for position, argument in enumerate(args):
        if argument == '--':
            return [*result, *args[position:]]
        if argument in SEVERAL:
            option, taken = argument, 0
        elif option is not None and taken == 0:
            taken = 1
        elif option is not None and SEVERAL[option](argument):
            result.append(option)
        else:
            option = None
        result.append(argument)
    return result


def command(name: str, examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command whose help ends with examples.

    Args:
        name: The command's name.
        examples: Lines that work when they are typed.
    """
    epilog = '\b\nExamples:\n' + textwrap.indent(textwrap.dedent(examples).strip(), '  ')

    def made(function: Callable[..., Any]) -> click.Command:
        return click.command(name, cls=Command, epilog=epilog)(function)

    return made


def parse_shape(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...] | None:
    """Read `--input-shape 1 3 224 224`, `1,3,224,224` or `1x3x224x224`."""
    if not values:
        return None
    parts = [part for value in values for part in re.split(r'[,x\s]+', value.strip('()[]')) if part]
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(
            f'must be positive integers such as 1 3 224 224, but got {" ".join(values)!r}.', ctx, parameter
        )
    return tuple(int(part) for part in parts)


def parse_settings(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read `--cfg-options key=value ...` as MMEngine's `DictAction` does."""
    import argparse

    from mmengine.config import DictAction

    for value in values:
        if not value.partition('=')[0].strip() or '=' not in value:
            raise click.BadParameter(
                f'must be KEY=VALUE, such as optim_wrapper.optimizer.lr=0.1, but got {value!r}.', ctx, parameter
            )
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('settings', nargs='*', action=DictAction)
    settings: dict[str, Any] = {}
    for value in values:
        try:
            settings.update(parser.parse_args(['--', value]).settings)
        except (AssertionError, ValueError, RecursionError) as error:
            raise click.BadParameter(f'{value!r} cannot be read: {error}.', ctx, parameter) from None
    return settings


SETTINGS_OPTION = click.option(
    '--cfg-options',
    'settings',
    multiple=True,
    callback=parse_settings,
    metavar='KEY=VALUE...',
    help='Change values of the config: nested keys with dots (train_cfg.max_epochs=2), lists as a=1,2 or "a=[(1,2),3]", '
    'positions in lists as numbers (custom_hooks.0.interval=1).',
)
SHAPE_OPTION = click.option(
    '--input-shape',
    multiple=True,
    callback=parse_shape,
    metavar='N C H W',
    help='Shape of one batch of inputs, such as 1 3 224 224; by default one sample of the data of the config.',
)
ALLOW_OPTION = click.option(
    '--allow', multiple=True, metavar='PACKAGE', help='A package whose functions a recipe may call, such as timm.'
)


def run_options(function: F) -> F:
    """Add the options of commands that run a config: --work-dir, --seed, --launcher, --cfg-options."""
    for option in (
        SETTINGS_OPTION,
        click.option('--launcher', type=click.Choice(['none', 'pytorch']), default='none', help="'pytorch' under torchrun."),
        click.option('--seed', type=click.IntRange(min=0), help="Seed of everything random; the config's, or 0, by default."),
        click.option(
            '--work-dir',
            type=click.Path(file_okay=False),
            help="Folder of logs, checkpoints and results; the config's own, or work_dirs/<name of the config>, by default.",
        ),
    ):
        function = option(function)
    return function
