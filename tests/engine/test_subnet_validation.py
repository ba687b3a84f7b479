import pytest
import torch

from strop.engine import SubnetValLoop, build_runner, subnet_validation
from strop.estimators import count
from strop.mutables import extract
from strop.registry import LOOPS

from .tiny import preprocessor, supernet, train_config

FIXED = dict.fromkeys(('backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0'), 'shuffle_3x3')


def validated(tmp_path, model=None, **options):
    config = train_config(val_cfg=dict(type='mmrazor.SubnetValLoop', **options), **({} if model is None else {'model': model}))
    runner = build_runner(config, work_dir=tmp_path)
    return runner, runner.val_loop.run()


def test_largest_smallest_and_a_random_subnet(tmp_path):
    runner, metrics = validated(tmp_path, calibrate_sample_num=0)
    assert set(metrics) == {
        f'{kind}_subnet.{name}' for kind in ('max', 'min', 'random') for name in ('accuracy/top1', 'flops', 'params')
    }
    assert metrics['min_subnet.params'] <= metrics['random_subnet.params'] <= metrics['max_subnet.params']
    for kind in ('max', 'min'):
        model = extract(runner.model.architecture, runner.model.mutator.sample_choices(kind))
        resources = count(model, torch.zeros(1, 1, 8, 8))
        assert metrics[f'{kind}_subnet.flops'] * 1e6 == pytest.approx(resources.macs)
        assert metrics[f'{kind}_subnet.params'] * 1e6 == pytest.approx(resources.params)
        dataset = runner.val_dataloader.dataset
        images = torch.stack([item['inputs'] for item in dataset])
        labels = torch.tensor([int(label) for label in dataset.labels])
        with torch.no_grad():
            predicted = model.eval()((images.float() - 78.0) / 96.0).argmax(1)
        accuracy = 100 * (predicted == labels).double().mean().item()
        assert metrics[f'{kind}_subnet.accuracy/top1'] == pytest.approx(accuracy)


def test_statistics_and_modes_are_left_as_they_were(tmp_path):
    config = train_config(val_cfg=dict(type='SubnetValLoop', calibrate_sample_num=64))
    runner = build_runner(config, work_dir=tmp_path)
    runner.model.train()
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.val_loop.run()
    assert all(torch.equal(before[name], value) for name, value in runner.model.state_dict().items())
    assert all(module.training for module in runner.model.modules())


def test_validation_during_training_does_not_change_it(tmp_path):
    states = []
    for name, interval in (('never', 100), ('always', 1)):
        config = train_config(val_cfg=dict(type='SubnetValLoop', calibrate_sample_num=64))
        config.train_cfg.val_interval = interval
        config.train_cfg.val_begin = 1 if interval == 1 else 100
        runner = build_runner(config, work_dir=tmp_path / name)
        runner.train()
        states.append(runner.model.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_what_subnets_cost_is_found_out_once(tmp_path, monkeypatch):
    made = []
    meter = subnet_validation.ResourceMeter
    monkeypatch.setattr(subnet_validation, 'ResourceMeter', lambda *given: made.append(given) or meter(*given))
    runner, first = validated(tmp_path, calibrate_sample_num=0)
    with torch.no_grad():
        for parameter in runner.model.parameters():
            parameter.zero_()
    second = runner.val_loop.run()
    assert len(made) == 1
    for name in ('max_subnet.flops', 'max_subnet.params', 'min_subnet.flops', 'min_subnet.params'):
        assert second[name] == first[name] > 0


def test_numbers_of_a_fixed_subnet_have_no_prefix(tmp_path):
    architecture = dict(type='sub_model', cfg=supernet, fix_subnet=FIXED)
    model = dict(type='BaseAlgorithm', architecture=architecture, data_preprocessor=preprocessor)
    runner, metrics = validated(tmp_path, model, evaluate_fixed_subnet=True)
    assert set(metrics) == {'accuracy/top1', 'flops', 'params'}
    assert metrics['params'] * 1e6 == pytest.approx(count(runner.model.architecture, torch.zeros(1, 1, 8, 8)).params)


def test_a_model_that_is_no_algorithm(tmp_path):
    model = dict(type='sub_model', cfg=dict(supernet, data_preprocessor=preprocessor), fix_subnet=FIXED)
    _, metrics = validated(tmp_path, model)
    assert set(metrics) == {'accuracy/top1', 'flops', 'params'}


def test_the_current_subnet_of_a_supernet(tmp_path):
    config = train_config(val_cfg=dict(type='SubnetValLoop', evaluate_fixed_subnet=True, calibrate_sample_num=-1))
    runner = build_runner(config, work_dir=tmp_path)
    runner.model.mutator.set_subnet(FIXED)
    metrics = runner.val_loop.run()
    plain = count(extract(runner.model.architecture, FIXED), torch.zeros(1, 1, 8, 8))
    assert metrics['flops'] * 1e6 == pytest.approx(plain.macs)
    assert metrics['params'] * 1e6 == pytest.approx(plain.params)


def test_input_shape_of_the_old_estimator_config(tmp_path):
    _, small = validated(tmp_path / 'a', calibrate_sample_num=0)
    _, large = validated(
        tmp_path / 'b',
        calibrate_sample_num=0,
        estimator_cfg=dict(type='mmrazor.ResourceEstimator', input_shape=(1, 1, 16, 16)),
    )
    assert large['max_subnet.flops'] > 2 * small['max_subnet.flops']
    assert large['max_subnet.params'] == small['max_subnet.params']


def test_half_precision(tmp_path):
    config = train_config(val_cfg=dict(type='SubnetValLoop', fp16=True, calibrate_sample_num=0))
    runner = build_runner(config, work_dir=tmp_path)
    seen = set()
    runner.model.architecture.backbone.conv1.conv.register_forward_hook(lambda *args: seen.add(args[2].dtype))
    runner.val_loop.run()
    assert torch.bfloat16 in seen


def test_names_reach_the_loop():
    assert LOOPS.get('mmrazor.SubnetValLoop') is LOOPS.get('SubnetValLoop') is SubnetValLoop


def test_testing_a_supernet_recalibrates_on_training_images(tmp_path):
    config = train_config(test_cfg=dict(type='SubnetValLoop', calibrate_sample_num=64))
    trainer = build_runner(config, work_dir=tmp_path / 'train')
    trainer.train()
    config.load_from = str(tmp_path / 'train' / 'epoch_2.pth')
    metrics = build_runner(config, task='test', work_dir=tmp_path / 'test').test()
    assert {'max_subnet.accuracy/top1', 'random_subnet.params'} <= set(metrics)
