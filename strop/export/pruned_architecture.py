"""The folder of a recipe as the architecture of a config, so that a pruned model is trained as any other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strop.algorithms import PlainArchitecture
from strop.export.recipe import load_recipe
from strop.registry import MODELS


@MODELS.register_module()
class RecipeArchitecture(PlainArchitecture):
    """A model that `strop prune --out FOLDER` or `save_slim` wrote, with its weights, as an architecture.

    `architecture=dict(type='RecipeArchitecture', folder='runs/slim', allow=['timm'])` fine-tunes it, as a student or alone.

    Args:
        folder: The folder.
        allow: Packages whose functions the recipe may call; see `load_recipe`.
        loss: See `PlainArchitecture`.
        metric: See `PlainArchitecture`.
        data_preprocessor: MMEngine's data preprocessor.
        init_cfg: MMEngine's initialisation config; the weights of the recipe stay without it.

    Raises:
        FileNotFoundError: If there is no such folder.
        ExportError: If the recipe or its weights are damaged.
        UnsafeFileError: If it names a package that is not allowed.

    >>> MODELS.build(dict(type='RecipeArchitecture', folder='no/such/folder'))
    Traceback (most recent call last):
    FileNotFoundError: ...
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        allow: str | Sequence[str] = (),
        loss: Callable[[Any, Any], Any] | Mapping[str, Any] | None = None,
        metric: Callable[[Any, Any], Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(load_recipe(folder, allow=allow), loss, metric, data_preprocessor, init_cfg)


__all__ = ['RecipeArchitecture']
