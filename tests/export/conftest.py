from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from strop.mutables import space_of
from strop.registry import MODELS


def choice(**candidates):
    return {'type': 'OneShotMutableOP', 'candidates': candidates}


SHUFFLE = choice(
    k3={'type': 'ShuffleBlock', 'kernel_size': 3}, k5={'type': 'ShuffleBlock', 'kernel_size': 5}, x={'type': 'ShuffleXception'}
)
MOBILE = choice(
    k3={'type': 'MBBlock', 'kernel_size': 3, 'expand_ratio': 3}, k5={'type': 'MBBlock', 'kernel_size': 5, 'expand_ratio': 2}
)

CLASSIFIER = {
    'type': 'ImageClassifier',
    'backbone': {
        'type': 'SearchableShuffleNetV2',
        'arch_setting': [[16, 2, SHUFFLE], [32, 2, SHUFFLE]],
        'out_indices': (2,),
        'last_channels': 64,
    },
    'neck': {'type': 'GlobalAveragePooling'},
    'head': {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 64},
}
MOBILENET = {
    'type': 'SearchableMobileNetV2',
    'arch_setting': [[8, 1, 1, MOBILE], [16, 2, 2, MOBILE]],
    'first_channels': 8,
    'last_channels': 32,
    'out_indices': (0, 2),
}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms the statistics and scales of a trained network, so that no two paths compute the same."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    return model


def supernet(config=CLASSIFIER, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomized(MODELS.build(config), seed)


def draw(model: nn.Module, seed: int = 0):
    return space_of(model).sample(np.random.default_rng(seed))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
