"""Old MMRazor files, with the import lines that stand in its tutorials, in the folders where these put them."""

from __future__ import annotations

import importlib
import pickle
import re

import pytest

from strop.compat import MMCLS, MMCV, MMRAZOR, NNI, OldImportError

from .conftest import Workspace
from .old_files import AUTOSLIM, BASE_ALGORITHM, NET, ONE_SHOT_MUTATOR, SHUFFLENET, SPOS, XXX


def targets() -> list[tuple[str, str, str, str]]:
    return [
        (room, word.partition('=')[0], path, word.partition('=')[2] or word)
        for table in (MMRAZOR, NNI, MMCLS, MMCV)
        for room, sources in table.names.items()
        for path, words in sources.items()
        for word in words.split()
        if word != '*'
    ]


@pytest.mark.parametrize(('room', 'old', 'path', 'new'), targets(), ids=lambda part: part)
def test_every_line_of_every_table_reaches_the_very_same_object(room: str, old: str, path: str, new: str) -> None:
    assert getattr(importlib.import_module(room), old) is getattr(importlib.import_module(path), new)


@pytest.mark.parametrize('table', [MMRAZOR, NNI, MMCLS, MMCV], ids=lambda table: table.root)
def test_every_listed_module_is_there(table) -> None:
    for package, words in table.modules.items():
        assert table.has_module(package)
        for word in words.split():
            assert importlib.import_module(f'{package}.{word}').__name__ == f'{package}.{word}'


@pytest.mark.parametrize('table', [MMRAZOR, NNI, MMCLS, MMCV], ids=lambda table: table.root)
def test_a_name_is_not_listed_as_missing_twice(table) -> None:
    later = table.later.split()
    assert len(later) == len(set(later))


def test_what_is_not_built_yet_says_so() -> None:
    with pytest.raises(OldImportError, match="'BackwardTracer' of mmrazor is not supported yet"):
        exec('from mmrazor.models.task_modules import BackwardTracer')
    with pytest.raises(OldImportError, match=r"has no 'OneShotMutatr'\. Did you mean 'OneShotMutator'"):
        exec('from mmrazor.models.mutators import OneShotMutatr')


def test_importing_strop_activates_nothing_and_activating_imports_nothing_heavy(workspace: Workspace) -> None:
    out = workspace.run(
        """
        import sys
        before = set(sys.modules)
        import strop
        print([finder for finder in sys.meta_path if type(finder).__module__.startswith('strop')])
        import strop.compat
        import mmrazor.models.algorithms.nas.spos, nni.nas.pytorch.mutables, mmcv.runner
        print(sorted({'torch', 'numpy', 'mmengine', 'strop.registry', 'strop.algorithms'} & set(sys.modules)))
        strop.compat.activate()
        print(sum(type(finder).__module__.startswith('strop') for finder in sys.meta_path))
    """,
        fresh=True,
    )
    assert out.splitlines() == ['[]', '[]', '2']  # one for old packages, one that waits for MMEngine


def test_old_names_may_be_activated_before_anything_else_is_imported(workspace: Workspace) -> None:
    out = workspace.run(
        'import strop.compat\nimport strop.registry\nfrom strop import LayerChoice\nprint(LayerChoice.__name__)', fresh=True
    )
    assert out.split() == ['LayerChoice']


# -- customize a NAS algorithm: an algorithm and a mutator of 0.x -------------------------------


CONFIG = """
    mutator = dict(type='OneShotMutator')
    algorithm = dict(
        type='SPOS',
        mutator=mutator,
        retraining=False,
        architecture=dict(
            type='TinyNet',
            mutable=dict(
                type='OneShotMutableOP',
                candidates=dict(
                    wide=dict(type='torch.nn.Linear', in_features=4),
                    no_bias=dict(type='torch.nn.Linear', in_features=4, bias=False)),
                module_kwargs=dict(out_features=8))))
"""

