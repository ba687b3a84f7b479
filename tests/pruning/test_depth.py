from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from strop.errors import ConfigError, VerificationError
from strop.pruning.depth import Skip, block_scores, remove_blocks, residual_blocks, skip


class Residual(nn.Module):
    def __init__(self, width=4, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.scale = scale

    def forward(self, x, mask=None):
        return x + self.scale * self.linear(x)


class Masked(nn.Module):
    """Blocks that are called with more than one argument and return tuples."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Tupled() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x, mask=torch.ones(1))
        return x


class Tupled(Residual):
    def forward(self, x, mask):
        return x + mask * self.linear(x), 'attention'


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), Residual(scale=1.0), Residual(scale=0.01), nn.Sequential(Residual(), nn.ReLU()), nn.Linear(4, 2)
    )


@pytest.fixture
def inputs():
    return torch.rand(5, 3, generator=torch.Generator().manual_seed(0))


def test_residual_blocks_are_found_the_inner_ones(net, inputs):
    assert list(residual_blocks(net, inputs)) == ['1', '2', '3.0']


def test_a_linear_layer_that_keeps_the_shape_is_no_residual_block(inputs):
    assert residual_blocks(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), inputs) == {}


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('resnet18', ['layer1.0', 'layer1.1', 'layer2.1', 'layer3.1', 'layer4.1']),
        ('resnetv2_50', None),
        ('vit_tiny_patch16_224', [f'blocks.{n}' for n in range(12)]),
        ('convnext_atto', None),
    ],
)
def test_blocks_of_real_models(name, expected):
    model = timm.create_model(name, **({'img_size': 64} if 'vit' in name else {})).eval()
    found = list(residual_blocks(model, torch.rand(1, 3, 64, 64)))
    if expected is not None:
        assert found == expected
    else:
        assert len(found) == {'resnetv2_50': 12, 'convnext_atto': 12}[name]


def test_a_block_that_hardly_changes_its_input_goes_first(net, inputs):
    scores = block_scores(net, inputs, ['1', '2', '3.0'])
    assert min(scores, key=scores.get) == '2'
    model, record = remove_blocks(net, inputs, count=1)
    assert record.removed == ('2',)
    assert type(model[2]) is nn.Identity
    expected = net[4](net[3](net[1](net[0](inputs))))
    assert torch.equal(model(inputs), expected)
    assert type(net[2]) is Residual


def test_influence_is_one_minus_the_cosine(net, inputs):
    hidden = net[0](inputs)
    out = net[1](hidden)
    cosine = nn.functional.cosine_similarity(hidden.double(), out.double()).detach()
    assert block_scores(net, inputs, ['1'])['1'] == pytest.approx(float((1 - cosine).mean()), rel=1e-6)


def test_output_change_and_loss_are_those_of_the_model_without_the_block(net, inputs):
    full, without = net(inputs).double(), net[4](net[3](net[2](net[0](inputs)))).double()
    change = block_scores(net, inputs, ['1'], 'output')['1']
    assert change == pytest.approx(float((full - without).norm() / full.norm()), rel=1e-6)

    def loss(model, batch):
        return (model(batch) ** 2).mean()

    rise = block_scores(net, inputs, ['1'], 'loss', data=[inputs, inputs], loss=loss)['1']
    assert rise == pytest.approx(2 * float((without**2).mean() - (full**2).mean()), rel=1e-4)
    assert not any(module._forward_hooks for module in net.modules())


def test_magnitude_and_functions(net, inputs):
    net[1].linear.weight.data.fill_(2)
    net[1].linear.bias.data.fill_(-4)
    assert block_scores(net, inputs, ['1'], 'magnitude')['1'] == pytest.approx((16 * 2 + 4 * 4) / 20)
    assert block_scores(net, inputs, ['1', '2'], lambda name, block, model: int(name)) == {'1': 1, '2': 2}


def test_blocks_of_several_arguments_and_tuples(inputs):
    torch.manual_seed(0)
    net = Masked()
    x = torch.rand(2, 4)
    assert list(residual_blocks(net, x)) == ['blocks.0', 'blocks.1', 'blocks.2']
    model, record = remove_blocks(net, x, names=['blocks.1'])
    assert isinstance(model.blocks[1], Skip)
    assert torch.equal(model(x), net.blocks[2](net.blocks[0](x, torch.ones(1))[0], torch.ones(1))[0])
    assert record.params == (60, 40)


def test_real_models_get_shorter():
    model = timm.create_model('vit_tiny_patch16_224', depth=4, img_size=64).eval()
    x = torch.rand(1, 3, 64, 64)
    slim, record = remove_blocks(model, x, ratio=0.5)
    assert len(record.removed) == 2
    one = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    assert record.params == (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters()) - 2 * one,
    )
    assert record.macs[1] < record.macs[0]
    again = record.replay(timm.create_model('vit_tiny_patch16_224', depth=4, img_size=64).eval(), x)
    again.load_state_dict(slim.state_dict())
    assert torch.equal(again(x), slim(x))


def test_in_place_the_model_itself_gets_shorter(net, inputs):
    net.train()
    model, _ = remove_blocks(net, inputs, count=2, inplace=True)
    assert model is net
    assert sum(type(module) is nn.Identity for module in net.modules()) == 2
    assert all(module.training for module in net.modules())


def test_modes_and_statistics_stay(inputs):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Residual(), nn.Linear(4, 1)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    remove_blocks(net, inputs, count=1, importance='output')
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({}, 'one of `count=`'),
        ({'count': 1, 'ratio': 0.5}, 'one of `count=`'),
        ({'count': 4}, 'There are 3 blocks'),
        ({'count': 0}, 'There are 3 blocks'),
        ({'ratio': 0.1}, 'There are 3 blocks'),
        ({'ratio': 1.0}, 'less than 1'),
        ({'names': ['5']}, "no block '5'"),
        ({'names': ['0']}, 'cannot be skipped'),
        ({'count': 1, 'importance': 'influenc'}, "Did you mean 'influence'"),
        ({'count': 1, 'importance': 'loss'}, 'needs `data='),
    ],
)
def test_what_cannot_be_removed_is_told(net, inputs, options, said):
    with pytest.raises(ConfigError, match=said):
        remove_blocks(net, inputs, **options)
    assert type(net[1]) is Residual


def test_a_model_without_residual_blocks(inputs):
    with pytest.raises(ConfigError, match='no residual blocks'):
        remove_blocks(nn.Sequential(nn.Linear(3, 2)), inputs, count=1)


def test_a_block_whose_weights_are_read_elsewhere_is_not_verified(inputs):
    class Peeking(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Residual(3)

        def forward(self, x):
            x = self.block(x)
            return x * self.block.linear.weight.sum() if isinstance(self.block, Residual) else x

    with pytest.raises(VerificationError, match='besides calling'):
        remove_blocks(Peeking(), inputs, names=['block'])


def test_skipping_gives_back_the_first_argument():
    x = torch.ones(1)
    assert Skip()(x, 1, mask=2) is x
    assert Skip()(hidden=x) is x
    assert Skip(2)(x) == (x, None)
    net = nn.Sequential(Residual())
    skip(net, torch.rand(1, 4), ['0'])
    assert type(net[0]) is nn.Identity


def test_normalisations_that_add_their_input_are_no_blocks():
    blocks = list(residual_blocks(timm.create_model('convnextv2_atto'), torch.rand(1, 3, 64, 64)))
    assert len(blocks) == 12
    assert not any('grn' in name for name in blocks)


def test_the_influence_is_along_the_channels_wherever_they_are():
    class Rows(nn.Module):
        """Gives images with their channels last, as Swin does."""

        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x):
            return x + self.linear(self.norm(x))

    torch.manual_seed(0)
    net, x = nn.Sequential(Rows()), torch.randn(2, 4, 5, 6)
    expected = 1 - nn.functional.cosine_similarity(x.double(), net(x).double(), dim=-1).mean()
    assert block_scores(net, x, ['0'])['0'] == pytest.approx(float(expected))


@pytest.mark.parametrize('importance', ['influence', 'magnitude', lambda name, block, model: 1.0])
def test_names_of_blocks_are_looked_at_first(importance):
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(ConfigError, match=r"no block '0\.1'"):
        block_scores(net, torch.rand(1, 4), ['0.1'], importance)
    with pytest.raises(ConfigError, match=r"'0\.0' is a part of '0'"):
        skip(net, torch.rand(1, 4), ['0', '0.0'])
