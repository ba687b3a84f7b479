"""What `examine` says of configs, scripts and experiments, and that what it writes runs."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from strop.compat.inheritance import changed_file
from strop.compat.migration import examine, parameters_of, shipped, unknown_arguments
from strop.errors import ConfigError
from strop.registry import MODELS
from strop.unsupported import NEAREST

ROOT = Path(__file__).resolve().parents[2]
NAMES = json.loads(Path(__file__).with_name('mmrazor_names.json').read_text(encoding='utf-8'))


def found(tmp_path: Path, text: str, name: str = 'config.py') -> list[tuple[int | None, str, str]]:
    path = tmp_path / name
    path.write_text(text)
    return [(change.line, change.kind, change.text) for change in examine(path).changes]


def test_documented_arguments_are_never_called_unknown() -> None:
    import strop.registry

    for kind, names in NAMES.items():
        known = getattr(strop.registry, kind)
        for name in set(names) - set(NEAREST):
            arguments = ast.parse(f'def f({names[name]["arguments"]}): pass').body[0].args.args  # type: ignore[attr-defined]
            assert unknown_arguments([known.get(name)], {argument.arg: None for argument in arguments}) == [], name


@pytest.mark.parametrize(
    'path',
    [
        path
        for path in sorted((ROOT / 'configs').rglob('*.py'))
        if not any(name in path.read_text() for name in ('::', 'mmdet'))
    ],
    ids=lambda path: path.stem,
)
def test_a_shipped_config_needs_nothing(path: Path) -> None:
    migration = examine(path)
    assert migration.runs, migration.changes
    assert migration.result == migration.text


def test_a_config_of_1x_needs_nothing(tmp_path: Path) -> None:
    text = """
model = dict(
    type='mmrazor.AutoSlim',
    architecture=dict(type='ImageClassifier', backbone=dict(type='SearchableMobileNetV2', arch_setting=[])),
    mutator=dict(
        type='OneShotChannelMutator',
        channel_unit_cfg=dict(
            type='OneShotMutableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio')),
        parse_cfg=dict(type='ChannelAnalyzer', demo_input=(1, 3, 224, 224), tracer_type='BackwardTracer')),
    distiller=dict(
        type='ConfigurableDistiller',
        student_recorders=dict(fc=dict(type='ModuleOutputs', source='head.fc')),
        distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=1, loss_weight=1))))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.5), paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = dict(type='PolyLR', power=1.0, eta_min=0.0, end=300)
train_cfg = dict(by_epoch=False, max_iters=10)
val_cfg = dict(type='mmrazor.SubnetValLoop', calibrate_sample_num=64)
model_wrapper_cfg = dict(type='mmrazor.AutoSlimDDP', broadcast_buffers=False, find_unused_parameters=False)
"""
    assert found(tmp_path, text) == [
        (9, 'note', '`tracer_type` of ChannelAnalyzer makes no difference: models are traced by running them once')
    ]


def test_a_config_of_the_first_1x_release_is_understood(tmp_path: Path) -> None:
    text = """
model = dict(
    type='mmrazor.SlimmableNetwork',
    architecture=dict(type='ImageClassifier', backbone=dict(type='SearchableMobileNetV2', arch_setting=[])),
    channel_cfg_paths=['a.yaml', 'b.yaml'],
    mutator=dict(
        type='SlimmableChannelMutator',
        mutable_cfg=dict(type='SlimmableMutableChannel'),
        tracer_cfg=dict(type='BackwardTracer', loss_calculator=dict(type='ImageClassifierPseudoLoss'))))
