"""The folder of a recipe as the architecture of a config, so that a pruned model is trained as any other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel

from strop.algorithms import PlainArchitecture
from strop.algorithms.plain_architecture import check_mode
from strop.errors import ConfigError
from strop.export.recipe import load_recipe
from strop.registry import MODELS


@MODELS.register_module()
class RecipeArchitecture(PlainArchitecture):
    """A model that `strop prune --out FOLDER` or `save_slim` wrote, with its weights, as an architecture.

    A model that has MMEngine's three modes itself, as those of OpenMMLab, computes its own losses and predictions, with its own
    data preprocessor.

    `architecture=dict(type='RecipeArchitecture', folder='runs/slim', allow=['timm'])` fine-tunes it, as a student or alone.

    Args:
        folder: The folder.
        allow: Packages whose functions the recipe may call; see `load_recipe`.
        loss: See `PlainArchitecture`.
        metric: See `PlainArchitecture`.
        data_preprocessor: MMEngine's data preprocessor.
        init_cfg: MMEngine's initialisation config; the weights of the recipe stay without it.

    Raises:
        ConfigError: If a loss or a metric is given for a model that computes its own.
        FileNotFoundError: If there is no such folder.
        ExportError: If the recipe or its weights are damaged.
        UnsafeFileError: If it names a package that is not allowed.

    >>> MODELS.build(dict(type='RecipeArchitecture', folder='no/such/folder'))
    Traceback (most recent call last):
    FileNotFoundError: ...
    """

    #: So that a recipe from anywhere cannot name this class, and give another one the consent that it has not got.
    reads_recipe = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        allow: str | Sequence[str] = (),
        loss: Callable[[Any, Any], Any] | Mapping[str, Any] | None = None,
        metric: Callable[[Any, Any], Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        model: Any = load_recipe(folder, allow=allow)
        self._has_modes = isinstance(model, BaseModel)
        if self._has_modes and (loss is not None or metric is not None):
            raise ConfigError(
                f'`loss` and `metric` are for plain modules; a {type(model).__name__} computes its own losses. Leave them out.'
            )
        super().__init__(model, loss, metric, data_preprocessor, init_cfg)
        if self._has_modes:
            # Or it would be initialised anew, and lose the weights of the recipe.
            model._is_init = True
            if data_preprocessor is None:
                self.data_preprocessor = model.data_preprocessor

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Return losses, raw outputs or predictions."""
        if self._has_modes:
            check_mode(mode)
            return self.module(inputs, data_samples, mode=mode)
        return super().forward(inputs, data_samples, mode)

    def extract_feat(self, inputs: Any) -> Any:
        """Return the features that the model's own `extract_feat` does.

        Raises:
            ConfigError: If it has none.
        """
        if not hasattr(self.module, 'extract_feat'):
            raise ConfigError(f'The {type(self.module).__name__} of the recipe has no extract_feat(inputs).')
        model: Any = self.module
        return model.extract_feat(inputs)


__all__ = ['RecipeArchitecture']
