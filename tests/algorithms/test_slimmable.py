"""Slimmable networks: all widths in one step, batch norms apart, deployment, checkpoints."""

import copy

import pytest
import torch
from engine.tiny import preprocessor, supernet, train_config
from torch import nn

from strop.algorithms import SlimmableNetwork
from strop.engine import build_runner
from strop.errors import ComponentTypeError, ConfigError, TrainingError
from strop.mutables import attachments, extract
from strop.registry import MODELS

UNITS = dict(type='SlimmableChannelUnit', units={'module.0': dict(candidate_choices=[2, 4, 8])})
MUTATOR = dict(type='SlimmableChannelMutator', channel_unit_cfg=UNITS, parse_cfg=dict(demo_input=(2, 3, 6, 6)))
DATA = (torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2)


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(*layers).double()


def slimmable(**options):
    return SlimmableNetwork(net(), copy.deepcopy(MUTATOR), **options)


def test_a_step_is_one_update_by_the_sum_of_the_losses():
    network = slimmable()
    expected = {name: torch.zeros_like(value) for name, value in network.architecture.module.named_parameters()}
    losses = []
    for index, width in enumerate((2, 4, 8)):
        network.mutator.set_subnet({'width': index})
        plain = extract(network.architecture).module.train()
        loss = nn.functional.cross_entropy(plain(DATA[0]), DATA[1])
        loss.backward()
        losses.append(loss.item())
        for name, tensor, axis in (
            ('0.weight', plain[0].weight, 0),
            ('0.bias', plain[0].bias, 0),
            ('5.weight', plain[5].weight, 1),
        ):
            expected[name].narrow(axis, 0, width).add_(tensor.grad)
        expected['5.bias'] += plain[5].bias.grad
    before = {name: value.detach().clone() for name, value in network.architecture.module.named_parameters()}
    log = network.train_step(DATA, torch.optim.SGD(network.parameters(), lr=0.5))
    assert [log[f'subnet_{index}.loss'].item() for index in range(3)] == pytest.approx(losses)
    assert log['loss'].item() == pytest.approx(sum(losses))
    for name in ('0.weight', '0.bias', '5.weight', '5.bias'):
        step = (before[name] - dict(network.architecture.module.named_parameters())[name]) / 0.5
        torch.testing.assert_close(step, expected[name])
    assert network.step == 1


def test_batch_norms_are_apart():
    network = slimmable().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        network.train_step(DATA, optimizer)
    widths = network.mutator.widths
    full = network.architecture.module[1]
    assert full.num_batches_tracked == 3
    norms = [norms[0] for norms in widths.norms if len(norms)]
    assert [len(norm.weight) for norm in norms] == [2, 4]
    assert all(norm.num_batches_tracked == 3 for norm in norms)
    for norm in norms:
        # The first layer's channels have the same mean at every width.
        torch.testing.assert_close(norm.running_mean, full.running_mean[: len(norm.weight)])
        assert not torch.equal(norm.bias, full.bias[: len(norm.weight)])
    tensors = [tensor.data_ptr() for norm in (*norms, full) for tensor in norm.state_dict().values()]
    assert len(set(tensors)) == len(tensors)


def test_the_full_network_is_the_original():
    expected = net().eval()(DATA[0])
    network = slimmable().eval()
    assert torch.equal(network(DATA[0]), expected)


def test_deployed_equals_active():
    network = slimmable()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        network.train_step(DATA, optimizer)
    network.eval()
    for index in range(3):
        network.mutator.set_subnet({'width': index})
        expected = network(DATA[0])
        deployed = copy.deepcopy(network)
        deployed.deploy(index)
        assert deployed.is_deployed
        assert not attachments(deployed)
        assert deployed.architecture.module[0].out_channels == (2, 4, 8)[index]
        torch.testing.assert_close(deployed(DATA[0]), expected, rtol=0, atol=1e-12)
        deployed.train_step(DATA, torch.optim.SGD(deployed.parameters(), lr=0.1))
    assert slimmable(deploy_index=0).architecture.module[0].out_channels == 2


def test_weights_without_narrow_norms_start_them():
    trained = net()
    with torch.no_grad():
        trained[1].weight.uniform_(1, 2)
    network = slimmable()
    state = {f'architecture.module.{name}': value for name, value in trained.state_dict().items()}
    network.load_state_dict(state)
    network.mutator.set_subnet({'width': 0})
    assert torch.equal(network.mutator.widths.norms[0][0].weight, trained[1].weight[:2])
    other = slimmable()
    with torch.no_grad():
        network.mutator.widths.norms[0][0].weight.fill_(9)
    other.load_state_dict(network.state_dict())
    assert other.mutator.widths.norms[0][0].weight.tolist() == [9, 9], 'norms that are in the checkpoint are taken'


def test_a_bad_loss_changes_nothing_and_leaves_no_gradient():
    network = slimmable()
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = iter([1.0, float('nan'), 1.0])
    network.architecture.loss_function.forward = lambda output, label: output.mean() * next(losses)
    with pytest.raises(TrainingError, match='not finite'):
        network.train_step(DATA, optimizer)
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())
    assert all(value.grad is None or not value.grad.any() for value in network.parameters())


