from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strop.architectures.blocks import ShuffleBlock, ShuffleXception
from strop.architectures.shufflenet import SearchableShuffleNetV2
from strop.errors import ConfigError
from strop.mutables.mutable_op import OneShotMutableOP
from strop.registry import MODELS

from .spaces import SHUFFLE, decide_all, shuffle_rows

SMALL = shuffle_rows((16, 2), (32, 1), (32, 1), (64, 1))


def small(**options) -> SearchableShuffleNetV2:
    torch.manual_seed(0)
    model = SearchableShuffleNetV2(SMALL, **{'in_channels': 1, 'stem_stride': 1, 'last_channels': 32, **options})
    decide_all(model, 0)
    return model


def choices(model: nn.Module) -> list[OneShotMutableOP]:
    return [module for module in model.modules() if isinstance(module, OneShotMutableOP)]


def test_space_of_the_spos_paper() -> None:
    model = SearchableShuffleNetV2(shuffle_rows((64, 4), (160, 4), (320, 8), (640, 4)))
    found = choices(model)
    assert len(found) == 20
    shapes = []
    for choice in found:
        assert choice.choices == ['shuffle_3x3', 'shuffle_5x5', 'shuffle_7x7', 'shuffle_xception']
        kinds = [type(candidate) for candidate in choice.candidates]
        assert kinds == [ShuffleBlock, ShuffleBlock, ShuffleBlock, ShuffleXception]
        shapes.append((choice.candidates[3].in_channels, choice.candidates[3].out_channels, choice.candidates[3].stride))
    expected = []
    channels = 16
    for width, blocks in ((64, 4), (160, 4), (320, 8), (640, 4)):
        expected += [(channels, width, 2)] + [(width, width, 1)] * (blocks - 1)
        channels = width
    assert shapes == expected
    decide_all(model, 3)
    with torch.no_grad():
        (output,) = model.eval()(torch.rand(1, 3, 64, 64))
    assert output.shape == (1, 1024, 2, 2)
    # Stem 3*16*9 + 2*16 and last layer 640*1024 + 2*1024, the rest is choices.
    rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for c in found for p in c.parameters())
    assert rest == 464 + 657408


def test_every_candidate_runs_and_learns_on_small_images() -> None:
    model = small()
    for place in range(4):
        decide_all(model, place)
        model.zero_grad()
        (output,) = model(torch.rand(2, 1, 28, 28))
        assert output.shape == (2, 32, 2, 2)
        output.sum().backward()
        for choice in choices(model):
            for number, candidate in enumerate(choice.candidates):
                learns = [parameter.grad is not None for parameter in candidate.parameters()]
                assert all(learns) if number == place else not any(learns)


def test_the_config_is_copied_for_every_block() -> None:
    rows = copy.deepcopy(SMALL)
    SearchableShuffleNetV2(rows, in_channels=1)
    assert rows == SMALL
    assert 'module_kwargs' not in SHUFFLE


def test_module_kwargs_that_are_given_stay() -> None:
    rows = [[16, 1, {**SHUFFLE, 'module_kwargs': {'norm_cfg': {'type': 'GN', 'num_groups': 2}, 'stride': 7}}]]
    model = SearchableShuffleNetV2(rows, out_indices=(1,))
    block = choices(model)[0].candidates[0]
    assert isinstance(block.branch1[0].norm, nn.GroupNorm)
    assert block.stride == 2


