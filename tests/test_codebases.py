"""The codebases of OpenMMLab: absent, broken, renamed, and their configs. Packages here are stand-ins in a folder."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope, Registry
from torch import nn

from strop import codebases
from strop.codebases import check_codebase, check_scope, find_codebase_config, model_config, wrong_arguments
from strop.errors import ConfigError, MissingDependencyError, UnknownTypeError
from strop.registry import MODELS
from tests.scripts import run_script


@pytest.fixture(autouse=True)
def _leaves_nothing(tmp_path: Path) -> Iterator[None]:
    """Take the modules of stand-ins out of `sys.modules`."""
    yield
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] == 'mmdet' and str(getattr(module, '__file__', '')).startswith(str(tmp_path)):
            del sys.modules[name]


absent = pytest.mark.skipif(codebases.installed('mmdet'), reason='the real codebases are here')


def package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, configs: dict[str, str] | tuple[str, ...] = (), **files: str
) -> Path:
    """Put a stand-in of mmdet into `sys.path`."""
    root = folder / 'mmdet'
    for name, text in {'__init__.py': '', **{f'{name}.py': text for name, text in files.items()}}.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    for name in configs:
        file = root / '.mim' / 'configs' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(configs[name] if isinstance(configs, dict) else '')
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmdet']:
        monkeypatch.delitem(sys.modules, name)
    return root


@absent
@pytest.mark.parametrize('name', ['mmdet.RetinaNet', 'mmseg.EncoderDecoder', 'mmpretrain.VGG', 'mmcls.VGG'])
def test_a_type_of_an_absent_codebase_says_what_to_install(name: str) -> None:
    with pytest.raises(MissingDependencyError, match=r"not installed.*pip install 'strop\[openmmlab\]'.*make openmmlab"):
        MODELS.build(dict(type=name))


@pytest.fixture(params=[False, True], ids=['without mmcls', 'after import mmcls'])
def mmcls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Registries without and with the one that an old `import mmcls` makes."""
    monkeypatch.delitem(MODELS.parent.children, 'mmcls', raising=False)
    if request.param:
        monkeypatch.setitem(MODELS.parent.children, 'mmcls', type(MODELS)('model', scope='mmcls'))
        MODELS.parent.children['mmcls'].parent = MODELS.parent
    return request.param


@absent
def test_a_registry_that_old_imports_made_for_a_codebase_says_the_same(mmcls: bool) -> None:
    with pytest.raises(MissingDependencyError, match='mmcls is called mmpretrain today'):
        MODELS.build(dict(type='mmcls.VGG'))


@absent
def test_an_absent_codebase_of_the_default_scope_is_told_of(mmcls: bool) -> None:
    told = r"default scope is 'mmcls', which, today mmpretrain, is not installed"
    with DefaultScope.overwrite_default_scope('mmcls'), pytest.raises(UnknownTypeError, match=told):
        MODELS.build(dict(type='VGG', depth=11))
    with pytest.raises(MissingDependencyError, match="default_scope='mmseg' needs the package mmseg, which is not installed"):
        check_scope('mmseg')
    check_scope('mmcls')  # Strop has the most common parts itself
    check_scope('strop')
    check_scope(None)


@absent
def test_a_config_of_an_absent_codebase_says_what_to_install() -> None:
    with pytest.raises(MissingDependencyError, match=r'mmcls is called mmpretrain today'):
        find_codebase_config('mmcls::resnet/resnet18_8xb32_in1k.py')
    with pytest.raises(MissingDependencyError, match=r"The config 'mmdet::a\.py' needs the package mmdet"):
        MODELS.build(dict(cfg_path='mmdet::a.py'))


@pytest.mark.parametrize(
    ('registry', 'cause'),
    [
        ('raise ModuleNotFoundError("No module named \'mmcv._ext\'")', 'mmcv was installed without its operators'),
        ("raise TypeError('NoneType takes no arguments')", "pip install 'transformers>=4.57,<5'"),
        ("raise RuntimeError('torn')", 'RuntimeError: torn'),
    ],
)
def test_a_codebase_that_does_not_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str, cause: str
) -> None:
    package(tmp_path, monkeypatch, registry=registry)
    with pytest.raises(MissingDependencyError) as caught:
        check_codebase('mmdet', "type='mmdet.RetinaNet'")
    assert "type='mmdet.RetinaNet' needs the package mmdet, which is installed" in str(caught.value)
    assert cause in str(caught.value)