def test_bad_input():
    with pytest.raises(ConfigError, match='needs a mutator'):
        SlimmableNetwork(net())
    with pytest.raises(ConfigError, match=r'within 0\.\.2'):
        slimmable(deploy_index=3)
    with pytest.raises(ComponentTypeError, match='needs a SlimmableChannelMutator'):
        SlimmableNetwork(net(), dict(type='OneShotChannelMutator', parse_cfg=dict(demo_input=(2, 3, 6, 6))))
    with pytest.raises(ComponentTypeError, match='OptimWrapper'):
        slimmable().train_step(DATA, 'sgd')


def test_gradients_are_accumulated_over_batches():
    from mmengine.optim import OptimWrapper

    network = slimmable()
    before = {name: value.clone() for name, value in network.named_parameters()}
    wrapper = OptimWrapper(torch.optim.SGD(network.parameters(), lr=0.1), accumulative_counts=2)
    network.train_step(DATA, wrapper)
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())
    network.train_step(DATA, wrapper)
    assert not all(torch.equal(before[name], value) for name, value in network.named_parameters())


# -- with the runner -----------------------------------------------------------------------------

FIXED = dict.fromkeys(('backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0'), 'shuffle_3x3')


def model():
    return dict(
        type='mmrazor.SlimmableNetwork',
        architecture=dict(type='sub_model', cfg=supernet, fix_subnet=FIXED),
        data_preprocessor=preprocessor,
        mutator=dict(
            type='mmrazor.SlimmableChannelMutator',
            channel_unit_cfg=dict(
                type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio', divisor=2)
            ),
            parse_cfg=dict(type='ChannelAnalyzer', demo_input=(2, 1, 8, 8), tracer_type='BackwardTracer'),
        ),
    )


def test_training_and_validation_with_the_runner(tmp_path):
    config = train_config(model=model(), val_cfg=dict(type='mmrazor.SlimmableValLoop'))
    runner = build_runner(config, work_dir=tmp_path)
    runner.train()
    metrics = runner.val_loop.run()
    assert set(metrics) == {'subnet_0.accuracy/top1', 'subnet_1.accuracy/top1'}
    again = MODELS.build(model())
    again.load_state_dict(runner.model.state_dict())
    for index in range(2):
        deployed = copy.deepcopy(again).eval()
        deployed.deploy(index)
        images = torch.stack([item['inputs'] for item in runner.val_dataloader.dataset]).float()
        labels = torch.tensor([int(label) for label in runner.val_dataloader.dataset.labels])
        with torch.no_grad():
            hits = deployed.architecture(deployed.data_preprocessor({'inputs': images}, False)['inputs']).argmax(1) == labels
        assert metrics[f'subnet_{index}.accuracy/top1'] == pytest.approx(100 * hits.double().mean().item())


# -- MMRazor's first 1.x release ----------------------------------------------------------------


def width_files(folder, *widths):
    paths = []
    for width in widths:
        entry = f'{{current_choice: {width}, origin_channels: 8}}'
        paths.append(folder / f'{width}.yaml')
        paths[-1].write_text(f'module.0.out_channels_mutable: {entry}\nmodule.1.num_features_mutable: {entry}\n')
    return [str(path) for path in paths]


FIRST = dict(
    type='SlimmableChannelMutator',
    mutable_cfg=dict(type='SlimmableMutableChannel'),
    tracer_cfg=dict(type='BackwardTracer', loss_calculator=dict(type='SumPseudoLoss', input_shape=(2, 3, 6, 6))),
)


def test_widths_from_the_files_of_the_first_release(tmp_path):
    network = SlimmableNetwork(net(), FIRST, channel_cfg_paths=width_files(tmp_path, 2, 8))
    assert network.mutator.subnets == [{'module.0': 2}, {'module.0': 8}]
    log = network.train_step(DATA, torch.optim.SGD(network.parameters(), lr=0.1))
    assert sorted(log) == ['loss', 'subnet_0.loss', 'subnet_1.loss']


def test_one_file_of_widths_is_a_static_network(tmp_path):
    path = width_files(tmp_path, 4)[0]
    network = SlimmableNetwork(net(), FIRST, channel_cfg_paths=path)
    assert network.is_deployed
    assert network.architecture.module[0].weight.shape == (4, 3, 3, 3)
    assert network.architecture.module[5].weight.shape == (2, 4)
    assert not attachments(network.architecture)


def test_bad_files_of_widths(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file 'nowhere\.yaml'"):
        SlimmableNetwork(net(), FIRST, channel_cfg_paths='nowhere.yaml')
    for mutator in (MODELS.build(FIRST), {**FIRST, 'channel_cfgs': []}):
        with pytest.raises(ConfigError, match='the mutator is a config, without `channel_cfgs`'):
            SlimmableNetwork(net(), mutator, channel_cfg_paths=width_files(tmp_path, 4))


def test_an_unknown_argument_is_named_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"SlimmableNetwork takes no 'channel_cfg_path'\. Did you mean 'channel_cfg_paths'"):
        MODELS.build(dict(type='SlimmableNetwork', architecture=net(), mutator=MUTATOR, channel_cfg_path='a.yaml'))