val_cfg = dict(type='mmrazor.SlimmableValLoop')
"""
    assert found(tmp_path, text) == [
        (8, 'note', '`mutable_cfg` of SlimmableChannelMutator is `channel_unit_cfg` now; it is understood'),
        (9, 'note', '`tracer_cfg` of SlimmableChannelMutator is `parse_cfg` now; it is understood'),
    ]


@pytest.mark.parametrize(
    ('line', 'kind', 'words'),
    [
        ("model = dict(type='SPOS', channel_cfg='a.yaml')", 'by hand', "takes no 'channel_cfg': `channel_cfg_paths`"),
        ("val_cfg = dict(type='mmrazor.AutoSlimValLoop')", 'change', "is 'mmrazor.SubnetValLoop'"),
        (
            "train_cfg = dict(type='mmrazor.EvolutionSearchLoop', flops_range=(0.0, 330.0))",
            'by hand',
            "takes no 'flops_range': constraints_range=dict(flops=(low, high))",
        ),
        (
            "model = dict(type='mmrazor.DMCP')",
            'by hand',
            "'DMCP' of MMRazor is not supported yet by Strop. Nearest: ",
        ),
        ("model = dict(type='SPSO')", 'by hand', "the type 'SPSO' is not known. Did you mean 'SPOS'"),
        (
            "model = dict(type='SPOS', norm_trainig=True)",
            'by hand',
            "no argument 'norm_trainig'. Did you mean 'norm_training'",
        ),
        ("loss = {'type': 'KLDivergence', 'tua': 1}", 'by hand', "KLDivergence takes no argument 'tua'. Did you mean 'tau'"),
        ("model = dict(type='DetNAS')", 'change', "the type 'DetNAS' is 'SPOS'"),
        ("model = dict(type='mmrazor.GeneralDistill')", 'by hand', "of MMRazor 0.x is type='SingleTeacherDistill'"),
        ("mutator = dict(type='OneShotMutator', placeholder_mapping={})", 'by hand', "takes no 'placeholder_mapping'"),
        ("model = dict(type='mmdet3d.VoxelNet')", 'by hand', 'needs the package mmdet3d, which is not installed'),
        ("model = dict(_scope_='mmdet3d', type='VoxelNet')", 'by hand', "type='VoxelNet' needs the package mmdet3d, which is"),
        (
            "_base_ = 'nowhere/spos_shufflenet_search_mnist.py'",
            'by hand',
            "Strop ships 'strop::spos/spos_shufflenet_search_mnist.py'",
        ),
        ("_base_ = ['mmrazor::_base_/nothing_like_it_xyz.py']", 'by hand', 'Strop ships no config'),
        ("_base_ = ['mmyolo::yolov8.py']", 'by hand', "'mmyolo' is none whose configs are known"),
        ("launcher = 'pytorch'", 'note', '`--launcher pytorch` under torchrun'),
        ("hook = dict(type='CheckpointHook', file_client_args=dict())", 'note', 'files are written to the local disk'),
        ("custom_imports = dict(imports=['mine'])\nmodel = dict(type='MyNet')", 'note', '`custom_imports` is to register it'),
        (
            "custom_imports = dict(imports=['mine'])\ndefault_scope = 'mmcls'\nmodel = dict(type='MyNet')",
            'note',
            '`custom_imports` is to register it',
        ),
        (
            "custom_imports = dict(imports=['mine'])\nmodel = dict(type='mmrazor.SearchableShuffleNetV2', arg1=1)",
            'note',
            '`custom_imports` may register a class of this name',
        ),
        ("model = dict(type='mmrazor.SearchableShuffleNetV2', arg1=1)", 'by hand', "takes no argument 'arg1'"),
    ],
)
def test_what_a_line_is_told(tmp_path: Path, line: str, kind: str, words: str) -> None:
    assert [(k, words in text) for _, k, text in found(tmp_path, line)] == [(kind, True)], found(tmp_path, line)


@pytest.mark.parametrize(
    'line',
    [
        "norm_cfg = dict(type='SyncBN')",
        "model = dict(type='SPOS', channel_cfg=None)",
        "model = dict(type='torch.nn.Linear', in_features=1, out_features=1)",
        "x = dict(type='mmrazor.MinMaxObserver', w_observer=dict(type='anything'))['x']",
        "estimator_cfg = dict(type='mmrazor.ResourceEstimator')",
        "model = dict(type='timm.TimmModel', model_name='resnet18')",
        "train_dataloader = dict(sampler=dict(type='InfiniteSampler', shuffle=True))",
        "architecture = dict(type='MMClsArchitecture', model=dict())",
        'parts = dict(**other)',
    ],
)
def test_what_is_left_alone(tmp_path: Path, line: str) -> None:
    assert [kind for _, kind, _ in found(tmp_path, line) if kind != 'note'] in ([], ['by hand'] if 'Observer' in line else [])


@pytest.fixture
def with_codebases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look types up as if mmdet, mmseg and mmpretrain were installed."""
    monkeypatch.setattr('strop.compat.migration.installed', lambda name: True)


