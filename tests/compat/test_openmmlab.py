"""mmcls and mmcv, absent (our fronts) and present (stand-ins of the real packages in a folder)."""

from __future__ import annotations

import importlib.util

import pytest

from strop.compat import OldImportError

from .conftest import Workspace

BACKBONE = """
    import torch
    from mmcls.models.backbones.base_backbone import BaseBackbone
    from mmcv.cnn import ConvModule, constant_init, kaiming_init, normal_init
    from mmcv.runner import BaseModule, ModuleList, Sequential
"""


def test_the_old_layers_are_mmengines_and_strops() -> None:
    import mmengine.model
    from mmcls.models.backbones import BaseBackbone
    from mmcls.models.backbones.base_backbone import BaseBackbone as Same
    from mmcls.models.builder import BACKBONES
    from mmcls.models.classifiers import ImageClassifier
    from mmcv.cnn import ConvModule, constant_init, kaiming_init, normal_init
    from mmcv.cnn.bricks import ConvModule as InBricks
    from mmcv.runner import BaseModule, ModuleList, Sequential

    import strop.architectures
    from strop.registry import MODELS

    assert ConvModule is InBricks is strop.architectures.ConvModule
    assert constant_init is mmengine.model.constant_init
    assert kaiming_init is mmengine.model.kaiming_init
    assert normal_init is mmengine.model.normal_init
    assert (BaseModule, ModuleList, Sequential) == (
        mmengine.model.BaseModule,
        mmengine.model.ModuleList,
        mmengine.model.Sequential,
    )
    assert BaseBackbone is Same
    assert issubclass(BaseBackbone, BaseModule)
    assert ImageClassifier is strop.architectures.ImageClassifier
    assert BACKBONES is MODELS


def test_a_missing_mmcv_is_not_taken_for_a_full_one() -> None:
    from mmengine.utils import is_installed
    from mmengine.utils.dl_utils import mmcv_full_available

    assert mmcv_full_available() is False
    assert [is_installed(name) for name in ('mmcv', 'mmcls', 'mmrazor', 'nni')] == [False] * 4
    assert importlib.util.find_spec('mmcv.ops') is None
    with pytest.raises(OldImportError, match="'ops' of mmcv is not supported yet"):
        exec('from mmcv.ops import nms')


def test_mmcls_goes_to_mmpretrain_where_that_is_installed(workspace: Workspace) -> None:
    workspace.put('mmpretrain/__init__.py', "__version__ = '1.2.0'\n")
    workspace.put('mmpretrain/models/__init__.py', 'from .backbones import *\n')
    workspace.put('mmpretrain/models/backbones/__init__.py', 'from .base_backbone import BaseBackbone\n')
    workspace.put('mmpretrain/models/backbones/base_backbone.py', 'class BaseBackbone:\n    pass\n')
    out = workspace.run("""
        import strop.compat
        from mmcls.models.backbones.base_backbone import BaseBackbone
        from mmcls.models import BaseBackbone as Same
        import mmpretrain.models.backbones.base_backbone as real
        print(BaseBackbone is Same is real.BaseBackbone, real.__name__)
    """)
    assert out.split() == ['True', 'mmpretrain.models.backbones.base_backbone']


def test_the_old_scope_reaches_strops_classes(workspace: Workspace) -> None:
    out = workspace.run("""
        import strop.compat
        from mmengine.registry import DefaultScope
        from strop.registry import HOOKS, MODELS
        import strop.architectures, strop.engine
        print(MODELS.get('mmcls.LinearClsHead') is strop.architectures.LinearClsHead)
        print(HOOKS.get('mmcls.DumpSubnetHook') is strop.engine.DumpSubnetHook)
        head = dict(type='LinearClsHead', num_classes=2, in_channels=3)
        for scope in ('mmcls', 'mmrazor'):
            with DefaultScope.overwrite_default_scope(scope):
                print(type(MODELS.build(head)) is strop.architectures.LinearClsHead)
    """)
    assert out.splitlines() == ['True'] * 4  # and not a warning about an unknown scope


def test_the_old_scope_reaches_mmpretrain_where_that_is_installed(workspace: Workspace) -> None:
    workspace.put('mmpretrain/__init__.py', "__version__ = '1.2.0'\n")
    workspace.put(
        'mmpretrain/registry.py',
        """
        from mmengine.registry import MODELS as ROOT
        from mmengine.registry import Registry

        MODELS = Registry('model', parent=ROOT, scope='mmpretrain', locations=['mmpretrain.models'])
        """,
    )
    workspace.put(
        'mmpretrain/models.py',
        """
        from mmpretrain.registry import MODELS

        @MODELS.register_module()
        class LinearClsHead:
            pass
        """,
    )
    out = workspace.run("""
        import strop.compat
        from strop.registry import MODELS
        print(MODELS.get('mmcls.LinearClsHead').__module__, MODELS.get('mmpretrain.LinearClsHead').__module__)
        print(MODELS.get('LinearClsHead').__module__)
    """)
    assert out.splitlines() == ['mmpretrain.models mmpretrain.models', 'strop.architectures.heads']


def test_a_real_mmcls_is_left_alone(workspace: Workspace) -> None:
    workspace.put('mmcls/__init__.py', 'from .version import __version__\n')
    workspace.put('mmcls/version.py', "__version__ = '0.25.0'\n")
    workspace.put('mmcls/models/backbones/base_backbone.py', "BaseBackbone = 'its own'\n")
    out = workspace.run("""
        import strop.compat
        from mmcls.models.backbones.base_backbone import BaseBackbone
        print(BaseBackbone)
    """)
    assert out.strip() == 'its own'


def test_an_installed_mmcv_2_gets_back_what_moved_to_mmengine(workspace: Workspace) -> None:
    workspace.put('mmcv/__init__.py', 'from .version import *\n')
    workspace.put('mmcv/version.py', "__version__ = '2.1.0'\n")
    workspace.put('mmcv/cnn/__init__.py', "ConvModule = 'its own'\n")
    out = workspace.run(
        """
    import strop.compat
"""
        + BACKBONE
        + """
    import mmengine.model
    print(ConvModule, constant_init is mmengine.model.constant_init, ModuleList is mmengine.model.ModuleList)
    print(BaseBackbone.__module__)
    """
    )
    assert out.splitlines() == ['its own True True', 'strop.compat.fronts']


def test_a_real_mmcv_is_unchanged_until_compat_is_activated(workspace: Workspace) -> None:
    workspace.put('mmcv/__init__.py', "__version__ = '2.1.0'\n")
    workspace.put('mmcv/cnn/__init__.py', '')
    err = workspace.run('import strop\nfrom mmcv.runner import ModuleList\n', fails=True)
    assert "No module named 'mmcv.runner'" in err