RENAMED = ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'pspnet/pspnet_r50-d8_4xb2-80k_city-512x1024.py', 'gfl/gfl_ms-2x.py')


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', RENAMED[0]),
        ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', RENAMED[0]),
        ('pspnet/pspnet_r50-d8_512x1024_80k_city.py', RENAMED[1]),
        ('gfl/gfl_mstrain_2x.py', RENAMED[2]),
    ],
)
def test_a_renamed_config_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    root = package(tmp_path, monkeypatch, RENAMED)
    assert find_codebase_config(f'mmdet::{old}') == root / '.mim' / 'configs' / new


def test_a_config_that_may_be_several_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, ('r/r18_8xb32_in1k.py', 'r/r18_8xb16_in1k.py', 'r/b0_in1k.py', 'r/b1_in1k.py'))
    with pytest.raises(ConfigError, match=r"may have become 'r/r18_8xb16_in1k\.py' or 'r/r18_8xb32_in1k\.py'"):
        find_codebase_config('mmdet::r/r18_b32x8_imagenet.py')
    with pytest.raises(ConfigError, match='older or newer mmdet, or misspelled'):
        find_codebase_config('mmdet::r/b7_in1k.py')  # not b0: the name of a model is no batch size


def test_a_config_that_is_not_there_names_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, RENAMED)
    with pytest.raises(ConfigError, match=r"Did you mean 'gfl/gfl_ms-2x\.py'"):
        find_codebase_config('mmdet::gfl/gfl_ms-3x.py')
    with pytest.raises(ConfigError, match=r'In gfl there are gfl/gfl_ms-2x\.py\.$'):
        find_codebase_config('mmdet::gfl/something_quite_different_on_purpose_with_a_long_name.py')
    with pytest.raises(ConfigError, match='leads out of'):
        find_codebase_config('mmdet::../../__init__.py')


def test_the_model_of_a_config_is_built_with_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model = dict(type='Net', width=3, head=dict(classes=5))\ndata_preprocessor = dict(mean=[0])\n"
    package(tmp_path, monkeypatch, {'net/net.py': text, 'net/schedule.py': 'lr = 1\n'})
    model, pretrained = model_config(dict(cfg_path='mmdet::net/net.py', head=dict(classes=2)))
    assert model == dict(type='Net', width=3, head=dict(classes=2), data_preprocessor=dict(mean=[0]), _scope_='mmdet')
    assert not pretrained
    with pytest.raises(ConfigError, match='No pretrained weights are known'):
        model_config(dict(cfg_path='mmdet::net/net.py', pretrained=True))
    with pytest.raises(ConfigError, match="has no `model`; it has 'lr'"):
        model_config(dict(cfg_path='mmdet::net/schedule.py'))


@pytest.fixture
def mmdet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A stand-in with three classes, one of which has the name of one of Strop's."""
    before = dict(ROOT.children)
    ROOT.children.pop('mmdet', None)
    package(
        tmp_path,
        monkeypatch,
        registry="""
            from mmengine.registry import MODELS as ROOT, Registry
            MODELS = Registry('model', parent=ROOT, scope='mmdet', locations=['mmdet.models'])
        """,
        models="""
            from mmdet.registry import MODELS

            @MODELS.register_module()
            class Detector:
                def __init__(self, backbone, pretrained_by=None):
                    self.backbone = MODELS.build(backbone)

            @MODELS.register_module()
            class TinyNet:
                def __init__(self, depth=1):
                    self.depth = depth

            @MODELS.register_module()
            class L1Loss:
                pass
        """,
    )
    import mmdet.registry

    yield mmdet.registry.MODELS
    ROOT.children.clear()
    ROOT.children.update(before)


@absent
def test_all_inside_a_type_of_a_codebase_is_that_codebases(mmdet: Registry) -> None:
    built = MODELS.build(dict(type='mmdet.Detector', backbone=dict(type='TinyNet', depth=4)))
    assert type(built).__module__ == type(built.backbone).__module__ == 'mmdet.models'
    assert built.backbone.depth == 4