@pytest.mark.usefixtures('with_codebases')
def test_a_type_is_looked_up_in_the_scope_around_it(tmp_path: Path) -> None:
    text = """default_scope = 'mmseg'
supernet = dict(
    _scope_='mmdet',
    type='RetinaNet',
    neck=[dict(type='FPN')],
    bbox_head=dict(type='RetinaHead', loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True)))
model = dict(_scope_='mmrazor', type='SPSO', architecture=supernet)
"""
    changes = found(tmp_path, text)
    assert [(line, kind) for line, kind, _ in changes] == [(7, 'by hand')]
    assert changes[0][2].startswith("the type 'SPSO' is not known. Did you mean 'SPOS'")


@pytest.mark.usefixtures('with_codebases')
@pytest.mark.parametrize(
    ('base', 'runtime', 'kinds'),
    [
        ("'mmdet::_base_/default_runtime.py'", '', []),
        ("'./runtime.py'", "default_scope = 'mmdet'", []),
        ("'./runtime.py'", "_base_ = 'mmcls::_base_/default_runtime.py'", []),
        ("'./runtime.py'", "default_scope = 'mmrazor'\n_base_ = 'mmcls::_base_/default_runtime.py'", ['by hand']),
        ("'./runtime.py'", '', ['by hand']),
        ("HERE + '/runtime.py'", "default_scope = 'mmdet'", ['note']),
    ],
)
def test_the_default_scope_may_be_of_a_base(tmp_path: Path, base: str, runtime: str, kinds: list[str]) -> None:
    (tmp_path / 'runtime.py').write_text(runtime)
    changes = found(tmp_path, f"_base_ = [{base}]\nmodel = dict(type='Xyzzyplugh')\n")
    said = {
        'by hand': "the type 'Xyzzyplugh' is not known",
        'note': "the type 'Xyzzyplugh' is none of Strop; it is looked up in the scope of the bases, which is not to be seen",
    }
    assert [change for change in changes if change[0] == 2] == [(2, kind, said[kind]) for kind in kinds]


def test_the_place_of_a_finding_is_its_line(tmp_path: Path) -> None:
    text = "# a comment with an umlaut: \u00e4\nmodel = dict(\n    type='SPOS',\n    mutator=dict(type='GumbelOP'),\n)\n"
    assert [(line, kind) for line, kind, _ in found(tmp_path, text)] == [(4, 'change')]


OLD = """\
# A comment that stays, \u00fcber all.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ConvModule', in_channels=1, out_channels=8, kernel_size=3, norm_cfg=dict(type='BN')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=8, topk=(1,)))
algorithm = dict(type='BaseAlgorithm', architecture=dict(type='MMClsArchitecture', model=model))
digits = dict(type='ImageDataset', source='digits', limit=60, form='samples')
data = dict(
    samples_per_gpu=20,
    workers_per_gpu=0,
    train=dict(split='train', **digits),
    val=dict(split='val', **digits))
evaluation = dict(interval=1, metric='accuracy')
optimizer = dict(type='SGD', lr=0.1, weight_decay=1e-4, paramwise_cfg=dict(norm_decay_mult=0.0))
optimizer_config = dict(grad_clip=dict(max_norm=5.0))
lr_config = dict(policy='CosineAnnealing', min_lr=0.001, warmup='linear', warmup_iters=2, warmup_ratio=0.25)
runner = dict(type='EpochBasedRunner', max_epochs=2)
checkpoint_config = dict(interval=1)
log_config = dict(interval=1, hooks=[dict(type='TextLoggerHook')])
dist_params = dict(backend='nccl')  # gone
log_level = 'WARNING'
load_from = None
resume_from = None
workflow = [('train', 1)]
"""


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [
        ('warmup_by_epoch=True', dict(by_epoch=True, convert_to_iter_based=True)),
        ('warmup_by_epoch=False', dict(by_epoch=False)),
        ('', dict(by_epoch=False)),
    ],
)
def test_a_warm_up_rises_in_each_iteration(tmp_path: Path, given: str, wanted: dict[str, Any]) -> None:
    old = "warmup='linear', warmup_iters=2"
    path = tmp_path / 'old.py'
    path.write_text(OLD.replace(old, f'{old}, {given}' if given else old))
    new = tmp_path / 'new.py'
    new.write_text(examine(path).result)
    assert Config.fromfile(new).param_scheduler[0] == dict(type='LinearLR', start_factor=0.25, end=2, **wanted)


