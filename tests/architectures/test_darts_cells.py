import pytest
import torch
from torch import nn

from strop.architectures import DartsBackbone, DartsCell, DartsSubnetClsHead
from strop.architectures.darts_cells import AuxiliaryTower, FactorizedReduce
from strop.errors import ConfigError
from strop.estimators import SpaceEstimator, count
from strop.mutables import DiffChoiceRoute, DiffMutableOP, apply_subnet, extract, mutables_of, space_of
from strop.mutators import DifferentiableMutator
from strop.randomness import counter_rng
from strop.registry import MODELS

CANDIDATES = dict(
    zero=dict(type='mmrazor.DartsZero'),
    skip_connect=dict(type='mmrazor.DartsSkipConnect', use_drop_path=True),
    max_pool_3x3=dict(type='mmrazor.DartsPoolBN', pool_type='max', use_drop_path=True),
    avg_pool_3x3=dict(type='mmrazor.DartsPoolBN', pool_type='avg', use_drop_path=True),
    sep_conv_3x3=dict(type='mmrazor.DartsSepConv', kernel_size=3, use_drop_path=True),
    sep_conv_5x5=dict(type='mmrazor.DartsSepConv', kernel_size=5, use_drop_path=True),
    dil_conv_3x3=dict(type='mmrazor.DartsDilConv', kernel_size=3, use_drop_path=True),
    dil_conv_5x5=dict(type='mmrazor.DartsDilConv', kernel_size=5, use_drop_path=True),
)
OPERATIONS = list(CANDIDATES.items())


def operation(cfg, in_channels=4, out_channels=4, stride=1):
    return MODELS.build(dict(cfg, in_channels=in_channels, out_channels=out_channels, stride=stride))


def backbone(candidates=CANDIDATES, **changes):
    arguments = dict(in_channels=3, base_channels=4, num_layers=3, num_nodes=3, out_indices=(1, 2))
    mutable = dict(type='mmrazor.DiffMutableOP', candidates=candidates)
    route = dict(type='mmrazor.DiffChoiceRoute', with_arch_param=True)
    return DartsBackbone(mutable_cfg=mutable, route_cfg=route, **{**arguments, **changes})


# -- operations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'cfg'), OPERATIONS, ids=list(CANDIDATES))
@pytest.mark.parametrize(('size', 'stride', 'out_channels'), [(8, 1, 4), (8, 2, 4), (7, 2, 4), (8, 1, 8), (8, 2, 8)])
def test_every_operation_gives_the_shape_that_is_asked_for(name, cfg, size, stride, out_channels):
    x = torch.randn(2, 4, size, size)
    before = x.clone()
    op = operation(cfg, out_channels=out_channels, stride=stride)
    assert op(x).shape == (2, out_channels, -(-size // stride), -(-size // stride))
    assert torch.equal(x, before), 'operations of an edge share their input'


# Of the paper's operations at 16 channels: depthwise and pointwise weights, and two numbers a channel of each norm.
@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('zero', 0),
        ('skip_connect', 0),
        ('max_pool_3x3', 32),
        ('avg_pool_3x3', 32),
        ('sep_conv_3x3', 2 * (16 * 9 + 16 * 16 + 32)),
        ('sep_conv_5x5', 2 * (16 * 25 + 16 * 16 + 32)),
        ('dil_conv_3x3', 16 * 9 + 16 * 16 + 32),
        ('dil_conv_5x5', 16 * 25 + 16 * 16 + 32),
    ],
)
def test_the_number_of_parameters_is_that_of_the_paper(name, parameters):
    op = operation(CANDIDATES[name], 16, 16)
    assert sum(parameter.numel() for parameter in op.parameters()) == parameters


def test_zero_is_zero_whatever_comes_in():
    op = operation(CANDIDATES['zero'], stride=2)
    assert torch.equal(op(torch.full((1, 4, 6, 6), float('nan'))), torch.zeros(1, 4, 3, 3))


