import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strop.algorithms import BaseAlgorithm, MMArchitectureQuant
from strop.engine import build_runner, load_checkpoint_file
from strop.errors import ConfigError, DataError
from strop.quantization import fake_quantizers

from .forked import forked
from .test_train_loop import BY_ITER, assert_equal, train

POINTS = TensorDataset(torch.randn(48, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 2)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2))


def config(qconfig='int8', loop='QATEpochBasedLoop', model=None, **changes):
    quantizer = dict(type='TorchNativeQuantizer', global_qconfig=qconfig)
    options = dict(
        model=model or MMArchitectureQuant(network(), quantizer, metric=hits),
        train_dataloader=DataLoader(POINTS, batch_size=16, shuffle=True),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        train_cfg=dict(type=loop, max_epochs=4, freeze_bn_begin=3, **changes.pop('train', {})),
        default_hooks=BY_ITER,
        log_level='WARNING',
        randomness=dict(seed=0),
    )
    return {**options, **changes}


def hits(outputs, labels):
    return float((outputs.argmax(1) == labels).float().mean())


def validated(kind='val', loop='QATValLoop', **options):
    data = DataLoader(POINTS, batch_size=24)
    return {
        f'{kind}_dataloader': data,
        f'{kind}_cfg': dict(type=loop, **options),
        f'{kind}_evaluator': dict(type='FunctionMetric', function=hits, name='hits'),
    }


@pytest.mark.parametrize('when', ['disable_observer_begin', 'freeze_bn_begin', 'fake_quant_begin'])
def test_switches_are_set_by_the_epoch(tmp_path, when):
    settings = config(train=dict(disable_observer_begin=2, fake_quant_begin=2))
    runner = build_runner(settings, work_dir=tmp_path)
    seen = []
    layers = runner.model.architecture.module

    def note(module, args):
        quantizer = layers[4].input_fake_quant
        if runner.model.training:
            seen.append((bool(quantizer.fake_quant_enabled), bool(quantizer.observer_enabled), layers[1].training))

    layers.register_forward_pre_hook(note)
    runner.train()
    assert len(seen) == 12
    assert seen[0::3] == seen[1::3] == seen[2::3]
    column = dict(fake_quant_begin=0, disable_observer_begin=1, freeze_bn_begin=2)[when]
    first = {0: [False, True, True, True], 1: [True, False, False, False], 2: [True, True, False, False]}[column]
    assert [row[column] for row in seen[0::3]] == first


KILLED = {'int8': ('QATEpochBasedLoop', dict(disable_observer_begin=3)), 'lsq4': ('LSQEpochBasedLoop', {})}


@pytest.fixture(scope='module', params=KILLED)
def unbroken(request, tmp_path_factory):
    """The name of a qconfig, and the folder of a run with it that nothing interrupted."""
    folder = tmp_path_factory.mktemp('whole')
    _train(request.param, folder)
    return request.param, folder


def _train(qconfig, folder, resume=False, die_at=None):
    loop, more = KILLED[qconfig]
    train(config(qconfig, loop, train=more), folder, resume=resume, die_at=die_at)


@pytest.mark.parametrize('die_at', [2, 7])
def test_training_that_was_killed_goes_on_to_the_same_weights_steps_and_ranges(tmp_path, unbroken, die_at):
    qconfig, whole = unbroken
    part, errors = tmp_path / 'part', tmp_path / 'errors'
    code = forked(_train, qconfig, part, False, die_at, errors=errors)
    assert code == -signal.SIGKILL, errors.read_text() if errors.exists() else code
    _train(qconfig, part, resume=True)
    assert_equal(whole / 'iter_12.pth', part / 'iter_12.pth')
    state = load_checkpoint_file(part / 'iter_12.pth')['state_dict']
    assert any(name.endswith('input_fake_quant.scale') for name in state)


def test_validation_gives_both_scores_and_observes_nothing(tmp_path):
    runner = build_runner(config(**validated()), work_dir=tmp_path)
    runner.train()
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    metrics = runner.val()
    assert set(metrics) == {'qat.hits', 'original.hits'}
    after = runner.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    runner.model.eval()
    images, labels = POINTS.tensors
    assert metrics['qat.hits'] == pytest.approx(hits(runner.model(images), labels))


def test_calibration_alone_scores_like_the_float_model_and_is_saved(tmp_path):
    model = MMArchitectureQuant(network(), dict(type='OpenVINOQuantizer', global_qconfig='int8'))
    images = POINTS.tensors[0]
    wanted = network().eval()(images)
    calibrating = DataLoader(POINTS, batch_size=16)
    settings = config(model=model, **validated('test', 'PTQLoop', calibrate_dataloader=calibrating, calibrate_steps=2))
    runner = build_runner(settings, task='test', work_dir=tmp_path)
    metrics = runner.test()
    assert set(metrics) == {'hits'}
    outputs = model.eval()(images)
    assert (outputs - wanted).abs().max() < 0.1 * wanted.abs().max()
    other = MMArchitectureQuant(network(), dict(type='OpenVINOQuantizer', global_qconfig='int8'))
    other.load_state_dict(load_checkpoint_file(tmp_path / 'model_ptq.pth')['state_dict'])
    assert torch.equal(other.eval()(images), outputs)


def test_a_calibration_that_would_change_nothing_is_refused(tmp_path):
    model = MMArchitectureQuant(network(), dict(type='TorchNativeQuantizer', global_qconfig='lsq8'))
    data = DataLoader(POINTS, batch_size=16)

    def test(folder, **options):
        settings = config(model=model, **validated('test', 'PTQLoop', calibrate_dataloader=data, **options))
        return build_runner(settings, task='test', work_dir=tmp_path / folder).test()

    test('first')
    with pytest.raises(ConfigError, match='Calibration would change nothing: learned steps begin with the first data'):
        test('again')
    assert set(test('judged', only_val=True)) == {'hits'}


def test_only_so_many_batches_are_looked_at(tmp_path):
    model = MMArchitectureQuant(network(), dict(type='TorchNativeQuantizer', global_qconfig='int8'))
    settings = config(
        model=model, **validated('test', 'PTQLoop', calibrate_dataloader=DataLoader(POINTS, batch_size=8), calibrate_steps=3)
    )
    runner = build_runner(settings, task='test', work_dir=tmp_path)
    calls = []
    model.architecture.module.register_forward_pre_hook(
        lambda *_: calls.append(model.architecture.module[0].input_fake_quant.calibrating)
    )
    runner.test()
    assert calls.count(True) == 3


def test_wrong_loops_say_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match='`disable_observer_begin` must be an epoch'):
        build_runner(config(train=dict(disable_observer_begin=0)), work_dir=tmp_path).train()
    with pytest.raises(ConfigError, match='BaseAlgorithm has none'):
        build_runner(config(model=BaseAlgorithm(network())), work_dir=tmp_path / 'b').train()
    for options, kind, message in (
        (dict(calibrate_steps=0, calibrate_dataloader=DataLoader(POINTS)), ConfigError, 'positive whole number'),
        (dict(calibrate_dataloader=DataLoader(TensorDataset(torch.zeros(0, 1, 6, 6)))), DataError, 'gave no batch'),
    ):
        settings = config(**validated('test', 'PTQLoop', **options))
        with pytest.raises(kind, match=message):
            build_runner(settings, task='test', work_dir=tmp_path / 'c').test()
    assert fake_quantizers(settings['model'])