def test_a_config_of_0x_is_rewritten_and_runs(tmp_path: Path) -> None:
    from strop.engine import build_runner

    path = tmp_path / 'old.py'
    path.write_text(OLD)
    migration = examine(path)
    assert not migration.of('by hand')
    new = tmp_path / 'new.py'
    new.write_text(migration.result)
    assert migration.result.startswith('# A comment that stays, \u00fcber all.\n')
    assert examine(new).runs
    config = Config.fromfile(new)
    assert config.model == Config.fromfile(path).algorithm
    assert not {'algorithm', 'data', 'optimizer', 'lr_config', 'runner', 'workflow', 'dist_params', 'resume_from'} & set(config)
    assert config.optim_wrapper == dict(
        optimizer=dict(type='SGD', lr=0.1, weight_decay=1e-4),
        paramwise_cfg=dict(norm_decay_mult=0.0),
        clip_grad=dict(max_norm=5.0),
    )
    assert config.param_scheduler == [
        dict(type='LinearLR', start_factor=0.25, by_epoch=False, end=2),
        dict(type='CosineAnnealingLR', T_max=2, eta_min=0.001, by_epoch=True),
    ]
    assert config.train_cfg == dict(by_epoch=True, max_epochs=2, val_interval=1)
    runner = build_runner(config, work_dir=tmp_path / 'work')
    assert type(runner.model.architecture) is MODELS.get('ImageClassifier')
    runner.train()
    assert (runner.iter, runner.epoch) == (6, 2)
    assert (tmp_path / 'work' / 'epoch_2.pth').is_file()
    assert 'accuracy/top1' in runner.val()


SUPERNET = """\
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ConvModule', in_channels=1, out_channels=8, kernel_size=3),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=8, topk=(1,)))
algorithm = dict(type='BaseAlgorithm', architecture=dict(type='MMClsArchitecture', model=model))
"""
CHILD = """\
_base_ = ['./supernet.py']
algorithm = dict(retraining=True, architecture=dict(model=dict(head=dict(num_classes=3))))
model = dict(head=dict(num_classes=5))
kept = _base_.algorithm.architecture.type
"""
NEW_CHILD = """\
_base_ = ['./supernet_strop.py']
model = dict(retraining=True, architecture=dict(model=dict(head=dict(num_classes=3))))
architecture_cfg = dict(head=dict(num_classes=5))
kept = _base_.model.architecture.type
"""
OPTIMIZER = "optimizer = dict(type='SGD', lr=0.1)\n"
KEEPS = (2, 'note', '`algorithm` is `model` now; it is understood as it is, and keeps its name beside bases that may have it')


def family(folder: Path, **texts: str) -> list[Path]:
    """Write files, and return them."""
    for name, text in texts.items():
        (folder / f'{name}.py').write_text(text)
    return [folder / f'{name}.py' for name in texts]


def told(path: Path, together: list[Path]) -> list[tuple[int | None, str, str]]:
    return [(change.line, change.kind, change.text) for change in examine(path, together).changes]


def test_alone_a_config_keeps_the_algorithm_that_its_base_has(tmp_path: Path) -> None:
    _, child = family(tmp_path, supernet=SUPERNET, child=CHILD)
    assert told(child, [child]) == [KEEPS]
    assert examine(child).result == CHILD


def test_a_config_and_its_base_are_changed_into_a_pair(tmp_path: Path) -> None:
    from strop.cli.configs import load_config

    files = family(tmp_path, supernet=SUPERNET, child=CHILD)
    for file in files:
        changed_file(file).write_text(examine(file, files).result)
    assert (tmp_path / 'child_strop.py').read_text() == NEW_CHILD
    for file in files:
        old, new = load_config(str(file)), load_config(str(changed_file(file)))
        assert new.model == old.model
        assert 'algorithm' not in new
    assert new.architecture_cfg.head.num_classes == 5
    assert MODELS.build(new.model).architecture.head.fc.out_features == 3
    assert told(files[1], files) == [
        (1, 'note', "the base './supernet.py' is './supernet_strop.py', its changed file"),
        (
            2,
            'note',
            '`algorithm` is `model` now, and what was `model` is called `architecture_cfg`; it is understood as it is',
        ),
    ]