TRAIN = """
    import torch
    from strop.registry import MODELS

    torch.manual_seed(0)
    algorithm = MODELS.build(cfg.algorithm)
    mutator = algorithm.mutator
    print(type(algorithm).__module__, type(mutator).__module__)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.5)
    data = (torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    losses = [float(algorithm.train_step(data, optimizer)['loss']) for _ in range(2)]
    print(algorithm.calls, mutator.calls)
    print(losses[1] < losses[0])
    print([name for name, value in algorithm.state_dict().items() if not torch.equal(value, before[name])])
    print(algorithm.get_subnet_flops(), dict(mutator.current_choices))
    mutator.set_chosen_subnet(mutator.crossover(mutator.mutation(mutator.sample_subnet()), mutator.sample_subnet()))
    print(type(algorithm.architecture.layer).__name__, algorithm.architecture.layer.bias)
"""

TRAINED = [
    'mmrazor.models.algorithms.spos mmrazor.models.mutators.one_shot_mutator',
    "['train_step', 'train_step'] ['sample_subnet', 'set_subnet', 'sample_subnet', 'set_subnet']",
    'True',
    "['architecture.layer.no_bias.weight', 'architecture.head.weight', 'architecture.head.bias']",
    "0 {'layer': 'no_bias'}",
    'Linear None',
]