@pytest.mark.parametrize('size', [8, 7])
def test_a_factorized_reduction_sees_both_diagonals(size):
    reduce = FactorizedReduce(1, 2).eval()
    for conv in (reduce.conv1, reduce.conv2):
        nn.init.ones_(conv.weight)
    x = torch.rand(1, 1, size, size)
    output = reduce(x)
    shifted = torch.zeros(1, 1, -(-size // 2), -(-size // 2))
    inner = x[:, :, 1::2, 1::2]
    shifted[:, :, : inner.shape[2], : inner.shape[3]] = inner
    assert torch.allclose(output, torch.cat([x[:, :, ::2, ::2], shifted], 1), atol=1e-4)


def test_average_pooling_leaves_the_padding_out():
    op = operation(CANDIDATES['avg_pool_3x3'])
    assert torch.equal(op.layers[0](torch.ones(1, 4, 5, 5)), torch.ones(1, 4, 5, 5))


def test_dropped_paths_are_whole_samples_and_the_identity_never_drops():
    torch.manual_seed(0)
    net = backbone(num_layers=3, out_indices=(0,))
    net.set_drop_path(0.5)
    conv = net.cells[0].nodes[0].candidates[0]['sep_conv_3x3']
    samples = conv(torch.randn(64, 4, 8, 8)).flatten(1).abs().sum(1) == 0
    assert 10 < samples.sum() < 54
    x = torch.randn(64, 4, 8, 8)
    assert operation(CANDIDATES['skip_connect'])(x) is x
    assert not (conv.eval()(x).flatten(1).abs().sum(1) == 0).any()
    with pytest.raises(ConfigError, match='drop_path_rate'):
        net.set_drop_path(1.0)


@pytest.mark.parametrize(
    ('cfg', 'words'),
    [
        (dict(type='DartsPoolBN', pool_type='mean'), "'max', 'avg'"),
        (dict(type='DartsPoolBN', pool_type='max', kernel_size=2), 'odd'),
        (dict(type='DartsSepConv', kernel_size=4), 'odd'),
        (dict(type='DartsDilConv', kernel_size=0), 'odd'),
        (dict(type='DartsSkipConnect', stride=3), '1 or 2'),
        (dict(type='DartsSkipConnect', stride=2, out_channels=5), 'even'),
        (dict(type='DartsZero', in_channels=0), 'positive integer'),
    ],
)
def test_a_malformed_operation_is_refused(cfg, words):
    with pytest.raises(ConfigError, match=words):
        MODELS.build({'in_channels': 4, 'out_channels': 4, **cfg})


# -- cells and backbone ---------------------------------------------------------------------------------------


def test_the_space_is_that_of_the_paper():
    net = backbone(num_layers=8, num_nodes=4, out_indices=(7,))
    space = space_of(net)
    routes = [key for key in space if '_p' not in key]
    assert len(routes) == 8
    assert len(space) - len(routes) == 28
    # Two edges of 2, 3, 4, 5 with one of eight operations each, in two kinds of cells.
    assert space.count() == (1 * 3 * 6 * 10 * 8**8) ** 2
    assert [type(m) for m in mutables_of(net)].count(DiffChoiceRoute) == 8 * 4
    assert [type(m) for m in mutables_of(net)].count(DiffMutableOP) == 8 * 14


def test_the_shapes_are_those_of_the_paper():
    net = backbone(num_layers=6, num_nodes=2, base_channels=4, out_indices=(1, 2, 5))
    mutator = DifferentiableMutator(net)
    mutator.reset()
    outputs = net(torch.rand(2, 3, 16, 16))
    assert [tuple(output.shape) for output in outputs] == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)]
    assert net.out_channels == 32
    outputs[-1].sum().backward()
    assert all(logits.grad is not None for logits in mutator.parameters())


def test_a_cell_computes_what_its_decisions_say():
    torch.manual_seed(0)
    mutable = dict(type='DiffMutableOP', candidates=dict(skip=CANDIDATES['skip_connect'], conv=CANDIDATES['sep_conv_3x3']))
    cell = DartsCell(2, 4, (4, 4), False, False, mutable, dict(type='DiffChoiceRoute')).eval()
    choices = {'normal_n2': [0, 1], 'normal_n2_p0': 'skip', 'normal_n2_p1': 'conv', 'normal_n3': [0, 2]}
    apply_subnet(cell, {**choices, 'normal_n3_p0': 'conv', 'normal_n3_p2': 'skip'})
    s0, s1 = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    a, b = cell.preproc0(s0), cell.preproc1(s1)
    first = a + cell.nodes[0].candidates[1]['conv'](b)
    second = cell.nodes[1].candidates[0]['conv'](a) + first
    assert torch.allclose(cell(s0, s1), torch.cat([first, second], 1), atol=1e-6)