def test_a_base_of_the_old_style_is_to_be_changed_with_what_inherits_it(tmp_path: Path) -> None:
    grand = "_base_ = 'child.py'\nalgorithm = dict(retraining=False)\n"
    files = family(tmp_path, supernet=SUPERNET + OPTIMIZER, child=CHILD, grandchild=grand)
    needs = 'needs changes, too: give both files to `strop migrate`, and one new file inherits the other'
    assert told(files[1], []) == [(1, 'by hand', f"the base './supernet.py' {needs}"), KEEPS]
    assert told(files[2], []) == [(1, 'by hand', f"the base 'child.py' {needs}"), KEEPS]
    assert told(files[1], files)[0] == (1, 'change', "the base './supernet.py' is './supernet_strop.py', its changed file")
    assert examine(files[1], files).result == NEW_CHILD
    assert examine(files[2], files).result == "_base_ = 'child_strop.py'\nmodel = dict(retraining=False)\n"
    # The base that has the algorithm is not changed, so that none calls it otherwise.
    assert examine(files[2], files[1:]).result == grand


def test_a_base_without_an_algorithm_decides_nothing_about_its_name(tmp_path: Path) -> None:
    whole = "_base_ = ['./data.py']\nalgorithm = dict(type='BaseAlgorithm')\n"
    files = family(tmp_path, data='data = dict(train=dict())\n', whole=whole)
    assert examine(files[1], files).result == "_base_ = ['./data_strop.py']\nalgorithm = dict(type='BaseAlgorithm')\n"


def test_a_config_follows_a_base_that_was_changed_before(tmp_path: Path) -> None:
    text = "_base_ = ['./supernet_strop.py']\nalgorithm = dict(retraining=True)\n"
    base, child = family(tmp_path, supernet=SUPERNET, child=text)
    changed_file(base).write_text(examine(base).result)
    assert told(child, [child]) == [(2, 'change', '`algorithm` is `model` now, as in the bases')]
    assert examine(child).result == "_base_ = ['./supernet_strop.py']\nmodel = dict(retraining=True)\n"


def test_bases_that_inherit_each_other_end(tmp_path: Path) -> None:
    files = family(tmp_path, one="_base_ = 'two.py'\nalgorithm = dict()\n", two="_base_ = 'one.py'\n")
    assert told(files[0], files) == [KEEPS]


def test_the_algorithm_of_a_config_of_0x_is_trained_as_the_config_stands(tmp_path: Path) -> None:
    from strop.cli.configs import load_config
    from strop.engine import prepare_config

    path = tmp_path / 'old.py'
    path.write_text(OLD)
    assert load_config(str(path)).model.type == 'BaseAlgorithm'
    config = Config.fromfile(path)
    config.train_cfg = dict(max_epochs=1)
    assert prepare_config(config).model.type == 'BaseAlgorithm'


@pytest.mark.parametrize(
    ('lines', 'kinds', 'words'),
    [
        ('from mmrazor.registry import MODELS', ['change'], 'import strop.compat'),
        ('import strop.compat\nfrom mmrazor.registry import MODELS', [], ''),
        ('from strop import compat\nfrom nni.nas.pytorch.mutables import LayerChoice', [], ''),
        ('import strop.compat\nfrom mmrazor.models import BigNAS', ['by hand'], 'Nearest'),
        ('import strop.compat\nfrom mmrazor.models import SPSO', ['by hand'], "has no 'SPSO'"),
        ('import strop.compat\nimport mmrazor.modls', ['by hand'], "Did you mean 'models'"),
        ('import strop.compat\nfrom nni.retiarii.nn.pytorch import LayerChoice', ['by hand'], 'strop.LayerChoice'),
        ('import strop.compat\nfrom nni.compression.pytorch.pruning import L1NormPruner', ['by hand'], 'strop.prune'),
        ('import strop.compat\nfrom nni.nas.pytorch.enas import EnasTrainer', ['by hand'], 'policy'),
        ('from torch import nn\nfrom .mmrazor import x', [], ''),
    ],
)
def test_imports_of_a_script(tmp_path: Path, lines: str, kinds: list[str], words: str) -> None:
    changes = found(tmp_path, lines, 'script.py')
    assert [kind for _, kind, _ in changes] == kinds
    assert all(words in text for _, _, text in changes)


