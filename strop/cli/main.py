"""The group of commands, their lazy loading, and what every one of them does with an error.

Nothing imported here needs torch, so that `strop --help` and a mistyped option answer at once. Commands import what
they need when they run.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from strop import __version__
from strop.cli.failures import INTERRUPTED, describe
from strop.cli.options import DEBUG
from strop.errors import listed, near

# Command -> module:attribute. The order is that of the help.
COMMANDS = {
    'train': 'strop.cli.runs:train',
    'search': 'strop.cli.runs:search',
    'test': 'strop.cli.runs:test',
    'experiment': 'strop.cli.experiments:experiment',
    'export': 'strop.cli.exporting:export',
    'compress': 'strop.cli.compressing:compress',
    'report': 'strop.cli.reporting:report',
    'compare': 'strop.cli.reporting:compare',
    'units': 'strop.cli.units:units',
    'prune': 'strop.cli.pruning:prune',
    'quantize': 'strop.cli.quantizing:quantize',
    'estimate': 'strop.cli.estimate:estimate',
    'show': 'strop.cli.show:show',
    'dashboard': 'strop.cli.dashboard:dashboard',
    'migrate': 'strop.cli.migrating:migrate',
    'ss-gen': 'strop.cli.space_files:ss_gen',
    'doctor': 'strop.cli.doctor:doctor',
    'demo': 'strop.cli.demo:demo',
}

# As NNI's command line wrote them.
ALIASES = {'ss_gen': 'ss-gen'}

EPILOG = """\b
The usual way through:
  strop train    strop::spos/spos_shufflenet_supernet_mnist.py --work-dir runs/supernet
  strop search   strop::spos/spos_shufflenet_search_mnist.py --work-dir runs/search \\
                 --checkpoint runs/supernet/epoch_10.pth
  strop test     strop::spos/spos_shufflenet_search_mnist.py \\
                 --checkpoint runs/supernet/epoch_10.pth --subnet runs/search/best_fix_subnet.yaml
  strop estimate strop::spos/spos_shufflenet_search_mnist.py --subnet runs/search/best_fix_subnet.yaml

\b
CONFIG is a file, or PACKAGE::PATH for one that ships with an installed package.

\b
Exit codes:
    0  done
    1  an error in the config, a file or the data; `strop doctor` found something broken
    2  wrong usage of the command line
    3  no subnet meets the given budget
  130  interrupted (Ctrl-C); `--resume` goes on
"""


class Commands(click.Group):
    """A group that imports a command when it is needed and words every error in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(':')
        found: click.Command = getattr(importlib.import_module(module), attribute)
        if not any(parameter.name == DEBUG.name for parameter in found.params):
            found.params.append(DEBUG)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of an argument list; the error for an unknown one names the near match."""
        if args and args[0] not in {*COMMANDS, *ALIASES} and not args[0].startswith('-'):
            raise click.UsageError(
                f'There is no command {args[0]!r}.{near(args[0], COMMANDS)} There are {listed(COMMANDS)}.', ctx
            )
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run a command, and end the process with an exit code of `EPILOG`."""
        prog_name = prog_name or 'strop'
        if not extra.pop('standalone_mode', True):
            return super().main(args, prog_name, standalone_mode=False, **extra)
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, prog_name, standalone_mode=False, **extra)
        except BaseException as error:
            _end(error, debug='--debug' in given)
        sys.exit(code if isinstance(code, int) else 0)


# What a group raises that is called without a command: its help, as an error (click 8.2 and later).
_NO_ARGUMENTS: Any = getattr(click.exceptions, 'NoArgsIsHelpError', ())


def _end(error: BaseException, debug: bool) -> NoReturn:
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, _NO_ARGUMENTS):
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    message, code = describe(error)
    if debug and code != INTERRUPTED and not isinstance(error, click.ClickException):
        click.echo(''.join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(message, err=True)
    sys.exit(code)


@click.command(cls=Commands, epilog=EPILOG, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 110})
@click.version_option(__version__, '-V', '--version', prog_name='strop')
def main() -> None:
    """Search, prune, distil and quantize PyTorch models.

    `strop COMMAND --help` explains a command with an example; `strop doctor` looks over the installation.
    """


main.params.append(DEBUG)
