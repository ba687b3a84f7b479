"""What a recipe may name: a recipe comes from anywhere, and nothing in it runs without consent."""

from __future__ import annotations

import json
import os
import sys

import pytest
from mmengine.registry import DefaultScope
from torch import nn

from strop.errors import ConfigError, ExportError, UnsafeFileError
from strop.export import load_recipe, read_recipe, save_recipe, supernet_config
from strop.export.factory import Trust, check_names, describe, portable
from strop.mutables import LayerChoice
from strop.registry import MODELS

from .conftest import CLASSIFIER

HERE = __name__
TOP = HERE.partition('.')[0]
system = os.system  # what a module imported is not what it defines


class Net(nn.Module):
    def __init__(self, act='torch.nn.ReLU', **kwargs) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)


def make_net(**kwargs) -> nn.Module:
    return Net(**kwargs)


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A recipe, and a module on the path that must not be imported."""
    folder = tmp_path / 'net'
    save_recipe(Net(), None, folder, factory=make_net)
    (tmp_path / 'lurking').mkdir()
    for name in ('__init__', 'registry'):
        (tmp_path / 'lurking' / f'{name}.py').write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    (tmp_path / 'Runner.py').write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield folder
    sys.modules.pop('lurking', None)


def rewrite(folder, supernet):
    content = {**json.loads((folder / 'recipe.json').read_text()), 'supernet': supernet}
    (folder / 'recipe.json').write_text(json.dumps(content))


EVIL_FACTORIES = [
    {'factory': 'os:system', 'args': {'command': 'touch ran'}},
    {'factory': 'lurking:build'},
    {'factory': 'builtins:exec', 'args': {'source': "open('ran', 'w')"}},
    {'factory': 'torch:load', 'args': {'f': 'x.pt'}},
    {'factory': 'torch.hub:load', 'args': {'repo_or_dir': 'a/b', 'model': 'c'}},
    {'factory': 'strop.registry:MODELS.build', 'args': {'cfg': {'type': 'os.system', 'command': 'touch ran'}}},
    {'factory': 'strop.errors:importlib.import_module', 'args': {'name': 'lurking'}},
    {'factory': 'strop.errors:try_import', 'args': {'module': 'lurking', 'extra': ''}},
    {'factory': 'strop.export:load_recipe', 'args': {'folder': '.', 'trust': True}},
    {'factory': 'strop.estimators.runtimes:importlib.util.find_spec', 'args': {'name': 'lurking.registry'}},
    {'factory': 'torch.nn.functional:torch.load', 'args': {'f': 'x.pt'}},
    {'factory': 'torch.nn.modules.module:Module.__init_subclass__'},
    {'factory': 'strop.algorithms:PlainArchitecture', 'args': {'module': {'type': 'os.system', 'command': 'touch ran'}}},
    {'factory': 'torch.nn:ReLU', 'args': {'x': [{'y': {'type': 'lurking.Net'}}]}},
    {'factory': 'strop.export:RecipeArchitecture', 'args': {'folder': 'inner', 'allow': ['lurking']}},
    {'factory': 'strop.export.pruned_architecture:RecipeArchitecture', 'args': {'folder': 'inner', 'allow': ['lurking']}},
]
EVIL_CONFIGS = [
    {'type': 'os.system', 'command': 'touch ran'},
    {'type': 'lurking'},
    {'type': 'lurking.Net'},
    {'type': 'Runner'},
    {'type': 'ReLU', '_scope_': 'lurking'},
    {'type': 'torch.load', 'f': 'x.pt'},
    {'type': 'torch.nn.init.torch.load', 'f': 'x.pt'},
    {'type': 'torch.nn.functional.torch.hub.load_state_dict_from_url', 'url': 'http://localhost/x.pth'},
    {'type': 'strop.registry.MODELS.build', 'cfg': {'type': 'ReLU'}},
    {'type': 'subprocess.Popen', 'args': 'touch ran', 'shell': True},
    {'type': 'OneShotMutableOP', 'candidates': {'a': {'type': 'os.system', 'command': 'touch ran'}}},
    {'type': 'ImageClassifier', 'backbone': {'type': 'lurking'}},
    {'type': 'sub_model', 'cfg': CLASSIFIER, 'fix_subnet': {}, 'init_weight_from_supernet': True},
    {**CLASSIFIER, 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'http://localhost/x.pth'}},
    {**CLASSIFIER, 'init_cfg': {'type': 'mmengine.PretrainedInit', 'checkpoint': 'x.pth'}},
    {'type': 'PlainArchitecture', 'module': {'cfg_path': 'lurking/registry.py'}},
    {'type': 'sub_model', 'cfg': {'cfg_path': 'lurking/registry.py', 'pretrained': True}, 'fix_subnet': {}},
    {'type': 'strop.mutables.extract.__globals__.clear'},
    {'type': 'torch.nn.utils.weight_norm.__call__'},
    {'type': 'strop.mutables.extract', 'model': {}},
    {'type': 'MMArchitectureQuant', 'architecture': CLASSIFIER, 'float_checkpoint': 'http://localhost/x.pth'},
    {'type': 'SingleTeacherDistill', 'architecture': CLASSIFIER, 'teacher': CLASSIFIER, 'teacher_ckpt': ['x.pth']},
    {'type': 'DAFLDataFreeDistillation', 'teachers': {'a': {'build_cfg': CLASSIFIER, 'ckpt_path': 'x.pth'}}},
    {'type': 'timm.TimmModel', 'model_name': 'resnet18', 'pretrained_cfg_overlay': {'url': 'http://localhost/x.pth'}},
    {**CLASSIFIER, 'pretrained': 'http://localhost/x.pth'},
    {'type': 'RecipeArchitecture', 'folder': 'inner', 'allow': ['lurking']},
    {'type': 'strop.RecipeArchitecture', 'folder': 'inner', 'allow': ['lurking']},
    {'type': 'strop.export.RecipeArchitecture', 'folder': 'inner', 'allow': ['lurking']},
    *(
        {
            'type': 'SingleTeacherDistill',
            'architecture': CLASSIFIER,
            'teacher': CLASSIFIER,
            'distiller': {'type': 'ConfigurableDistiller', **distiller},
        }
        for distiller in (
            {'student_recorders': {'x': {'type': 'FunctionOutputs', 'source': 'lurking.registry.f'}}},
            {'student_recorders': {'x': {'type': 'MethodInputsRecorder', 'source': 'lurking.registry.f'}}},
            {'distill_deliveries': {'x': {'type': 'FunctionOutputs', 'func_path': 'lurking.registry.f', 'max_keep_data': 1}}},
            {'distill_deliveries': {'x': {'type': 'MethodOutputs', 'method_path': 'lurking.A.f', 'max_keep_data': 1}}},
        )
    ),
]


@pytest.mark.parametrize('supernet', EVIL_FACTORIES, ids=lambda supernet: supernet['factory'])
def test_factories_outside_are_refused(supernet, evil, tmp_path):
    rewrite(evil, supernet)
    for allow in ((), ['mypkg']):
        with pytest.raises(UnsafeFileError, match=r'recipe\.json: names'):
            load_recipe(evil, allow=allow)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['Runner.py', 'lurking', 'net']
    assert 'lurking' not in sys.modules


@pytest.mark.parametrize('config', EVIL_CONFIGS, ids=lambda config: str(config['type']))
def test_configs_that_reach_outside_are_refused(config, evil, tmp_path):
    rewrite(evil, {'config': json.loads(json.dumps(config))})
    with pytest.raises(UnsafeFileError, match=r'recipe\.json'):
        load_recipe(evil)
    rewrite(evil, {'config': json.loads(json.dumps(config)), 'imports': ['lurking']})
    with pytest.raises(UnsafeFileError, match=r'recipe\.json'):
        load_recipe(evil, allow=['mypkg'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['Runner.py', 'lurking', 'net']
    assert 'lurking' not in sys.modules


def test_consent_is_to_a_package_and_to_nothing_that_it_imports(evil, tmp_path):
    with pytest.raises(UnsafeFileError, match=rf"names the factory '{HERE}:make_net'.*allow=\['{TOP}'\]"):
        load_recipe(evil)
    assert isinstance(load_recipe(evil, allow=[TOP]), Net)
    assert isinstance(load_recipe(evil, allow=HERE), Net)
    assert isinstance(load_recipe(evil, factory=make_net), Net)
    assert isinstance(load_recipe(evil, trust=True), Net)
    for name in ('system', 'os.system', 'sys.exit', 'json.loads'):
        rewrite(evil, {'factory': f'{HERE}:{name}', 'args': {'command': 'touch ran'}})
        with pytest.raises(UnsafeFileError, match='no model class or function of that package'):
            load_recipe(evil, allow=[TOP])
    rewrite(evil, {'config': {'type': f'{HERE}.os.system', 'command': 'touch ran'}})
    with pytest.raises(UnsafeFileError, match='no class of a module of that package'):
        load_recipe(evil, allow=[TOP])
    rewrite(evil, {'config': {'type': f'{HERE}.Net'}})
    assert isinstance(load_recipe(evil, allow=[TOP]), Net)
    rewrite(evil, {'factory': f'{HERE}:make_net', 'args': {'act': {'type': 'os.system'}}})
    with pytest.raises(UnsafeFileError, match=r'os\.system'):
        load_recipe(evil, allow=[TOP])
    assert not (tmp_path / 'ran').exists()


def test_trust_lets_anything_be_named(evil, tmp_path):
    rewrite(evil, {'factory': 'os:system', 'args': {'command': f'touch {tmp_path}/ran'}})
    with pytest.raises(ExportError, match='returned a int'):
        load_recipe(evil, trust=True)
    assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize('wrong', ['', 'a b', ['os.'], [3], ['a:b']])
def test_allow_lists_modules(wrong, evil):
    with pytest.raises(ConfigError, match='`allow` lists'):
        load_recipe(evil, allow=wrong)


def test_what_is_safe_needs_no_consent(evil):
    for config in (
        {'type': 'torch.nn.Linear', 'in_features': 2, 'out_features': 2},
        {'type': 'torch.nn.modules.linear.Linear', 'in_features': 2, 'out_features': 2},
        CLASSIFIER,
        {**CLASSIFIER, 'type': 'strop.ImageClassifier', 'init_cfg': {'type': 'Kaiming', 'layer': ['Conv2d']}},
        {**CLASSIFIER, 'type': 'mmrazor.ImageClassifier', '_scope_': 'mmrazor'},
    ):
        check_names(config, Trust(), 'here')


def test_classes_of_a_package_are_imported_with_consent(tmp_path, monkeypatch):
    package = tmp_path / 'wildpkg'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'nets.py').write_text(
        'from torch import nn\nfrom strop.registry import MODELS\nfrom strop.mutables import LayerChoice\n\n\n'
        '@MODELS.register_module()\nclass WildNet(nn.Sequential):\n    def __init__(self, width):\n'
        '        super().__init__(LayerChoice([nn.Linear(2, width), nn.Linear(2, width, bias=False)]))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        from wildpkg.nets import WildNet

        save_recipe(WildNet(3), {'0': 1}, tmp_path / 'net', factory={'type': 'WildNet', 'width': 3})
        assert read_recipe(tmp_path / 'net')['supernet']['imports'] == ['wildpkg.nets']
        assert "allow=['wildpkg']" in (tmp_path / 'net' / 'README.md').read_text()
        load_recipe(tmp_path / 'net')  # registered by us, so it is ours already
        forget()
        with pytest.raises(UnsafeFileError, match=r"type='WildNet', registered by 'wildpkg\.nets'.*allow=\['wildpkg'\]"):
            load_recipe(tmp_path / 'net')
        assert 'wildpkg' not in sys.modules
        assert load_recipe(tmp_path / 'net', allow=['wildpkg'])[0].bias is None
        forget()
        (package / 'nets.py').unlink()
        with pytest.raises(ExportError, match=r"'wildpkg\.nets', which registers its classes, cannot be imported"):
            load_recipe(tmp_path / 'net', trust=True)
    finally:
        forget()


def forget():
    MODELS._module_dict.pop('WildNet', None)
    for name in [name for name in sys.modules if name.partition('.')[0] == 'wildpkg']:
        del sys.modules[name]


def test_the_scope_of_a_config_is_kept():
    assert '_scope_' not in describe(CLASSIFIER, None)['config']
    with DefaultScope.overwrite_default_scope('mmengine'):
        assert '_scope_' not in describe(CLASSIFIER, None)['config']
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert describe({'type': 'ReLU'}, None)['config']['_scope_'] == 'mmdet'


def test_a_config_is_copied_before_it_is_built(tmp_path):
    class Greedy(nn.Linear):
        def __init__(self, sizes) -> None:
            super().__init__(sizes.pop(), sizes.pop())

    MODELS.register_module(module=Greedy, name='GreedyNet')
    try:
        config = {'type': 'GreedyNet', 'sizes': [3, 2]}
        save_recipe(Greedy([3, 2]), None, tmp_path / 'net', factory=config)
        assert config == {'type': 'GreedyNet', 'sizes': [3, 2]}
        assert load_recipe(tmp_path / 'net').in_features == 2
    finally:
        MODELS._module_dict.pop('GreedyNet')


def test_portable_takes_files_out_of_configs_and_leaves_arguments_alone():
    config = {
        'type': nn.ReLU, 'pretrained': 'x.pth', 'init_weight_from_supernet': True,
        'init_cfg': [{'type': 'Pretrained', 'checkpoint': 'x'}, {'type': 'Kaiming'}],
    }  # fmt: skip
    assert portable(config, 'cfg', config=True) == {
        'type': 'torch.nn.modules.activation.ReLU',
        'init_cfg': [{'type': 'Kaiming'}],
    }
    assert portable({'pretrained': 'x.pth'}, 'args') == {'pretrained': 'x.pth'}


def test_how_a_permitted_function_calls_its_weights_is_its_own_affair(tmp_path):
    save_recipe(Net(), None, tmp_path / 'net', factory=make_net, factory_args={'pretrained': 'imagenet', 'ckpt_path': 'x'})
    assert isinstance(load_recipe(tmp_path / 'net', allow=TOP), Net)
    nested = {'backbone': {'type': 'ImageClassifier', 'pretrained': 'x.pth'}}
    with pytest.raises(UnsafeFileError, match=r"pretrained='x\.pth' would read another"):
        check_names(nested, Trust((TOP,)), 'the recipe', permitted=True)


def test_what_timm_fetches_by_is_taken_out_and_the_rest_of_its_settings_stays():
    config = {'type': 'TimmModel', 'pretrained_cfg_overlay': {'num_classes': 10, 'url': 'http://localhost/x.pth'}}
    kept = {'type': 'TimmModel', 'pretrained_cfg_overlay': {'num_classes': 10}}
    assert portable(config, 'cfg', config=True) == kept
    check_names(kept, Trust(), 'the recipe')
    with pytest.raises(UnsafeFileError, match=r'pretrained_cfg_overlay\.url'):
        check_names(config, Trust(), 'the recipe')


def test_classes_of_a_script_need_consent_to_it(monkeypatch):
    made = type('Scripted', (nn.Module,), {'__module__': '__main__'})
    monkeypatch.setattr(sys.modules['__main__'], 'Scripted', made, raising=False)
    check_names({'type': '__main__.Scripted'}, Trust(('__main__',)), 'the recipe')
    with pytest.raises(UnsafeFileError, match='__main__'):
        check_names({'type': '__main__.Scripted'}, Trust(), 'the recipe')


def test_the_model_of_another_config_is_put_in(tmp_path):
    (tmp_path / 'net.py').write_text("model = dict(type='torch.nn.Linear', in_features=3, out_features=4)\n")
    config = {'type': 'PlainArchitecture', 'module': {'cfg_path': str(tmp_path / 'net.py'), 'out_features': 2}}
    plain = {'type': 'PlainArchitecture', 'module': {'type': 'torch.nn.Linear', 'in_features': 3, 'out_features': 2}}
    assert portable(config, 'cfg', config=True) == plain
    assert portable(config, 'args') == config


def test_supernet_config_unwraps():
    inner = {'type': 'Net'}
    assert supernet_config(inner) == (inner, None)
    assert supernet_config({'type': 'BaseAlgorithm', 'architecture': inner, 'mutable_cfg': 'best.yaml'}) == (inner, 'best.yaml')
    old = {'type': 'SPOS', 'architecture': {'type': 'MMClsArchitecture', 'model': inner}, 'retraining': True}
    assert supernet_config(old) == (inner, None)
    assert supernet_config({'type': 'PlainArchitecture', 'module': inner}) == (inner, None)
    with pytest.raises(ConfigError, match='is a LayerChoice, not a config'):
        supernet_config({'type': 'SPOS', 'architecture': LayerChoice([nn.ReLU()])})