def test_an_algorithm_and_a_mutator_of_the_users_through_custom_imports(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/algorithms/spos.py', SPOS)
    workspace.put('mmrazor/models/mutators/one_shot_mutator.py', ONE_SHOT_MUTATOR)
    workspace.put('mmrazor/models/architectures/tiny_net.py', NET)
    workspace.put(
        'config.py',
        """
    custom_imports = dict(
        imports=['mmrazor.models.mutators.one_shot_mutator', 'mmrazor.models.algorithms.spos',
                 'mmrazor.models.architectures.tiny_net'],
        allow_failed_imports=False)
"""
        + CONFIG,
    )
    out = workspace.run(
        """
    import strop.compat
    from mmengine.config import Config
    cfg = Config.fromfile('config.py')
"""
        + TRAIN
    )
    assert out.splitlines()[-6:] == TRAINED


# -- customize mixed algorithms: a mutator and a distiller in one algorithm -----------------------


def test_a_mixed_algorithm_of_the_users(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/algorithms/nas/autoslim.py', AUTOSLIM)
    workspace.put('mmrazor/models/algorithms/nas/__init__.py', "from .autoslim import AutoSlim\n\n__all__ = ['AutoSlim']\n")
    workspace.put(
        'config.py',
        """
    custom_imports = dict(imports=['mmrazor.models.algorithms.nas.autoslim'], allow_failed_imports=False)
    recorders = dict(fc=dict(type='ModuleOutputs', source='module.2'))
    model = dict(
        type='mmrazor.AutoSlim',
        num_samples=1,
        mutator=dict(type='OneShotChannelMutator', parse_cfg=dict(demo_input=(1, 4), tracer_type='BackwardTracer')),
        distiller=dict(
            type='ConfigurableDistiller',
            teacher_recorders=recorders,
            student_recorders=recorders,
            distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=1, loss_weight=1)),
            loss_forward_mappings=dict(
                loss_kl=dict(
                    preds_S=dict(recorder='fc', from_student=True),
                    preds_T=dict(recorder='fc', from_student=False)))))
""",
    )
    out = workspace.run(
        """
    import strop.compat
    import torch
    from mmengine.config import Config
    from mmengine.optim import OptimWrapper
    from strop.algorithms import PlainArchitecture
    from strop.registry import MODELS

    cfg = Config.fromfile('config.py')
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    algorithm = MODELS.build(dict(cfg.model, architecture=PlainArchitecture(net)))
    print(type(algorithm).__module__)
    wrapper = OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=0.5), accumulative_counts=3)
    data = (torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))
    before = net[0].weight.detach().clone()
    losses = [algorithm.train_step(data, wrapper) for _ in range(5)]
    print(sorted(losses[0]))
    print(bool(losses[-1]['max_subnet.loss'] < losses[0]['max_subnet.loss']))
    from mmrazor.models.algorithms.nas import AutoSlim
    print(AutoSlim is type(algorithm))
"""
    )
    assert out.splitlines()[-4:] == [
        'mmrazor.models.algorithms.nas.autoslim',
        "['max_subnet.loss', 'min_subnet.loss_kl', 'random_subnet_0.loss_kl']",
        'True',
        'True',
    ]


def test_an_algorithm_and_a_mutator_of_the_users_through_the_packages_init(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/algorithms/spos.py', SPOS)
    workspace.put('mmrazor/models/algorithms/__init__.py', 'from .spos import SPOS\n')
    workspace.put('mmrazor/models/mutators/one_shot_mutator.py', ONE_SHOT_MUTATOR)
    workspace.put('mmrazor/models/mutators/__init__.py', 'from .one_shot_mutator import OneShotMutator\n')
    workspace.put('mmrazor/models/architectures/tiny_net.py', NET)
    workspace.put('mmrazor/models/architectures/__init__.py', 'from .tiny_net import TinyNet\n')
    workspace.put('config.py', CONFIG)
    out = workspace.run(
        """
    import strop.compat
    from mmengine.config import Config
    cfg = Config.fromfile('config.py')
"""
        + TRAIN
        + """
    from mmrazor.models.mutators import OneShotMutator
    from mmrazor.models import SPOS
    assert type(mutator) is OneShotMutator and type(algorithm) is SPOS
    from mmrazor.models.mutators import NasMutator
    import strop.mutators
    assert NasMutator is strop.mutators.NasMutator
"""
    )
    assert out.splitlines()[-6:] == TRAINED


def test_retraining_does_not_sample(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/algorithms/spos.py', SPOS)
    workspace.put('mmrazor/models/architectures/tiny_net.py', NET)
    out = workspace.run("""
        import torch
        import strop.compat
        import mmrazor.models.algorithms.spos, mmrazor.models.architectures.tiny_net
        from mmrazor.models.builder import build_algorithm

        algorithm = build_algorithm(dict(type='SPOS', retraining=True, architecture=dict(
            type='TinyNet', mutable=dict(type='torch.nn.Linear', in_features=4, out_features=8))))
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.5)
        data = (torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))
        print(sorted(algorithm.train_step(data, optimizer)), algorithm.mutator)
    """)
    assert out.splitlines()[-1] == "['loss'] None"


# -- the algorithm page of 1.x ------------------------------------------------------------------


def test_a_base_algorithm_written_by_the_user(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/algorithms/base.py', BASE_ALGORITHM)
    workspace.put('mmrazor/models/architectures/tiny_net.py', NET)
    out = workspace.run("""
        import torch
        import strop.compat
        import mmrazor.models.architectures.tiny_net
        from mmengine.optim import OptimWrapper
        from mmrazor.models.algorithms.base import BaseAlgorithm, ForwardResults
        from mmrazor.registry import MODELS

        algorithm = MODELS.build(dict(type='BaseAlgorithm', architecture=dict(
            type='TinyNet', mutable=dict(type='torch.nn.Linear', in_features=4, out_features=8))))
        print(type(algorithm) is BaseAlgorithm, BaseAlgorithm.__module__)
        wrapper = OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=0.5))
        data = dict(batch_inputs=torch.randn(6, 4), data_samples=torch.tensor([0, 1, 0, 1, 0, 1]))
        losses = [float(algorithm.train_step(data, wrapper)['loss']) for _ in range(2)]
        print(losses[1] < losses[0], tuple(algorithm(data['batch_inputs']).shape))
        try:
            algorithm(data['batch_inputs'], mode='nonsense')
        except RuntimeError as error:
            print(error)
    """)
    assert out.splitlines()[-3:] == [
        'True mmrazor.models.algorithms.base',
        'True (6, 2)',
        'Invalid mode "nonsense". Only supports loss, predict and tensor mode',
    ]


def test_an_algorithm_in_a_sub_directory_imported_by_the_packages(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/algorithms/nas/xxx.py', XXX)
    workspace.put('mmrazor/models/algorithms/nas/__init__.py', "from .xxx import XXX\n\n__all__ = ['XXX']\n")
    workspace.put('mmrazor/models/algorithms/__init__.py', 'from .nas import XXX\n')
    workspace.put('mmrazor/models/architectures/tiny_net.py', NET)
    workspace.put(
        'config.py',
        """
        custom_imports = dict(imports=['mmrazor.models.architectures.tiny_net'], allow_failed_imports=False)
        architecture = dict(type='TinyNet', mutable=dict(type='torch.nn.Linear', in_features=4, out_features=8))
        model = dict(
            type='XXX',
            architecture=architecture)
        """,
    )
    out = workspace.run("""
        import torch
        import strop.compat
        from mmengine.config import Config
        from mmengine.optim import OptimWrapper
        from strop.registry import MODELS
        import strop.algorithms

        cfg = Config.fromfile('config.py')
        model = MODELS.build(cfg.model)
        assert type(MODELS.build({**cfg.model, 'type': 'mmrazor.XXX'})) is type(model)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        data = (torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))
        losses = [float(model.train_step(data, wrapper)['loss']) for _ in range(2)]
        print(type(model).__module__, isinstance(model, strop.algorithms.BaseAlgorithm), losses[1] < losses[0], model.bbb())
        try:
            model(data[0], mode='nonsense')
        except RuntimeError as error:
            print(all(mode in str(error) for mode in ('loss', 'tensor', 'predict')))
    """)
    assert out.splitlines()[-2:] == ['mmrazor.models.algorithms.nas.xxx True True 12', 'True']


def test_the_loop_of_the_algorithm_page_is_found_under_its_old_prefix(workspace: Workspace) -> None:
    out = workspace.run("""
        import strop.compat
        from mmrazor.registry import HOOKS, LOOPS
        from mmrazor.engine import EvolutionSearchLoop
        from mmrazor.engine.runner.evolution_search_loop import EvolutionSearchLoop as Same
        import strop.engine
        print(LOOPS.get('mmrazor.EvolutionSearchLoop') is EvolutionSearchLoop is Same is strop.engine.EvolutionSearchLoop)
    """)
    assert out.splitlines()[-1] == 'True'


def test_a_mistyped_custom_import_is_an_error(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/algorithms/spos.py', SPOS)
    err = workspace.run(
        """
        import strop.compat
        from mmengine.utils import import_modules_from_strings
        import_modules_from_strings(['mmrazor.models.algorithms.spso'], allow_failed_imports=False)
        """,
        fails=True,
    )
    assert re.search(r"mmrazor\.models\.algorithms has no 'spso'\. Did you mean 'spos'", err)


# -- customize architectures --------------------------------------------------------------------


ARCHITECTURE = """
    mutable_cfg = dict(
        type='OneShotMutableOP',
        candidates=dict(
            shuffle_3x3=dict(type='ShuffleBlock', kernel_size=3),
            shuffle_5x5=dict(type='ShuffleBlock', kernel_size=5),
            shuffle_xception=dict(type='ShuffleXception')))
    model = dict(
        type='mmrazor.SPOS',
        mutator=dict(type='mmrazor.OneShotMutator'),
        architecture=dict(
            type='MMClsArchitecture',
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='mmrazor.SearchableShuffleNetV2',
                    arch_setting=[[16, 1, mutable_cfg], [16, 2, mutable_cfg], [32, 1, mutable_cfg], [32, 1, mutable_cfg]],
                    frozen_stages=1),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=1024,
                          loss=dict(type='CrossEntropyLoss', loss_weight=1.0), topk=(1,)))))
"""

TRAIN_SHUFFLENET = """
    import torch
    import strop.compat
    from mmengine.config import Config
    from mmengine.optim import OptimWrapper
    from strop.registry import MODELS
    from mmrazor.models.architectures.backbones.searchable_shufflenet_v2 import SearchableShuffleNetV2
    import strop.architectures

    torch.manual_seed(0)
    cfg = Config.fromfile('config.py')
    model = MODELS.build(cfg.model)
    backbone = model.architecture.backbone
    assert type(backbone) is SearchableShuffleNetV2 and type(backbone).__module__.startswith('mmrazor.')
    assert type(backbone.conv1) is strop.architectures.ConvModule
    model.init_weights()
    model.train()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    data = (torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0]))
    frozen = backbone.conv1.conv.weight.clone()
    for _ in range(2):
        log = model.train_step(data, wrapper)
    print(sorted(log), bool(torch.isfinite(log['loss'])), sorted(model.mutator.current_choices))
    print(torch.equal(frozen, backbone.conv1.conv.weight), backbone.conv1.bn.training, backbone.layers[2].training)
    for wrong in (dict(out_indices=(5,)), dict(frozen_stages=5)):
        try:
            SearchableShuffleNetV2(cfg.model.architecture.model.backbone.arch_setting, **wrong)
        except ValueError as error:
            print(error)
"""

TRAINED_SHUFFLENET = [
    "['loss'] True " + str([f'backbone.layers.{stage}.{block}' for stage, block in [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]]),
    'True False True',
    'the item in out_indices must in range(0, 5). But received 5',
    'frozen_stages must be in range(-1, 5). But received 5',
]


def test_a_searchable_backbone_of_the_users_through_custom_imports(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/architectures/backbones/searchable_shufflenet_v2.py', SHUFFLENET)
    workspace.put(
        'config.py',
        """
    custom_imports = dict(
        imports=['mmrazor.models.architectures.backbones.searchable_shufflenet_v2'],
        allow_failed_imports=False)
"""
        + ARCHITECTURE,
    )
    assert workspace.run(TRAIN_SHUFFLENET).splitlines()[-4:] == TRAINED_SHUFFLENET


def test_a_searchable_backbone_of_the_users_through_the_packages_init(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/architectures/backbones/searchable_shufflenet_v2.py', SHUFFLENET)
    workspace.put(
        'mmrazor/models/architectures/backbones/__init__.py',
        "from .searchable_shufflenet_v2 import SearchableShuffleNetV2\n\n__all__ = ['SearchableShuffleNetV2']\n",
    )
    workspace.put('config.py', ARCHITECTURE)
    assert workspace.run(TRAIN_SHUFFLENET).splitlines()[-4:] == TRAINED_SHUFFLENET


def test_a_common_backbone_of_the_users(workspace: Workspace) -> None:
    workspace.put(
        'mmrazor/models/architectures/backbones/xxxnet.py',
        """
        import torch
        from mmengine.model import BaseModule
        from mmrazor.registry import MODELS

        @MODELS.register_module()
        class xxxNet(BaseModule):

            def __init__(self, arg1, arg2, init_cfg=None):
                super().__init__(init_cfg=init_cfg)
                self.conv = torch.nn.Conv2d(arg1, arg2, 3, stride=2)

            def forward(self, x):
                return (self.conv(x),)
        """,
    )
    workspace.put(
        'config.py',
        """
        custom_imports = dict(
            imports=['mmrazor.models.architectures.backbones.xxxnet'],
            allow_failed_imports=False)
        architecture = dict(
            type='MMClsArchitecture',
            model=dict(
                type='mmcls.ImageClassifier',
                backbone=dict(
                    type='xxxNet',
                    arg1=3,
                    arg2=8),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=8)))
        algorithm = dict(type='BaseAlgorithm', architecture=architecture)
        """,
    )
    out = workspace.run("""
        import torch
        import strop.compat
        from mmengine.config import Config
        from mmrazor.models.builder import build_algorithm

        algorithm = build_algorithm(Config.fromfile('config.py').algorithm)
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
        data = (torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))
        losses = [float(algorithm.train_step(data, optimizer)['loss']) for _ in range(2)]
        print(type(algorithm.architecture.backbone).__module__, losses[1] < losses[0])
    """)
    assert out.splitlines()[-1] == 'mmrazor.models.architectures.backbones.xxxnet True'


# -- MMRazor itself ------------------------------------------------------------------------------


def test_an_installed_mmrazor_keeps_its_scope_and_its_modules(workspace: Workspace) -> None:
    workspace.put('mmrazor-1.0.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: mmrazor\nVersion: 1.0.0\n')
    workspace.put('mmrazor/__init__.py', "__version__ = '1.0.0'\n")
    workspace.put(
        'mmrazor/registry.py',
        """
        from mmengine.registry import MODELS as ROOT
        from mmengine.registry import Registry

        MODELS = Registry('model', parent=ROOT, scope='mmrazor', locations=['mmrazor.models'])
        """,
    )
    workspace.put(
        'mmrazor/models.py',
        """
        from mmrazor.registry import MODELS

        @MODELS.register_module()
        class SPOS:
            pass
        """,
    )
    out = workspace.run("""
        import strop.compat
        from strop.registry import MODELS
        import strop.algorithms
        import mmrazor.registry
        print(MODELS.get('mmrazor.SPOS').__module__, MODELS.get('SPOS') is strop.algorithms.SPOS)
        print(mmrazor.registry.MODELS is MODELS, mmrazor.__version__)
    """)
    assert out.splitlines() == ['mmrazor.models True', 'False 1.0.0']


# -- what names old modules without an import line -----------------------------------------------


@pytest.mark.parametrize(
    ('module', 'name', 'target'),
    [
        ('mmrazor.models.algorithms.nas.spos', 'SPOS', 'strop.algorithms'),
        ('mmrazor.models.losses.kl_divergence', 'KLDivergence', 'strop.distill'),
        ('mmrazor.engine.hooks.dump_subnet_hook', 'DumpSubnetHook', 'strop.engine'),
        ('nni.nas.pytorch.mutables', 'LayerChoice', 'strop.mutables'),
    ],
)
def test_a_pickle_that_names_an_old_class_gets_strops(module: str, name: str, target: str) -> None:
    found = pickle.loads(f'c{module}\n{name}\n.'.encode())
    assert found is getattr(importlib.import_module(target), name)
    # What is pickled from now on names Strop's own module, and needs no old names.
    assert pickle.dumps(found).find(module.encode()) == -1


def test_old_modules_are_attributes_of_their_packages() -> None:
    import mmrazor
    import nni.nas.pytorch

    assert mmrazor.models.algorithms.nas.spos.SPOS is mmrazor.models.SPOS
    assert mmrazor.utils.setup_env.register_all_modules is mmrazor.utils.register_all_modules
    assert nni.nas.pytorch.fixed.apply_fixed_architecture.__name__ == 'apply_fixed_architecture'
    assert (mmrazor.__version__, mmrazor.version.version_info) == ('1.0.0', (1, 0, 0))
    assert not hasattr(nni, '__version__')


# -- on the command line ------------------------------------------------------------------------


def test_a_config_that_names_no_old_package_finds_the_users_classes(workspace: Workspace) -> None:
    workspace.put('mmrazor/models/algorithms/spos.py', SPOS)
    workspace.put('mmrazor/models/algorithms/__init__.py', 'from .spos import SPOS\n')
    workspace.put('mmrazor/models/mutators/one_shot_mutator.py', ONE_SHOT_MUTATOR)
    workspace.put('mmrazor/models/mutators/__init__.py', 'from .one_shot_mutator import OneShotMutator\n')
    workspace.put(
        'config.py',
        """
        mutator = dict(type='OneShotMutator')
        algorithm = dict(type='SPOS', mutator=mutator, architecture=dict())
        """,
    )
    # Wherever the folder lies: MMEngine puts the path of a config into its text.
    out = workspace.run("""
        from strop.cli import configs
        configs._OTHER_PACKAGES = __import__('re').compile('(?!)')
        config = configs.load_config('config.py')
        from strop.registry import MODELS, MUTATORS
        print(MODELS.get(config.model.type).__module__, MUTATORS.get(config.mutator.type).__module__)
    """)
    assert out.split()[-2:] == ['mmrazor.models.algorithms.spos', 'mmrazor.models.mutators.one_shot_mutator']


def test_custom_imports_may_have_old_import_lines_that_the_config_does_not_tell_of(workspace: Workspace) -> None:
    workspace.put(
        'my_net.py',
        """
        from mmrazor.registry import MODELS
        from torch import nn


        @MODELS.register_module()
        class MyNet(nn.Identity):
            pass
        """,
    )
    workspace.put(
        'config.py',
        """
        custom_imports = dict(imports=['my_net'], allow_failed_imports=False)
        model = dict(type='MyNet')
        """,
    )
    out = workspace.run("""
        from strop.cli.configs import load_config
        from strop.registry import MODELS
        print(MODELS.get(load_config('config.py').model.type).__module__)
    """)
    assert out.split()[-1] == 'my_net'


def test_what_old_import_lines_define_can_be_sent_to_another_process(workspace: Workspace) -> None:
    workspace.put(
        'mmrazor/models/backbones/mine.py',
        """
        from mmcls.models.backbones.base_backbone import BaseBackbone


        class Mine(BaseBackbone):
            def forward(self, x):
                return x
        """,
    )
    workspace.run("""
        import pickle
        import strop.compat
        from mmrazor.models.backbones.mine import Mine
        from strop.search.parcel import pack

        parcel = pack(Mine())
        with open('parcel', 'wb') as file:
            pickle.dump((parcel.content, parcel.block.numpy()), file)
    """)
    out = workspace.run("""
        import pickle
        from strop.search.parcel import Parcel

        with open('parcel', 'rb') as file:
            print(type(Parcel.on(*pickle.load(file)).open()).__module__)
    """)
    assert out.split()[-1] == 'mmrazor.models.backbones.mine'
