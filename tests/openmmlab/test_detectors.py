"""Detectors of mmdet: pruned with proof, distilled and searched by the shipped configs, on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmdet', reason='needs the codebases of OpenMMLab: make test-openmmlab')

from mmdet.datasets import CocoDataset

import strop
from strop.data import DefaultDemoInput
from strop.engine import build_runner
from strop.export import load_recipe, save_slim
from strop.graph import prove
from strop.mutables import load_subnet
from strop.registry import MODELS

from .coco import coco_folder, detection_data, need_file, shortened, taught

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'detection'
# What makes a detector small: ResNet-18, a pyramid of 64 channels, few regions.
_COMMON = {'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512], 'neck.out_channels': 64}
SMALL = {
    'retinanet': {
        **_COMMON,
        'bbox_head.in_channels': 64,
        'bbox_head.feat_channels': 64,
        'bbox_head.stacked_convs': 2,
        'test_cfg.nms_pre': 100,
        'test_cfg.score_thr': 0.0,
    },
    'faster': {
        **_COMMON,
        'rpn_head.in_channels': 64,
        'rpn_head.feat_channels': 64,
        'roi_head.bbox_roi_extractor.out_channels': 64,
        'roi_head.bbox_head.in_channels': 64,
        'roi_head.bbox_head.fc_out_channels': 128,
        'train_cfg.rpn_proposal.nms_pre': 100,
        'train_cfg.rpn_proposal.max_per_img': 50,
        'train_cfg.rcnn.sampler.num': 32,
        'test_cfg.rpn.nms_pre': 100,
        'test_cfg.rpn.max_per_img': 50,
        'test_cfg.rcnn.score_thr': 0.0,
    },
}


def small(config: Config, path: str, family: str, **changes: Any) -> None:
    """Make the detector at a path of a config small; `changes` replace what is said of its parts, `__` for a dot."""
    options = {
        **SMALL[family],
        'backbone.init_cfg': None,
        **{name.replace('__', '.'): value for name, value in changes.items()},
    }
    config.merge_from_dict({f'{path}.{name}': value for name, value in options.items()})


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_file()
    return coco_folder(tmp_path_factory.mktemp('coco'), CocoDataset.METAINFO['classes'], 4)


def detector(name: str) -> Config:
    """The config of a detector as mmdet has it, without weights from the net."""
    config = Config.fromfile(f'{_mmdet()}/{name}.py')
    config.model._scope_ = 'mmdet'
    config.model.backbone.init_cfg = None
    return config


def _mmdet() -> Path:
    import mmdet

    return Path(mmdet.__file__).parent / '.mim' / 'configs' / '_base_' / 'models'


def losses_of(runner: Any) -> list[dict[str, float]]:
    """Train, and return the losses of each iteration."""
    losses: list[dict[str, float]] = []
    model = runner.model
    step = model.train_step

    def logged(*args: Any, **kwargs: Any) -> dict[str, Any]:
        log = step(*args, **kwargs)
        losses.append({name: value.item() for name, value in log.items()})
        return log

    model.train_step = logged
    runner.train()
    del model.train_step
    return losses


# -- pruning -----------------------------------------------------------------------------------------

# What keeps its length: outputs, the anchors of each place, and the places inside a region.
_RPN = {('rpn_head.rpn_cls.weight', 0): 'index', ('rpn_head.rpn_reg.weight', 0): 'constant'}
FROZEN = {
    'retinanet_r50_fpn': (47, {('bbox_head.retina_cls.weight', 0): 'output', ('bbox_head.retina_reg.weight', 0): 'output'}),
    'faster-rcnn_r50_fpn': (
        42,
        {
            **_RPN,
            ('roi_head.bbox_head.fc_cls.weight', 0): 'output',
            ('roi_head.bbox_head.fc_reg.weight', 0): 'output',
            ('roi_head.bbox_head.shared_fcs.0.weight', 1): 'constant',
        },
    ),
}


@pytest.mark.parametrize('name', FROZEN)
def test_every_channel_of_a_detector_is_cut_with_proof(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS.build(detector(name).model).eval()
    inputs = DefaultDemoInput((1, 3, 64, 64))(model)
    proof = prove(model, inputs)
    units, frozen = FROZEN[name]
    assert len(proof.graph.units) == units
    assert proof.holds, proof
    assert proof.error < 1e-12
    assert all(proof.lengths[unit.name] < unit.size for unit in proof.graph)
    kept = {
        (axis.tensor, axis.axis): axis.kind
        for axis in proof.graph.frozen
        if axis.kind not in ('kernel', 'input') and axis.tensor.endswith('weight')
    }
    assert kept == frozen
    assert proof.graph.locked_share() == 0


@pytest.mark.shared
@pytest.mark.parametrize('name', FROZEN)
def test_a_pruned_detector_is_saved_trained_and_predicts(name: str, images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = detector(name)
    small(whole, 'model', name.partition('_')[0].partition('-')[0])
    config = whole.model
    model = MODELS.build(config)
    model.init_weights()
    inputs = DefaultDemoInput((1, 3, 64, 64))(model)
    slim, record = strop.prune(model, inputs, ratio=0.5)
    assert record.params[1] < 0.3 * record.params[0]
    save_slim(slim, tmp_path / 'slim', factory=config, example_inputs=inputs)

    tune = Config(dict(model=dict(type='strop.RecipeArchitecture', folder=str(tmp_path / 'slim'), allow='mmdet')))
    tune.default_scope = 'mmdet'
    runner = build_runner(shortened(tune, detection_data(images, 64), 8, tmp_path / 'tuned', lr=0.02))
    before = {key: value.clone() for key, value in runner.model.module.state_dict().items()}
    assert all(torch.equal(value, slim.state_dict()[key]) for key, value in before.items())
    losses = losses_of(runner)
    assert sum(loss['loss'] for loss in losses[-3:]) < sum(loss['loss'] for loss in losses[:3]), losses

    tuned = runner.model.module.eval()
    save_slim(tuned, tmp_path / 'again', factory=config, example_inputs=inputs)
    again = load_recipe(tmp_path / 'again', allow='mmdet')
    key = 'neck.fpn_convs.0.conv.weight'
    assert not torch.equal(before[key], again.state_dict()[key])
    scores = [net(**DefaultDemoInput((1, 3, 96, 96))(net), mode='predict')[0].pred_instances.scores for net in (tuned, again)]
    assert torch.equal(*scores)
    assert 0 <= runner.test()['coco/bbox_mAP'] <= 1


# -- distillation ------------------------------------------------------------------------------------


def distilled(name: str, family: str, images: Path, work_dir: Path, sharpened: str, losses: list[str]) -> None:
    """Train by a shipped config with small networks; the teacher's maps, made sharp, are to be learned."""
    config = Config.fromfile(CONFIGS / name)
    small(config, 'model.architecture', family)
    small(config, 'model.teacher', family, backbone__depth=34)
    config.merge_from_dict(
        {f'model.distiller.distill_losses.{loss.removeprefix("distill.")}.loss_weight': 20 for loss in losses}
    )
    torch.manual_seed(0)
    teacher = MODELS.build(config.model.teacher)
    for path, module in teacher.named_modules():
        if path.startswith(sharpened) and isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1)
    torch.save(teacher.state_dict(), work_dir / 'teacher.pth')
    config.model.teacher_ckpt = str(work_dir / 'teacher.pth')
    runner = build_runner(shortened(config, detection_data(images, 64), 6, work_dir / 'student', lr=0.01))
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    untaught, learned = taught(runner)
    assert learned < untaught
    after = runner.model.state_dict().items()
    assert {name.partition('.')[0] for name, value in after if not torch.equal(value, before[name])} == {'architecture'}
    assert 0 <= runner.test()['coco/bbox_mAP'] <= 1


