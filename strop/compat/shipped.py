"""The configs that ship with Strop, found by the names of MMRazor's."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from strop.errors import near

ROOT = Path(__file__).parents[1] / '.mim' / 'configs'


def shipped(name: str) -> str | None:
    """Return the config of Strop that is called as a config of MMRazor is, as `strop::path`, if there is one alone.

    >>> shipped('nas/mmcls/spos/spos_shufflenet_search_8xb128_in1k.py')
    'strop::spos/spos_shufflenet_search_8xb128_in1k.py'
    """
    path = ROOT / name
    if path.is_file() and ROOT.resolve() in path.resolve().parents:
        return f'strop::{name}'
    found = [file.relative_to(ROOT).as_posix() for file in ROOT.rglob('*.py') if file.name == PurePosixPath(name).name]
    return f'strop::{found[0]}' if len(found) == 1 else None


def near_shipped(name: str) -> str:
    """Return a sentence on the configs whose names are near, or an empty string.

    >>> near_shipped('spos_shufflenet_search_8xb128_in1.py')
    " Did you mean 'spos_shufflenet_search_8xb128_in1k.py'..."
    """
    return near(PurePosixPath(name).name, {file.name for file in ROOT.rglob('*.py')})