@absent
def test_a_wrong_scope_names_the_right_one(mmdet: Registry) -> None:
    with pytest.raises(UnknownTypeError, match=r"mmdet has a 'TinyNet': write type='mmdet\.TinyNet', or _scope_='mmdet'"):
        MODELS.build(dict(type='TinyNet'))
    with pytest.raises(UnknownTypeError, match=r"has no 'TinyNat'\. Did you mean 'TinyNet'"):
        MODELS.build(dict(type='mmdet.TinyNat'))
    with pytest.raises(UnknownTypeError, match=r"^mmdet .* has no 'SPOS'\. Strop has one: type='strop\.SPOS'\.$"):
        MODELS.build(dict(type='mmdet.SPOS'))


@absent
def test_an_argument_wrong_arguments_is_named(mmdet: Registry) -> None:
    with pytest.raises(ConfigError, match=r"TinyNet of mmdet .* takes no 'deepth'.*Did you mean 'depth'"):
        MODELS.build(dict(type='mmdet.Detector', backbone=dict(type='TinyNet', deepth=4)))
    with pytest.raises(ConfigError, match=r"Detector of mmdet .* takes no 'pretrained'.*init_cfg=dict\(type='Pretrained'"):
        MODELS.build(dict(type='mmdet.Detector', backbone=dict(type='TinyNet'), pretrained='a.pth'))
    with pytest.raises(
        ConfigError, match=r"^Detector of mmdet .* needs 'backbone', which the config does not give\. It takes 'b"
    ):
        MODELS.build(dict(type='mmdet.Detector'))
    assert wrong_arguments(TypeError('something else')) is None


def test_a_missing_argument_of_a_class_of_strop_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"^ImageClassifier needs 'backbone', which the config does not give\. It takes 'backbone'"
    ):
        MODELS.build(dict(type='ImageClassifier'))


def test_an_unknown_argument_of_a_class_of_strop_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"^SPOS takes no 'norm_trainig'\. Did you mean 'norm_training'.*It takes 'architecture'"
    ):
        MODELS.build(dict(type='SPOS', architecture=nn.Linear(1, 1), norm_trainig=True))
    # Of an older name the one of today; of a parent's argument, too.
    with pytest.raises(ConfigError, match=r'Today it is `norm_training=True` of the algorithm'):
        MODELS.build(dict(type='SlimmableNetwork', architecture=nn.Linear(1, 1), mutator={}, bn_training_mode=True))


def test_an_unknown_argument_of_a_users_class_stays_a_type_error() -> None:
    @MODELS.register_module(name='OfTheUser', force=True)
    class OfTheUser(nn.Module):
        pass

    try:
        with pytest.raises(TypeError, match="'depth'"):
            MODELS.build(dict(type='OfTheUser', depth=3))
    finally:
        MODELS.module_dict.pop('OfTheUser')


@absent
def test_the_scope_decides_for_a_name_that_two_have(mmdet: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import strop.compat  # noqa: F401

    said: list[str] = []
    monkeypatch.setattr('strop.registry.print_log', lambda text, **_: said.append(text))
    strops = MODELS.get('L1Loss')
    assert strops.__module__.startswith('strop.')
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(MODELS.build(dict(type='L1Loss'))).__module__ == 'mmdet.models'
        assert type(MODELS.build(dict(type='strop.L1Loss'))) is strops
        # What mmdet does not have is Strop's; what neither has is told of.
        assert MODELS.build(dict(type='KLDivergence')).__class__.__module__.startswith('strop.')
        with pytest.raises(UnknownTypeError, match=r"'Detectr' is neither in mmdet .* nor in Strop\. Did you mean 'Detector'"):
            MODELS.build(dict(type='Detectr'))
    assert [text.partition(' is a type of')[0] for text in said] == ["'L1Loss'"]


def test_strop_imports_no_codebase(tmp_path: Path) -> None:
    script = """
        import sys
        import strop, strop.compat, strop.codebases
        from strop.registry import MODELS
        MODELS.import_from_location()
        print(sorted({'mmcv', 'mmpretrain', 'mmdet', 'mmseg'} & set(sys.modules)))
    """
    done = run_script(script, cwd=tmp_path)
    assert done.stdout.strip().endswith('[]'), done.stdout + done.stderr