@pytest.mark.shared
def test_a_retinanet_learns_from_the_channels_of_a_larger_one(images: Path, tmp_path: Path) -> None:
    losses = [f'distill.loss_cwd{level}' for level in range(5)]
    distilled('cwd_head_retinanet_r101_r50_coco.py', 'retinanet', images, tmp_path, 'bbox_head.retina_cls', losses)


@pytest.mark.shared
def test_a_faster_rcnn_learns_from_the_pyramid_of_a_larger_one(images: Path, tmp_path: Path) -> None:
    losses = [f'distill.loss_fpn{level}' for level in range(4)]
    distilled('cwd_fpn_faster_rcnn_r101_r50_coco.py', 'faster', images, tmp_path, 'neck.fpn_convs', losses)


# -- search ------------------------------------------------------------------------------------------


def searched(name: str) -> Config:
    """A config of DetNAS with two small stages."""
    config = Config.fromfile(CONFIGS / f'detnas_{name}_faster_rcnn_shufflenetv2_coco.py')
    inner = 'model.cfg' if name == 'subnet' else 'model.architecture'
    choice = config.supernet.backbone.arch_setting[0][2]
    options = {
        f'{inner}.backbone.arch_setting': [[16, 1, choice], [32, 2, choice], [32, 1, choice], [64, 1, choice]],
        f'{inner}.roi_head.bbox_head.conv_out_channels': 64,
    }
    sizes = {name: value for name, value in SMALL['faster'].items() if not name.startswith('backbone')}
    config.merge_from_dict(
        {f'{inner}.{name}': value for name, value in {**sizes, 'neck.in_channels': [16, 32, 32, 64]}.items()}
    )
    config.merge_from_dict(options)
    return config


@pytest.mark.shared
def test_the_backbone_of_a_detector_is_searched_and_retrained(images: Path, tmp_path: Path) -> None:
    data = detection_data(images, 64)
    trained = build_runner(shortened(searched('supernet'), data, 6, tmp_path / 'supernet', lr=0.02))
    drawn = []
    draw = trained.model.sample_subnet
    trained.model.sample_subnet = lambda: drawn.append(draw()) or drawn[-1]
    assert len(losses_of(trained)) == 6
    assert len({str(subnet) for subnet in drawn}) > 3

    config = searched('search')
    loop = dict(config.train_cfg, max_epochs=2, num_candidates=3, num_mutation=1, num_crossover=1, top_k=2)
    loop |= dict(dataloader=data['val_dataloader'], evaluator=data['val_evaluator'], calibrate_sample_num=4)
    config = shortened(config, data, 1, tmp_path / 'search', load_from=str(tmp_path / 'supernet' / 'iter_6.pth'))
    config.train_cfg = dict(loop, constraints_range=dict(flops=(0.0, 11.0)))
    search = build_runner(config, task='search')
    search.train()
    result = search.train_loop.result
    assert len(result.complete) == 6
    assert all(0 < trial.info['flops'] <= 11 and 0 <= trial.values['coco/bbox_mAP'] <= 1 for trial in result.trials)
    best = tmp_path / 'search' / 'best_fix_subnet.yaml'
    assert load_subnet(best, search.model.mutator.space) == result.best.subnet

    subnet = shortened(searched('subnet'), data, 4, tmp_path / 'subnet', lr=0.02, model__fix_subnet=str(best))
    retrained = build_runner(subnet)
    macs = strop.count(retrained.model.backbone, torch.zeros(1, 3, 224, 224)).macs
    assert macs / 1e6 == pytest.approx(result.best.info['flops'])
    assert len(losses_of(retrained)) == 4
    assert 0 <= retrained.test()['coco/bbox_mAP'] <= 1
