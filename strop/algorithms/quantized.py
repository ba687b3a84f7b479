"""Quantization of an architecture by a quantizer, to be calibrated or trained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import nn

from strop.algorithms.algorithm import BaseAlgorithm
from strop.algorithms.plain_architecture import MODES, PlainArchitecture
from strop.engine.pretrained import load_pretrained
from strop.errors import ComponentTypeError, ConfigError, listed, near
from strop.quantization import calibrating, convert
from strop.quantization.quantizers import BaseQuantizer
from strop.registry import MODELS


@MODELS.register_module()
class MMArchitectureQuant(BaseAlgorithm):
    """An architecture with fake quantizers on its layers, in all modes.

    It is trained, calibrated (`PTQLoop`), validated and saved as any algorithm, and can be the architecture of another one:
    the student of `SingleTeacherDistill`, whose teacher is the float model. There is one architecture, so that nothing has to
    be kept alike between modes.

    Args:
        architecture: A config, an MMEngine `BaseModel`, or any `nn.Module`.
        quantizer: A quantizer (`TorchNativeQuantizer`, `AcademicQuantizer`, ...) or its config. Names of layers in it are
            those of the architecture (for a plain module, the user's own).
        deploy_cfg: Not used; `deployed` and the exporters of `strop.quantization` take its place.
        data_preprocessor: MMEngine's data preprocessor; the architecture's own by default.
        forward_modes: The modes that are called; others of 'tensor', 'predict', 'loss' work, too.
        float_checkpoint: Checkpoint of the float model to begin with. It must fit.
        input_shapes: Shape of a batch of inputs, for folding batch norms in `deployed`.
        init_cfg: MMEngine's initialization config.
        kwargs: `loss` and `metric` for a plain module.

    Raises:
        ComponentTypeError: If the quantizer is none.
        ConfigError: If a mode does not exist, the checkpoint is of another model, or the quantizer's names match nothing.

    >>> algorithm = MMArchitectureQuant(
    ...     nn.Sequential(nn.Linear(4, 2)), dict(type='TorchNativeQuantizer', global_qconfig='lsq8')
    ... )
    >>> optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    >>> log = algorithm.train_step((torch.rand(3, 4), torch.tensor([0, 1, 0])), optimizer)
    >>> algorithm.architecture.module[0].weight_fake_quant.scale.requires_grad
    True
    """

    def __init__(
        self,
        architecture: BaseModel | nn.Module | Mapping[str, Any],
        quantizer: BaseQuantizer | Mapping[str, Any],
        deploy_cfg: Any = None,
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        forward_modes: Sequence[str] = ('tensor', 'predict', 'loss'),
        float_checkpoint: str | os.PathLike[str] | None = None,
        input_shapes: Sequence[int] = (1, 3, 224, 224),
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(architecture, data_preprocessor, init_cfg, **kwargs)
        for mode in forward_modes:
            if mode not in MODES:
                raise ConfigError(f'`forward_modes` are of {listed(MODES)}, but one is {mode!r}.{near(mode, MODES)}')
        self.forward_modes = tuple(forward_modes)
        if deploy_cfg is not None:
            print_log('`deploy_cfg` is not needed: export what `deployed()` gives by strop.quantization.', logger='current')
        built = MODELS.build(dict(quantizer)) if isinstance(quantizer, Mapping) else quantizer
        if not isinstance(built, BaseQuantizer):
            raise ComponentTypeError(
                f'`quantizer` must be a config or an instance of a quantizer (TorchNativeQuantizer, AcademicQuantizer, ...), '
                f'but got {type(built).__name__}.'
            )
        self.quantizer = built
        self.input_shapes = tuple(input_shapes)
        if float_checkpoint is not None:
            load_pretrained(self.network, float_checkpoint)
        if float_checkpoint is not None or isinstance(architecture, nn.Module):
            # Or the runner would initialize it anew before training.
            self.architecture._is_init = True
        built.prepare(self.network)

    @property
    def network(self) -> nn.Module:
        """What is quantized: the architecture, or the plain module inside."""
        return self.architecture.module if isinstance(self.architecture, PlainArchitecture) else self.architecture

    @torch.no_grad()
    def calibrate_step(self, data: Any) -> Any:
        """Let the fake quantizers look at a batch, as a data loader gives it."""
        with calibrating(self):
            return self._run_forward(self.data_preprocessor(data, False), mode='tensor')

    def deployed(self, example_inputs: Any = None) -> nn.Module:
        """Return the network with integer weights, batch norms folded if there are example inputs.

        Args:
            example_inputs: Inputs of one forward, for `convert`. By default batch norms stay apart.

        Raises:
            ConfigError: If a layer has seen no data.
        """
        return convert(self.network, example_inputs)

    def get_deploy_model(self) -> nn.Module:
        """Return the network with integer weights and folded batch norms, found by random inputs of `input_shapes`.

        Raises:
            ConfigError: If a layer has seen no data, or the network does not take inputs of that shape.
        """
        device = next(self.network.parameters()).device
        example = torch.randn(self.input_shapes, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            return convert(self.network, example)
        except RuntimeError as error:
            raise ConfigError(
                f'The network does not take inputs of `input_shapes` {self.input_shapes}: {error}. Set it to the shape of a '
                'batch, or call deployed(example_inputs).'
            ) from error
