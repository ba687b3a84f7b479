from __future__ import annotations

import pytest
import torch

from strop.compat.fronts import BaseBackbone, answer_to_scope, build
from strop.errors import ConfigError, UnknownTypeError


class Stem(BaseBackbone):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return (self.conv(x),)


def test_a_backbone_initializes_by_its_config_and_returns_itself_from_train() -> None:
    stem = Stem({'type': 'Constant', 'layer': 'Conv2d', 'val': 0.5})
    stem.init_weights()
    assert bool((stem.conv.weight == 0.5).all())
    assert stem.train() is stem
    assert not stem.eval().training


def test_a_backbone_needs_a_forward() -> None:
    with pytest.raises(TypeError, match='forward'):
        BaseBackbone()


def test_build_takes_defaults_and_keeps_the_config() -> None:
    cfg = {'type': 'torch.nn.Linear', 'in_features': 2}
    layer = build(cfg, {'in_features': 9, 'out_features': 3})
    assert (layer.in_features, layer.out_features) == (2, 3)
    assert cfg == {'type': 'torch.nn.Linear', 'in_features': 2}


@pytest.mark.parametrize('cfg', [None, 'SPOS', {}, {'arch': 1}])
def test_build_refuses_what_is_no_config(cfg) -> None:
    with pytest.raises(ConfigError, match="mapping with the key 'type'"):
        build(cfg)


def test_build_names_a_near_type() -> None:
    with pytest.raises(UnknownTypeError, match="Did you mean 'OneShotMutator'"):
        build({'type': 'OneShotMutater'})


def test_a_scope_is_added_once_and_shares_what_is_registered_later() -> None:
    import strop.registry
    from strop.registry import MODELS

    answer_to_scope('scope_of_a_test', strop.registry)
    answer_to_scope('scope_of_a_test', strop.registry)
    assert MODELS.get('scope_of_a_test.OneShotMutator') is MODELS.get('OneShotMutator')
    MODELS.register_module(name='LateStem', module=Stem)
    try:
        assert MODELS.get('scope_of_a_test.LateStem') is Stem
    finally:
        del MODELS.module_dict['LateStem'], MODELS.parent.children['scope_of_a_test']