def test_a_found_network_is_plain_and_equal():
    torch.manual_seed(0)
    net = backbone().eval()
    space = space_of(net)
    x = torch.rand(2, 3, 16, 16)
    for trial in range(2):
        subnet = space.sample(counter_rng(0, 'test', trial))
        apply_subnet(net, subnet)
        plain = extract(net, subnet)
        assert mutables_of(plain) == []
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net(x), plain(x)))
        assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in net.parameters()) / 2


def test_resources_of_a_subnet_are_those_of_its_network():
    net = backbone(dict(OPERATIONS[:2] + OPERATIONS[4:5]), num_nodes=2).eval()
    x = torch.rand(1, 3, 16, 16)
    estimator = SpaceEstimator(net, x)
    for trial in range(3):
        subnet = estimator.space.sample(counter_rng(1, 'test', trial))
        found = estimator.estimate(subnet, ['macs', 'params'])
        counted = count(extract(net, subnet), x)
        assert (found['macs'], found['params']) == (counted.macs, counted.params)


def test_old_subnet_files_fit():
    """The form of MMRazor's exported subnets: names of edges, and a list of one operation."""
    net = backbone(num_nodes=2)
    document = {}
    for kind in ('normal', 'reduce'):
        for node in (2, 3):
            document[f'{kind}_n{node}'] = {'chosen': [f'{kind}_n{node}_p0', f'{kind}_n{node}_p1']}
            for edge in range(2):
                document[f'{kind}_n{node}_p{edge}'] = {'chosen': ['sep_conv_3x3']}
    mutator = DifferentiableMutator(net)
    mutator.load_fix_subnet(document)
    assert mutables_of(net) == []
    assert net(torch.rand(1, 3, 16, 16))[-1].shape == (1, 32, 4, 4)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(num_layers=0), 'num_layers of DartsBackbone must be a positive'),
        (dict(base_channels=1.5), 'base_channels of DartsBackbone'),
        (dict(out_indices=(3,)), r'out_indices must be in range\(0, 3\)'),
        (dict(auxliary=True), 'aux_channels and aux_out_channels'),
    ],
)
def test_a_malformed_backbone_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        backbone(**changes)


# -- the auxiliary classifier -----------------------------------------------------------------------------------


def test_auxiliary_features_come_first_and_in_training_only():
    net = backbone(auxliary=True, aux_channels=8, aux_out_channels=16, out_indices=(2,))
    DifferentiableMutator(net).reset()
    x = torch.rand(2, 3, 16, 16)
    assert [tuple(output.shape) for output in net(x)] == [(2, 16, 1, 1), (2, 48, 4, 4)]
    assert len(net.eval()(x)) == 1


def test_the_tower_is_the_papers_on_maps_of_eight_pixels():
    assert AuxiliaryTower(8, 4, 16)(torch.rand(2, 8, 7, 7)).shape == (2, 16, 1, 1)
    # CIFAR's tower of the paper: 1x1 to 128, 2x2 to 768, a norm after each.
    tower = AuxiliaryTower(256, 128, 768)
    assert sum(p.numel() for p in tower.parameters()) == 256 * 128 + 256 + 128 * 768 * 4 + 2 * 768


def test_the_head_adds_the_auxiliary_loss_in_training():
    torch.manual_seed(0)
    aux = dict(type='mmrazor.CrossEntropyLoss', loss_weight=0.4)
    head = DartsSubnetClsHead(aux_in_channels=8, aux_loss=aux, num_classes=4, in_channels=16)
    features, labels = (torch.rand(3, 8, 1, 1), torch.rand(3, 16)), torch.tensor([0, 1, 3])
    losses = head.loss(features, labels)
    expected = nn.functional.cross_entropy(head.aux_linear(features[0].flatten(1)), labels)
    assert torch.allclose(losses['loss_aux'], 0.4 * expected)
    assert torch.allclose(losses['loss'], nn.functional.cross_entropy(head.fc(features[1]), labels))
    assert set(head.loss(features[1:], labels)) == {'loss'}
    assert len(head.predict(features[1:])) == 3
    with pytest.raises(ConfigError, match='aux_in_channels'):
        DartsSubnetClsHead(aux_in_channels=0, aux_loss=aux, num_classes=4, in_channels=16)
