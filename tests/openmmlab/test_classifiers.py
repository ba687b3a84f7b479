"""Search, pruning and distillation of mmpretrain's classifiers, each trained for a few iterations on real images."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain', reason='the codebases of OpenMMLab have an environment of their own: make test-openmmlab')

from mmengine.config import Config

import strop
import strop.compat
from strop.algorithms import BaseAlgorithm
from strop.data import DefaultDemoInput
from strop.engine import build_runner
from strop.estimators import ResourceEstimator
from strop.registry import MODELS

from .conftest import PREPROCESSOR, losses_of, training

SHAPE = (1, 3, 64, 64)
MUTABLE = dict(
    type='mmrazor.OneShotMutableOP',
    candidates=dict(
        k3=dict(type='mmrazor.MBBlock', kernel_size=3, expand_ratio=3, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU6')),
        k5=dict(type='mmrazor.MBBlock', kernel_size=5, expand_ratio=3, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU6')),
        identity=dict(type='mmrazor.Identity'),
    ),
)


def classifier(backbone: dict, channels: int) -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=PREPROCESSOR,
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=channels, loss=dict(type='CrossEntropyLoss')),
    )


def resnet(depth: int) -> dict:
    return classifier(dict(type='ResNet', depth=depth), 2048 if depth >= 50 else 512)


def run(config: dict, folder: Path, task: str = 'train') -> object:
    runner = build_runner(Config(copy.deepcopy(config)), task, work_dir=folder)
    runner.train()
    return runner


def test_the_architecture_is_mmpretrains_own() -> None:
    model = MODELS.build(resnet(18))
    assert {type(part).__module__.partition('.')[0] for part in model.children()} == {'mmpretrain'}
    inputs = DefaultDemoInput((2, 3, 64, 64))(model)
    assert inputs['inputs'].shape == (2, 3, 64, 64)
    assert set(model(**inputs, mode='loss')) == {'loss'}
    macs = ResourceEstimator(input_shape=SHAPE, units=dict(flops='', params='')).estimate(model)['flops']
    # ResNet-18 without its last layer is fully convolutional, and a 64-pixel image has (64 / 224)² of the positions.
    assert macs == pytest.approx((1_814_073_344 - 512_000) * (64 / 224) ** 2 + 4 * 512, rel=1e-6)


def test_spos_trains_searches_and_retrains(tmp_path: Path, image_loaders: dict) -> None:
    backbone = dict(
        type='mmrazor.SearchableMobileNetV2',
        widen_factor=0.35,
        arch_setting=[[16, 1, 1, MUTABLE], [24, 2, 2, MUTABLE], [32, 1, 2, MUTABLE]],
        first_channels=16,
        last_channels=64,
        out_indices=(3,),
    )
    model = dict(
        type='mmrazor.SPOS',
        architecture=dict(classifier(backbone, 64), type='ImageClassifier'),
        mutator=dict(type='mmrazor.NasMutator'),
    )
    base = dict(default_scope='mmcls', **image_loaders, **training(4))
    runner = run(dict(base, model=model), tmp_path / 'supernet')
    assert type(runner.model.architecture).__module__.startswith('mmpretrain.')
    assert len(losses_of(runner)) == 4
    weights = tmp_path / 'supernet.pth'
    torch.save({'state_dict': runner.model.state_dict(), 'meta': {}}, weights)

    loop = dict(
        type='mmrazor.EvolutionSearchLoop',
        dataloader=image_loaders['val_dataloader'],
        evaluator=image_loaders['val_evaluator'],
        max_epochs=2, num_candidates=3, top_k=2, num_mutation=1, num_crossover=1,
        constraints_range=dict(flops=(0.0, 330.0)),
        estimator_cfg=dict(type='mmrazor.ResourceEstimator', input_shape=SHAPE),
        score_key='accuracy/top1',
        calibrate_sample_num=8,
    )  # fmt: skip
    search = dict(base, model=model, train_cfg=loop, load_from=str(weights))
    runner = run(search, tmp_path / 'search', 'search')
    best = tmp_path / 'search' / 'best_fix_subnet.yaml'
    assert best.is_file()
    assert len(runner.train_loop.result.complete) >= 3

    subnet = dict(type='mmrazor.sub_model', cfg=model['architecture'], fix_subnet=str(best))
    runner = run(dict(base, model=subnet), tmp_path / 'subnet')
    assert len(losses_of(runner)) == 4
    assert not strop.mutables.mutables_of(runner.model)


@pytest.mark.parametrize(
    ('backbone', 'channels', 'units'),
    [(dict(type='MobileNetV2', widen_factor=0.5), 1280, 25), (dict(type='ResNet', depth=18), 512, 12)],
    ids=['MobileNetV2', 'ResNet'],
)
def test_autoslim_finds_the_channels_of_a_classifier_and_trains(
    tmp_path: Path, image_loaders: dict, backbone: dict, channels: int, units: int
) -> None:
    model = dict(
        type='mmrazor.AutoSlim',
        architecture=classifier(backbone, channels),
        mutator=dict(
            type='mmrazor.OneShotChannelMutator',
            channel_unit_cfg=dict(type='mmrazor.OneShotMutableChannelUnit', default_args=dict(num_blocks=8, min_blocks=2)),
            parse_cfg=dict(type='mmrazor.ChannelAnalyzer', demo_input=SHAPE, tracer_type='FxTracer'),
        ),
        distiller=dict(
            type='mmrazor.ConfigurableDistiller',
            teacher_recorders=dict(fc=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
            student_recorders=dict(fc=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
            distill_losses=dict(loss_kl=dict(type='mmrazor.KLDivergence', tau=1, loss_weight=1)),
            loss_forward_mappings=dict(
                loss_kl=dict(preds_S=dict(recorder='fc', from_student=True), preds_T=dict(recorder='fc', from_student=False))
            ),
        ),
    )
    runner = run(dict(image_loaders, model=model, default_scope='mmrazor', **training(2)), tmp_path)
    mutator = runner.model.mutator
    assert len(mutator.mutable_units) == units
    assert len(losses_of(runner, 'max_subnet.loss')) == 2
    assert len(losses_of(runner, 'min_subnet.loss_kl')) == 2

    network = runner.model.architecture.eval()
    inputs = DefaultDemoInput((2, *SHAPE[1:]))(network)
    mutator.set_choices(mutator.sample_choices('min'))
    small = network(**inputs)
    plain = strop.extract(network, mutator.current_subnet())
    assert sum(p.numel() for p in plain.parameters()) < 0.2 * sum(p.numel() for p in network.parameters())
    torch.testing.assert_close(plain(**inputs), small, rtol=1e-4, atol=1e-5)


def test_spos_draws_widths_of_a_resnet(tmp_path: Path, image_loaders: dict) -> None:
    mutator = dict(type='OneShotChannelMutator', parse_cfg=dict(demo_input=SHAPE))
    model = dict(type='SPOS', architecture=resnet(18), mutator=mutator, input_shape=SHAPE)
    algorithm = run(dict(image_loaders, model=model, **training(3)), tmp_path).model
    smallest, largest = (algorithm.mutator.sample_choices(kind) for kind in ('min', 'max'))
    whole = ResourceEstimator(input_shape=SHAPE, units=dict(flops='', params='')).estimate(MODELS.build(resnet(18)))['flops']
    assert algorithm.get_subnet_flops(largest) == whole
    assert algorithm.get_subnet_flops(smallest) < 0.15 * whole


@pytest.fixture(scope='module')
def resnet50() -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS.build(resnet(50)).eval()


def test_cuts_of_resnet50_compute_what_the_masked_original_does(resnet50: torch.nn.Module) -> None:
    inputs = DefaultDemoInput(SHAPE)(resnet50)
    graph = strop.channel_units(resnet50, inputs)
    # The stem, two inner widths of each of 16 blocks, and what the blocks of each of 4 stages add up.
    assert len(graph.units) == 1 + 2 * 16 + 4
    proof = strop.prove(resnet50, inputs, graph=graph)
    assert proof.holds
    assert all(proof.lengths[unit.name] < unit.size for unit in graph)


def test_resnet50_is_pruned_automatically_and_trained(resnet50: torch.nn.Module, tmp_path: Path, image_loaders: dict) -> None:
    inputs = DefaultDemoInput(SHAPE)(resnet50)
    slim, record = strop.prune(resnet50, inputs, budget=dict(macs=0.5), importance='l1')
    assert record.steps[-1].error < 1e-6
    assert type(slim) is type(resnet50)
    estimate = ResourceEstimator(input_shape=SHAPE, units=dict(flops='', params='')).estimate
    before, after = estimate(resnet50)['flops'], estimate(slim)['flops']
    assert 0.4 < after / before <= 0.5
    assert slim.head.fc.out_features == 4
    runner = run(dict(image_loaders, model=BaseAlgorithm(slim), **training(3, lr=0.001)), tmp_path)
    assert len(losses_of(runner)) == 3


def test_l1_prunes_resnet50_while_it_is_trained(tmp_path: Path, image_loaders: dict) -> None:
    model = dict(
        type='mmrazor.ItePruneAlgorithm',
        architecture=resnet(50),
        target_pruning_ratio={'backbone.layer1.0.conv1_(0, 64)_64': 0.5, 'backbone.layer4.2.conv2_(0, 512)_512': 0.25},
        mutator_cfg=dict(
            type='mmrazor.ChannelMutator',
            channel_unit_cfg=dict(type='mmrazor.L1MutableChannelUnit', default_args=dict(choice_mode='ratio')),
            parse_cfg=dict(type='mmrazor.ChannelAnalyzer', demo_input=SHAPE, tracer_type='FxTracer'),
        ),
        step_freq=1,
        prune_times=2,
    )
    config = dict(image_loaders, model=model, default_scope='mmrazor', **training(3))
    runner = run(config, tmp_path)
    network = runner.model.architecture.eval()
    assert runner.model.mutator.widths.current['backbone.layer1.0.conv1'] == 32
    assert runner.model.mutator.widths.current['backbone.layer4.2.conv2'] == 128
    inputs = DefaultDemoInput((2, *SHAPE[1:]))(network)
    plain = strop.extract(network, runner.model.mutator.current_subnet())
    assert plain.backbone.layer1[0].conv2.weight.shape == (64, 32, 3, 3)
    torch.testing.assert_close(plain(**inputs), network(**inputs), rtol=1e-4, atol=1e-5)


def test_resnet34_teaches_resnet18_from_their_configs(tmp_path: Path, image_loaders: dict) -> None:
    part = dict(num_classes=4)
    model = dict(
        type='mmrazor.SingleTeacherDistill',
        architecture=dict(cfg_path='mmcls::resnet/resnet18_8xb32_in1k.py', pretrained=False, head=part, data_preprocessor=part),
        teacher=dict(cfg_path='mmpretrain::resnet/resnet34_8xb32_in1k.py', pretrained=False, head=part, data_preprocessor=part),
        distiller=dict(
            type='mmrazor.ConfigurableDistiller',
            student_recorders=dict(fc=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
            teacher_recorders=dict(fc=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
            distill_losses=dict(loss_kl=dict(type='mmrazor.KLDivergence', tau=1, loss_weight=3)),
            loss_forward_mappings=dict(
                loss_kl=dict(preds_S=dict(from_student=True, recorder='fc'), preds_T=dict(from_student=False, recorder='fc'))
            ),
        ),
    )
    runner = run(dict(image_loaders, model=model, default_scope='mmcls', **training(3)), tmp_path)
    student, teacher = runner.model.architecture, runner.model.teacher
    assert (student.backbone.depth, teacher.backbone.depth) == (18, 34)
    assert {type(student).__module__, type(teacher).__module__} == {'mmpretrain.models.classifiers.image'}
    assert len(losses_of(runner, 'distill.loss_kl')) == 3
    assert not any(p.requires_grad for p in teacher.parameters())