@pytest.mark.parametrize('indices', [(4,), (0, 2), (3, 1), (0, 1, 2, 3, 4)])
def test_out_indices(indices: tuple[int, ...]) -> None:
    model = small(out_indices=indices).eval()
    x = torch.rand(1, 1, 32, 32)
    outputs = model(x)
    expected = []
    x = model.conv1(x)
    for index, stage in enumerate(model.layers):
        x = stage(x)
        if index in indices:
            expected.append(x)
    assert isinstance(outputs, tuple)
    assert len(outputs) == len(indices)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'out_indices': (5,)}, r'out_indices must be in range\(0, 5\).*received 5'),
        ({'out_indices': (-1,)}, r'range\(0, 5\).*received -1'),
        ({'out_indices': (4,), 'with_last_layer': False}, r'range\(0, 4\).*received 4'),
        ({'frozen_stages': 5}, r'frozen_stages must be in range\(-1, 5\).*received 5'),
        ({'frozen_stages': -2}, r'range\(-1, 5\)'),
        ({'strides': (1, 2)}, '4 rows'),
    ],
)
def test_ranges_are_value_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        small(**options)
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([], 'list of rows'),
        ([[64, 4]], r'row 0 is \[64, 4\]'),
        ([[64, 4, SHUFFLE], [64, 0, SHUFFLE]], 'num_blocks must be a positive integer; row 1'),
        ([[64, 4, {'candidates': {}}]], "mutable_cfg must be a dict with a 'type'"),
        ([[63, 1, SHUFFLE]], 'even'),
    ],
)
def test_rows_are_checked(rows: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchableShuffleNetV2(rows, out_indices=(0,))


def test_widths() -> None:
    model = SearchableShuffleNetV2(SMALL, stem_multiplier=2, widen_factor=0.5, with_last_layer=False, out_indices=(3,))
    assert model.conv1.out_channels == 32
    assert [stage[0].candidates[0].out_channels for stage in model.layers] == [8, 16, 16, 32]
    assert model.out_channels == 32
    decide_all(model, 1)
    assert model(torch.rand(1, 3, 64, 64))[0].shape == (1, 32, 2, 2)


def test_strides() -> None:
    model = SearchableShuffleNetV2(
        shuffle_rows((16, 2), (32, 1)), stem_stride=1, strides=(1, 2), with_last_layer=False, out_indices=(0, 1)
    )
    decide_all(model, 0)
    first, second = model(torch.rand(1, 3, 32, 32))
    assert first.shape == (1, 16, 32, 32)
    assert second.shape == (1, 32, 16, 16)


@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_frozen_stages(frozen: int) -> None:
    model = small(frozen_stages=frozen)
    parts = [model.conv1, *model.layers]
    for _ in range(2):
        for number, part in enumerate(parts):
            still = number <= frozen
            assert {parameter.requires_grad for parameter in part.parameters()} == {not still}
            assert {module.training for module in part.modules()} == {not still}
        assert model.train() is model
    before = copy.deepcopy([part.state_dict() for part in parts])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    model(torch.rand(4, 1, 28, 28))[0].square().sum().backward()
    optimizer.step()
    for number, (part, old) in enumerate(zip(parts, before, strict=True)):
        same = all(torch.equal(value, old[name]) for name, value in part.state_dict().items())
        assert same is (number <= frozen)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_norm_eval_keeps_statistics() -> None:
    model = small(norm_eval=True).train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.conv1.conv.training
    model(torch.rand(2, 1, 28, 28) + 3)
    assert not any(bool(norm.num_batches_tracked) for norm in norms)


def test_with_cp_changes_nothing() -> None:
    results = []
    for with_cp in (False, True):
        model = small(with_cp=with_cp)
        model.init_weights()
        model.load_state_dict(small().state_dict())
        x = torch.linspace(0, 1, 2 * 28 * 28).reshape(2, 1, 28, 28)
        (output,) = model(x)
        output.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([output.detach(), *gradients, *model.buffers()])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_init_weights() -> None:
    torch.manual_seed(0)
    model = SearchableShuffleNetV2(shuffle_rows((64, 1), (128, 1)), out_indices=(2,), stem_multiplier=4)
    model.init_weights()
    assert model.conv1.conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.layers[2].conv.weight.std().item() == pytest.approx(1 / 128, rel=0.05)
    block = model.layers[1][0].candidates[0]
    assert block.branch1[0].conv.weight.std().item() == pytest.approx(1.0, rel=0.1)  # depthwise
    assert block.branch1[1].conv.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert block.branch1[0].bn.bias.tolist() == pytest.approx([0.0001] * 64)
    before = model.conv1.conv.weight.clone()
    model.init_weights()
    assert torch.equal(model.conv1.conv.weight, before)


def test_pretrained_weights_are_not_overwritten(tmp_path: Path) -> None:
    source = small()
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    for form in (lambda cfg: cfg, lambda cfg: [cfg]):
        torch.manual_seed(5)
        model = SearchableShuffleNetV2(
            SMALL,
            in_channels=1,
            stem_stride=1,
            last_channels=32,
            init_cfg=form({'type': 'Pretrained', 'checkpoint': str(tmp_path / 'weights.pth')}),
        )
        model.init_weights()
        for name, value in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


def test_checkpoint_keys_are_those_of_mmrazor() -> None:
    names = set(small().state_dict())
    expected = {'conv1.conv.weight', 'conv1.bn.running_var', 'layers.4.conv.weight', 'layers.4.bn.weight'}
    assert expected <= names
    assert any(name.startswith('layers.0.1.') and name.endswith('branch2.0.conv.weight') for name in names)


@pytest.mark.parametrize('scope', ['strop', 'mmrazor'])
def test_built_from_a_config_of_either_scope(scope: str) -> None:
    model = MODELS.build({'type': f'{scope}.SearchableShuffleNetV2', 'arch_setting': SMALL, 'in_channels': 1})
    assert isinstance(model, SearchableShuffleNetV2)
    assert len(choices(model)) == 5


def test_a_subclass_may_override_every_method() -> None:
    seen = []

    class Own(SearchableShuffleNetV2):
        def __init__(self, arch_setting, **options):
            super().__init__(arch_setting, **options)
            self.extra = nn.Identity()

        def _make_layer(self, out_channels, num_blocks, mutable_cfg):
            seen.append('_make_layer')
            layers = []
            for i in range(num_blocks):
                stride = 2 if i == 0 else 1
                mutable_cfg.update(
                    module_kwargs={'in_channels': self.in_channels, 'out_channels': out_channels, 'stride': stride}
                )
                layers.append(MODELS.build(mutable_cfg))
                self.in_channels = out_channels
            return nn.Sequential(*layers)

        def _freeze_stages(self):
            seen.append('_freeze_stages')
            self.extra.requires_grad_(False)
            self.conv1.requires_grad_(False)

        def init_weights(self):
            seen.append('init_weights')
            super().init_weights()

        def forward(self, x):
            seen.append('forward')
            return super().forward(self.extra(x))

        def train(self, mode=True):
            seen.append('train')
            super().train(mode)

    model = Own(SMALL, in_channels=1, with_cp=True)
    assert seen == ['_make_layer'] * 4
    decide_all(model, 2)
    model.train()
    model.init_weights()
    assert len(model(torch.rand(2, 1, 64, 64))) == 1
    assert {'_freeze_stages', 'init_weights', 'forward', 'train'} <= set(seen)
    assert not model.conv1.conv.weight.requires_grad


def test_copies_and_compiled_models_agree() -> None:
    model = small(with_cp=True).eval()
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        (expected,) = model(x)
        assert torch.equal(copy.deepcopy(model)(x)[0], expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x)[0], expected)
        assert torch.equal(torch.compile(model, backend='eager', fullgraph=True)(x)[0], expected)
