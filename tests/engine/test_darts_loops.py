import shutil

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.utils.data import DataLoader

from strop.algorithms import Darts
from strop.engine import DartsEpochBasedTrainLoop, DartsIterBasedTrainLoop, SearchBatches, build_runner
from strop.engine.checkpoint import load_checkpoint_file
from strop.mutables import LayerChoice, load_subnet
from strop.registry import LOOPS

from .test_train_loop import BY_ITER, Noisy, assert_equal, state_of
from .tiny import loader, preprocessor

KINDS = ['DartsEpochBasedTrainLoop', 'DartsIterBasedTrainLoop']


def config(kind, seen=None, lengths=(24, 16), **changes):
    torch.manual_seed(0)
    layers = [
        LayerChoice([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))], key=f'op{index}') for index in range(2)
    ]
    model = Darts(nn.Sequential(*layers, nn.Linear(4, 2)), unroll=True)
    if seen is not None:
        step = model.train_step

        def train_step(data, optim_wrapper):
            seen.append(data)
            return step(data, optim_wrapper)

        model.train_step = train_step
    sets = []
    for length in lengths:
        made = Noisy()
        made.__class__ = type('Noisy', (Noisy,), {'__len__': lambda self, length=length: length})
        sets.append(DataLoader(made, batch_size=8, shuffle=True))
    end = dict(max_epochs=3) if kind == KINDS[0] else dict(max_iters=9)
    return dict(
        model=model,
        train_dataloader=sets[0],
        optim_wrapper=dict(
            constructor='mmrazor.SeparateOptimWrapperConstructor',
            architecture=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
            mutator=dict(optimizer=dict(type='Adam', lr=0.01)),
        ),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=9, by_epoch=False),
        train_cfg=dict(type=f'mmrazor.{kind}', mutator_dataloader=sets[1], **end),
        default_hooks=BY_ITER,
        log_level='WARNING',
        **changes,
    )


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_has_a_batch_of_each_and_the_shorter_begins_anew(tmp_path, kind):
    seen = []
    build_runner(config(kind, seen), work_dir=tmp_path).train()
    assert len(seen) == 9
    assert all(isinstance(data, SearchBatches) for data in seen)
    firsts = [tuple(data.valid[0].flatten().tolist()) for data in seen]
    assert len(set(firsts)) == 9, 'each pass draws its own noise'
    assert {tuple(data.train[0].shape) for data in seen} == {(8, 4)}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('stop', [1, 3, 5, 8])
def test_a_resumed_search_is_bit_equal(tmp_path, kind, stop):
    build_runner(config(kind), work_dir=tmp_path / 'whole').train()
    (tmp_path / 'part').mkdir()
    shutil.copy(tmp_path / 'whole' / f'iter_{stop}.pth', tmp_path / 'part')
    seen = []
    build_runner(config(kind, seen), work_dir=tmp_path / 'part', resume=True).train()
    assert len(seen) == 9 - stop
    assert_equal(tmp_path / 'whole' / 'iter_9.pth', tmp_path / 'part' / 'iter_9.pth')
    state = state_of(tmp_path / 'part' / 'iter_9.pth')
    assert 'mutator.arch_params.op0' in state
    assert {name.split('.')[1] for name in state if name.startswith('optimizer.')} == {'architecture', 'mutator'}
    assert set(load_checkpoint_file(tmp_path / 'part' / 'iter_9.pth')['param_schedulers']) == {'architecture', 'mutator'}


def test_both_scopes_reach_the_loops():
    assert LOOPS.get('mmrazor.DartsEpochBasedTrainLoop') is DartsEpochBasedTrainLoop
    assert LOOPS.get('DartsIterBasedTrainLoop') is DartsIterBasedTrainLoop


def test_a_config_as_mmrazor_writes_it_searches_and_dumps_the_found_cell(tmp_path):
    candidates = dict(
        zero=dict(type='mmrazor.DartsZero'),
        skip_connect=dict(type='mmrazor.DartsSkipConnect'),
        sep_conv_3x3=dict(type='mmrazor.DartsSepConv', kernel_size=3, norm_cfg=dict(type='BN', affine=False)),
    )
    backbone = dict(
        type='mmrazor.DartsBackbone',
        in_channels=1,
        base_channels=4,
        num_layers=3,
        num_nodes=2,
        stem_multiplier=1,
        out_indices=(2,),
        mutable_cfg=dict(type='mmrazor.DiffMutableOP', candidates=candidates),
        route_cfg=dict(type='mmrazor.DiffChoiceRoute', with_arch_param=True),
        norm_cfg=dict(type='BN', affine=False),
    )
    head = dict(type='LinearClsHead', num_classes=10, in_channels=32, topk=(1,))
    cfg = Config(
        dict(
            default_scope='strop',
            model=dict(
                type='mmrazor.Darts',
                architecture=dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head),
                mutator=dict(type='mmrazor.NasMutator'),
                unroll=True,
                data_preprocessor=preprocessor,
            ),
            train_dataloader=loader('train', limit=64, shuffle=True),
            val_dataloader=loader('val', 20, 20),
            val_evaluator=dict(type='Accuracy', topk=(1,)),
            optim_wrapper=dict(
                constructor='mmrazor.SeparateOptimWrapperConstructor',
                architecture=dict(optimizer=dict(type='SGD', lr=0.025, momentum=0.9, weight_decay=3e-4)),
                mutator=dict(optimizer=dict(type='Adam', lr=3e-3, weight_decay=1e-3)),
            ),
            train_cfg=dict(
                type='mmrazor.DartsEpochBasedTrainLoop', mutator_dataloader=loader('val', limit=64, shuffle=True), max_epochs=1
            ),
            val_cfg=dict(),
            custom_hooks=[dict(type='mmrazor.DumpSubnetHook', interval=1, by_epoch=True)],
            randomness=dict(seed=0),
            log_level='WARNING',
        )
    )
    runner = build_runner(cfg, work_dir=tmp_path)
    runner.train()
    found = load_subnet(tmp_path / 'subnet_epoch_1.yaml', runner.model.mutator.space)
    assert found == runner.model.mutator.best_subnet()
    assert 'zero' not in dict(found).values()
    assert not found.weighted
    assert 'accuracy/top1' in runner.val_loop.run()