def test_a_script_is_given_the_line_that_it_lacks_before_its_first_old_import(tmp_path: Path) -> None:
    path = tmp_path / 'script.py'
    head = '"""About it."""\n\nfrom __future__ import annotations\n\nimport torch\n'
    path.write_text(head + '\nif True:\n    from nni.nas.pytorch.mutables import LayerChoice\nfrom nni.tuner import Tuner\n')
    lines = examine(path).result.splitlines()
    assert lines[6].startswith('import strop.compat')
    assert lines[7] == 'if True:'
    compile(examine(path).result, 'script', 'exec')


def test_an_experiment_that_is_understood_and_one_that_is_not(tmp_path: Path) -> None:
    good = (
        'experimentName: a\nsearchSpace: {x: {_type: choice, _value: [1, 2]}}\ntrialCommand: python t.py\nmaxTrialNumber: 3\n'
    )
    changes = found(tmp_path, good + 'debug: true\n', 'good.yml')
    assert [kind for _, kind, _ in changes] == ['note', 'note']
    assert "'debug' has no meaning here" in changes[0][2]
    assert 'strop experiment run good.yml' in changes[1][2]
    bad = found(tmp_path, good + 'trainingService: {platform: kubeflow}\n', 'bad.yml')
    assert [kind for _, kind, _ in bad] == ['by hand']
    assert "'kubeflow' is not understood" in bad[0][2]


@pytest.mark.parametrize(
    ('name', 'text', 'words'),
    [
        ('broken.py', 'model = dict(\n', r'broken\.py:1 is not Python'),
        ('broken.yml', 'a: [1\n', None),
        ('config.txt', '', 'ends with .py'),
        ('absent.py', None, 'There is no file'),
        ('null.py', 'a = 1\0', 'is not'),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, words: str | None) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    if words is None:
        assert [change.kind for change in examine(path).changes] == ['by hand']
        return
    with pytest.raises(ConfigError, match=words):
        examine(path)


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    (tmp_path / 'evil.py').write_text(
        f"open({str(tmp_path / 'made')!r}, 'w')\nmodel = dict(type='SPOS')\nimport os; os._exit(3)\n"
    )
    assert examine(tmp_path / 'evil.py').runs
    assert not (tmp_path / 'made').exists()


def test_configs_of_mmrazor_are_found_by_their_names(tmp_path: Path) -> None:
    text = "_base_ = ['mmrazor::nas/mmcls/spos/spos_shufflenet_search_8xb128_in1k.py']\n"
    path = tmp_path / 'config.py'
    path.write_text(text)
    assert examine(path).result == "_base_ = ['strop::spos/spos_shufflenet_search_8xb128_in1k.py']\n"
    assert shipped('no/such_config.py') is None


def test_arguments_are_those_of_all_parents() -> None:
    assert {'num_channels', 'divisor', 'key'} <= (parameters_of(MODELS.get('L1MutableChannelUnit')) or set())
    assert parameters_of(MODELS.get('sub_model')) is None
    assert unknown_arguments([dict], {'anything': 1}) == []


def test_two_bases_that_set_one_name_are_told(tmp_path: Path) -> None:
    (tmp_path / 'schedule.py').write_text('checkpoint_config = dict(by_epoch=False, interval=8000)\n')
    (tmp_path / 'runtime.py').write_text("log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])\n")
    child = tmp_path / 'child.py'
    child.write_text("_base_ = ['./schedule.py', './runtime.py']\n")
    found = examine(child, [child, tmp_path / 'schedule.py', tmp_path / 'runtime.py'])
    assert [change.text for change in found.changes if change.kind == 'by hand'] == [
        "the bases './schedule.py' and './runtime.py' both set `default_hooks`, which MMEngine refuses: move one of them into "
        'this file'
    ]
