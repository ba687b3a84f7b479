from __future__ import annotations

import pytest
import torch

from strop.architectures.blocks import Identity, MBBlock
from strop.architectures.mobilenet import SearchableMobileNetV2
from strop.errors import ConfigError
from strop.registry import MODELS

from .spaces import MOBILE, decide_all

FIRST = {
    '_scope_': 'mmrazor',
    'type': 'OneShotMutableOP',
    'candidates': {'mb_k3e1': {'type': 'MBBlock', 'kernel_size': 3, 'expand_ratio': 1, 'act_cfg': {'type': 'ReLU6'}}},
}
ROWS = [[16, 1, 1, FIRST], [24, 2, 2, MOBILE], [32, 2, 2, MOBILE], [48, 1, 1, MOBILE]]


def small(**options) -> SearchableMobileNetV2:
    torch.manual_seed(0)
    settings = {'arch_setting': ROWS, 'first_channels': 16, 'last_channels': 64, 'out_indices': (4,), **options}
    model = SearchableMobileNetV2(**settings)
    decide_all(model, 0)
    return model


def test_plain_mobilenet_v2_has_its_published_size() -> None:
    def only(kernel: int, ratio: int) -> dict:
        block = {'type': 'MBBlock', 'kernel_size': kernel, 'expand_ratio': ratio, 'act_cfg': {'type': 'ReLU6'}}
        return {'type': 'OneShotMutableOP', 'candidates': {'only': block}}

    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    model = SearchableMobileNetV2([[c, n, s, only(3, t)] for t, c, n, s in table])
    # torchvision's mobilenet_v2 has 3,504,872 parameters, 1,281,000 of them in its linear layer.
    assert sum(p.numel() for p in model.parameters()) == 3_504_872 - 1_281_000
    decide_all(model, 0)
    torchvision = pytest.importorskip('torchvision')
    theirs = torchvision.models.mobilenet_v2(weights=None).features.eval()
    ours = model.eval()
    values = list(theirs.state_dict().values())
    assert [v.shape for v in values] == [v.shape for v in ours.state_dict().values()]
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x))


@pytest.mark.parametrize('place', [0, 1, 2])
def test_every_candidate_runs_and_learns(place: int) -> None:
    model = small()
    decide_all(model, place)
    (output,) = model(torch.rand(2, 3, 32, 32))
    assert output.shape == (2, 64, 4, 4)
    output.sum().backward()
    assert model.conv1.conv.weight.grad is not None


def test_names_and_choices() -> None:
    model = small()
    assert model.layers == ['layer1', 'layer2', 'layer3', 'layer4', 'conv2']
    choice = model.layer2[0]
    assert choice.choices == ['mb_k3e3', 'mb_k5e6', 'identity']
    assert [type(candidate) for candidate in choice.candidates] == [MBBlock, MBBlock, Identity]
    assert (choice.candidates[0].in_channels, choice.candidates[0].out_channels, choice.candidates[0].stride) == (16, 24, 2)
    assert model.layer2[1].candidates[0].stride == 1
    names = set(model.state_dict())
    assert {'conv1.conv.weight', 'conv2.bn.weight'} <= names


def test_widths_are_multiples_of_eight() -> None:
    model = small(widen_factor=0.75)
    assert model.conv1.out_channels == 16  # 12 would lose more than a tenth at 8
    assert [getattr(model, name)[0].candidates[0].out_channels for name in model.layers[:-1]] == [16, 24, 24, 40]
    assert model.out_channel == 64
    assert small(widen_factor=1.5).out_channel == 96


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'out_indices': (5,)}, r'range\(0, 5\).*received 5'),
        ({'frozen_stages': 5}, r'range\(-1, 5\).*received 5'),
        ({'arch_setting': [[16, 1, MOBILE]]}, 'stride'),
    ],
)
def test_arguments_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_frozen_stages_stay_in_evaluation() -> None:
    model = small(frozen_stages=2).train()
    for name, module in model.named_modules():
        if name.startswith(('conv1', 'layer1', 'layer2')):
            assert not module.training, name
    assert model.layer3.training
    assert not any(p.requires_grad for p in model.layer2.parameters())
    assert all(p.requires_grad for p in model.layer3.parameters())


def test_several_outputs_and_small_images() -> None:
    outputs = small(out_indices=(1, 4), stem_stride=1, in_channels=1)(torch.rand(2, 1, 28, 28))
    assert [tuple(x.shape) for x in outputs] == [(2, 24, 14, 14), (2, 64, 7, 7)]


def test_with_cp_changes_no_gradient() -> None:
    gradients = []
    for with_cp in (False, True):
        model = small(with_cp=with_cp)
        model(torch.linspace(0, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32))[0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_init_weights_follows_its_config() -> None:
    model = small()
    model.init_weights()
    weight = model.conv2.conv.weight
    assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.05)


@pytest.mark.parametrize('name', ['SearchableMobileNetV2', 'mmrazor.SearchableMobileNet'])
def test_built_from_a_config(name: str) -> None:
    model = MODELS.build({'type': name, 'arch_setting': ROWS, 'out_indices': (4,)})
    assert isinstance(model, SearchableMobileNetV2)
