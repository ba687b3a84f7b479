"""Distributed data parallel for algorithms, on accelerators and (with gloo) on CPUs."""

from __future__ import annotations

import atexit
import gc
import os
import time
from typing import Any

import torch
from mmengine.dist import is_distributed
from mmengine.model import MMDistributedDataParallel
from torch import nn

from strop.errors import ConfigError
from strop.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module(
    name=[
        'DistributedAlgorithm',
        'MMDistributedDataParallel',
        'SlimmableNetworkDDP',
        'AutoSlimDDP',
        'DartsDDP',
        'MMArchitectureQuantDDP',
    ]
)
class DistributedAlgorithm(MMDistributedDataParallel):
    """DDP whose `train_step` is the algorithm's own, with its forward going through DDP.

    MMEngine's wrapper calls only the model's forward, so an algorithm that overrides `train_step` would be
    trained by another one than its own.

    Args:
        module: The algorithm.
        device_ids: As DDP's; ignored on the CPU.
        find_unused_parameters: True by default, since a subnet leaves parameters unused.
    """

    def __init__(self, module: nn.Module, device_ids: Any = None, find_unused_parameters: bool = True, **kwargs: Any) -> None:
        if not torch.cuda.is_available():
            device_ids = None
        kwargs.setdefault('broadcast_buffers', False)
        super().__init__(module=module, device_ids=device_ids, find_unused_parameters=find_unused_parameters, **kwargs)
        if hasattr(module, 'set_wrapper'):
            module.set_wrapper(self)  # type: ignore[operator]

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Run the algorithm's own training step."""
        if hasattr(self.module, 'set_wrapper'):
            algorithm: Any = self.module
            return algorithm.train_step(data, optim_wrapper)
        return super().train_step(data, optim_wrapper)


def start_process_group() -> None:
    """Join the process group that `torchrun` describes in the environment: NCCL with GPUs, gloo without.

    Raises:
        ConfigError: If the environment does not come from `torchrun`.
    """
    if is_distributed():
        return
    absent = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if absent:
        raise ConfigError(
            f'The launcher is pytorch, but {", ".join(absent)} is not set. Start with: torchrun --nproc-per-node 2 -m strop '
            'train CONFIG --launcher pytorch'
        )
    os.environ.setdefault('LOCAL_RANK', '0')
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        torch.distributed.init_process_group('nccl')
    else:
        torch.distributed.init_process_group('gloo')
    atexit.register(_end_process_group)


def _end_process_group() -> None:
    # A thread of the backend that lets go of its last work needs the GIL. Where the interpreter is being torn down by then, it
    # aborts the whole process (SIGABRT, once in some twenty runs of two processes on a busy machine).
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()
        time.sleep(0.2)
