"""Every registered name of MMRazor 1.x is built with its documented arguments, or answered with what comes nearest."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine.tiny import loader, preprocessor, supernet, train_config
from mmengine.registry import DefaultScope
from torch import nn

from strop import registry
from strop.cli.main import COMMANDS
from strop.compat import MMRAZOR, NNI, OldImportError
from strop.engine import build_runner
from strop.errors import UnknownTypeError
from strop.registry import MODELS, TASK_UTILS
from strop.unsupported import NEAREST

LIST = Path(__file__).with_name('mmrazor_names.json')
SHARED_LIST = Path(__file__).parents[3] / 'shared' / 'design' / 'MMRAZOR_NAMES.md'
NAMES: dict[str, dict[str, dict[str, str]]] = json.loads(LIST.read_text(encoding='utf-8'))
BUILT = [(kind, name) for kind, names in NAMES.items() for name in names if name not in NEAREST]
LATER = [(kind, name) for kind, names in NAMES.items() for name in names if name in NEAREST]

IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
CHOICE = dict(a=dict(type='torch.nn.Identity'), b=dict(type='torch.nn.ReLU'))
EDGES = dict(a=nn.Identity(), b=nn.ReLU(), c=nn.Tanh())
PLAIN = dict(
    type='ImageClassifier',
    backbone=dict(type='ConvModule', in_channels=1, out_channels=8, kernel_size=3, norm_cfg=dict(type='BN')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=8, topk=(1,)),
)
SHAPE = (1, 1, 8, 8)
PARSE = dict(type='ChannelAnalyzer', demo_input=SHAPE, tracer_type='BackwardTracer')
RECORDERS = dict(fc=dict(type='ModuleOutputs', source='head.fc'))
MAPPINGS = dict(loss_kd=dict(preds_S=dict(from_student=True, recorder='fc'), preds_T=dict(from_student=False, recorder='fc')))
DISTILLER = dict(
    type='ConfigurableDistiller',
    student_recorders=RECORDERS,
    teacher_recorders=RECORDERS,
    distill_losses=dict(loss_kd=dict(type='KLDivergence', tau=4)),
    loss_forward_mappings=MAPPINGS,
)
MARGINS = dict(
    type='OFDDistiller',
    student_recorders=dict(bn=dict(type='ModuleOutputs', source='backbone.bn')),
    teacher_recorders=dict(bn=dict(type='ModuleOutputs', source='backbone.bn')),
    distill_losses=dict(loss=dict(type='OFDLoss')),
    connectors=dict(teacher=dict(type='OFDTeacherConnector')),
    loss_forward_mappings=dict(
        loss=dict(
            s_feature=dict(from_student=True, recorder='bn'),
            t_feature=dict(from_student=False, recorder='bn', connector='teacher'),
        )
    ),
)
INPLACE = dict(DISTILLER, distill_losses=dict(loss_kd=dict(type='KLDivergence', tau=1)))
GENERATOR = dict(type='DAFLGenerator', img_size=8, latent_dim=4, hidden_channels=4)
DATA_FREE = dict(
    architecture=PLAIN,
    teachers=dict(res=dict(build_cfg=PLAIN)),
    generator=GENERATOR,
    distiller=dict(
        type='ConfigurableDistiller',
        student_recorders=RECORDERS,
        teacher_recorders=dict(res=dict(type='ModuleOutputs', source='res.head.fc')),
        distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=6)),
        loss_forward_mappings=dict(
            loss_kl=dict(preds_S=dict(from_student=True, recorder='fc'), preds_T=dict(from_student=False, recorder='res'))
        ),
    ),
    generator_distiller=dict(
        type='ConfigurableDistiller',
        teacher_recorders=dict(res=dict(type='ModuleOutputs', source='res.head.fc')),
        distill_losses=dict(loss_ie=dict(type='InformationEntropyLoss', loss_weight=5)),
        loss_forward_mappings=dict(loss_ie=dict(preds_T=dict(from_student=False, recorder='res'))),
    ),
)
QCONFIG = dict(
    w_observer=dict(type='mmrazor.PerChannelMinMaxObserver'),
    a_observer=dict(type='mmrazor.MovingAverageMinMaxObserver'),
    w_fake_quant=dict(type='mmrazor.FakeQuantize'),
    a_fake_quant=dict(type='mmrazor.FakeQuantize'),
    w_qscheme=dict(qdtype='qint8', bit=8, is_symmetry=True, is_symmetric_range=True),
    a_qscheme=dict(qdtype='quint8', bit=8, is_symmetry=True, averaging_constant=0.1),
)
VALIDATION = dict(dataloader=loader('val'), evaluator=dict(type='Accuracy', topk=(1,)))
CELL = dict(in_channels=4, out_channels=4, stride=1)
DARTS_OP = dict(type='DiffMutableOP', candidates=dict(skip=dict(type='DartsSkipConnect'), zero=dict(type='DartsZero')))
DARTS_ROUTE = dict(type='DiffChoiceRoute', with_arch_param=True)

# The arguments without which a name cannot be built; all others are given as MMRazor documents their defaults.
NEEDED: dict[str, dict[str, Any]] = {
    'CRDDataset': dict(dataset=dict(type='ImageDataset', source='digits', split='train', limit=20), neg_num=2, percent=0.5),
    'RazorVisualizationHook': dict(recorders=RECORDERS, mappings=dict(fc=dict(recorder='fc'))),
    'StopDistillHook': dict(stop_epoch=2),
    'EstimateResourcesHook': dict(estimator_cfg=dict(type='ResourceEstimator', input_shape=SHAPE)),
    'SeparateOptimWrapperConstructor': dict(
        optim_wrapper_cfg=dict(architecture=dict(optimizer=dict(type='SGD', lr=0.1))), paramwise_cfg=None
    ),
    'BaseAlgorithm': dict(architecture=PLAIN),
    'DAFLDataFreeDistillation': DATA_FREE,
    'DataFreeDistillation': DATA_FREE,
    'FpnTeacherDistill': dict(architecture=PLAIN, teacher=PLAIN, distiller=DISTILLER),
    'OverhaulFeatureDistillation': dict(architecture=PLAIN, teacher=PLAIN, distiller=MARGINS),
    'SingleTeacherDistill': dict(architecture=PLAIN, teacher=PLAIN, distiller=DISTILLER),
    'SelfDistill': dict(
        architecture=PLAIN,
        distiller=dict(
            type='ConfigurableDistiller',
            student_recorders=RECORDERS,
            distill_losses=dict(loss_kd=dict(type='KLDivergence')),
            loss_forward_mappings=dict(
                loss_kd=dict(preds_S=dict(from_student=True, recorder='fc'), preds_T=dict(from_student=True, recorder='fc'))
            ),
        ),
    ),
    'AutoSlim': dict(architecture=PLAIN, mutator=dict(type='OneShotChannelMutator', parse_cfg=PARSE), distiller=INPLACE),
    'Darts': dict(
        architecture=dict(
            type='ImageClassifier',
            backbone=dict(
                type='DartsBackbone',
                in_channels=1,
                base_channels=4,
                num_layers=3,
                num_nodes=2,
                out_indices=(2,),
                mutable_cfg=DARTS_OP,
                route_cfg=DARTS_ROUTE,
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=32, topk=(1,)),
        ),
        mutator=dict(type='NasMutator'),
    ),
    'SPOS': dict(architecture=supernet, mutator=dict(type='NasMutator'), data_preprocessor=preprocessor),
    'ItePruneAlgorithm': dict(
        architecture=PLAIN,
        mutator_cfg=dict(
            type='ChannelMutator', channel_unit_cfg=dict(type='L1MutableChannelUnit', default_args={}), parse_cfg=PARSE
        ),
        target_pruning_ratio=0.5,
    ),
    'SlimmableNetwork': dict(
        architecture=PLAIN,
        mutator=dict(
            type='SlimmableChannelMutator',
            channel_unit_cfg=dict(
                type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio')
            ),
            parse_cfg=PARSE,
        ),
    ),
    'MMArchitectureQuant': dict(
        architecture=PLAIN, quantizer=dict(type='OpenVINOQuantizer', global_qconfig=QCONFIG), input_shapes=SHAPE
    ),
    'DartsBackbone': dict(in_channels=1, base_channels=4, mutable_cfg=DARTS_OP, route_cfg=DARTS_ROUTE),
    'SearchableMobileNetV2': dict(
        arch_setting=[
            [8, 1, 1, dict(type='OneShotMutableOP', candidates=dict(a=dict(type='MBBlock', kernel_size=3, expand_ratio=1)))]
            for _ in range(7)
        ]
    ),
    'SearchableShuffleNetV2': dict(arch_setting=[*supernet['backbone']['arch_setting'], *supernet['backbone']['arch_setting']]),
    'WideResNet': dict(depth=10),
    'SearchableImageClassifier': dict(backbone=PLAIN['backbone']),
    'BYOTConnector': dict(in_channel=8, out_channel=8, num_classes=10),
    'ConvModuleConnector': dict(in_channel=8, out_channel=8),
    'FBKDStudentConnector': dict(in_channels=8),
    'FBKDTeacherConnector': dict(in_channels=8),
    'MGDConnector': dict(student_channels=8, teacher_channels=8),
    'NormConnector': dict(in_channels=8, norm_cfg=dict(type='BN')),
    'Paraphraser': dict(in_channel=8, out_channel=4),
    'Translator': dict(in_channel=8, out_channel=4),
    'TorchFunctionalConnector': dict(function_name='avg_pool2d', func_args=dict(kernel_size=4)),
    'TorchNNConnector': dict(module_name='AvgPool2d', module_args=dict(kernel_size=4)),
    'DynamicBatchNorm1d': dict(num_features=4),
    'DynamicBatchNorm2d': dict(num_features=4),
    'DynamicBatchNorm3d': dict(num_features=4),
    'DynamicConv2d': dict(in_channels=4, out_channels=4, kernel_size=3),
    'DynamicLayerNorm': dict(normalized_shape=4),
    'DAFLGenerator': dict(img_size=8, latent_dim=4, hidden_channels=4),
    'ZSKTGenerator': dict(img_size=8, latent_dim=4, hidden_channels=4),
    'DartsSubnetClsHead': dict(
        aux_in_channels=8, aux_loss=dict(type='CrossEntropyLoss', loss_weight=0.4), num_classes=10, in_channels=8
    ),
    'ConvBnAct': dict(in_channels=4, out_channels=4, kernel_size=3),
    'DepthwiseSeparableConv': dict(in_channels=4, out_channels=4),
    'DartsDilConv': dict(CELL, kernel_size=3),
    'DartsPoolBN': dict(CELL, pool_type='max'),
    'DartsSepConv': dict(CELL, kernel_size=3),
    'DartsSkipConnect': CELL,
    'DartsZero': CELL,
    'Identity': CELL,
    'MBBlock': dict(CELL, kernel_size=3, expand_ratio=3),
    'ShuffleBlock': dict(CELL, kernel_size=3),
    'ShuffleXception': CELL,
    'BYOTDistiller': DISTILLER,
    'ConfigurableDistiller': DISTILLER,
    'OFDDistiller': DISTILLER,
    'LearnableFakeQuantize': dict(observer=dict(type='mmrazor.LSQObserver')),
    'SquentialMutableChannel': dict(num_channels=8),
    'L1MutableChannelUnit': dict(num_channels=8),
    'OneShotMutableChannelUnit': dict(num_channels=8),
    'SequentialMutableChannelUnit': dict(num_channels=8),
    'SlimmableChannelUnit': dict(num_channels=8, candidate_choices=[4, 8]),
    'DiffChoiceRoute': dict(edges=EDGES),
    'GumbelChoiceRoute': dict(edges=EDGES),
    'DiffMutableOP': dict(candidates=CHOICE),
    'OneHotMutableOP': dict(candidates=CHOICE),
    'OneShotMutableOP': dict(candidates=CHOICE),
    'OneShotProbMutableOP': dict(candidates=CHOICE),
    'MutableValue': dict(value_list=[1, 2]),
    'OneShotMutableValue': dict(value_list=[1, 2]),
    'AcademicQuantizer': dict(qconfig_mapping=dict(_global_=QCONFIG)),
    'OpenVINOQuantizer': dict(global_qconfig=QCONFIG),
    'TensorRTQuantizer': dict(global_qconfig=dict(QCONFIG, a_qscheme=dict(qdtype='qint8', bit=8, is_symmetry=True))),
    'TorchNativeQuantizer': dict(global_qconfig=QCONFIG),
    'FunctionOutputsDelivery': dict(func_path='math.floor', max_keep_data=2),
    'MethodOutputsDelivery': dict(method_path='torch.nn.Linear.forward', max_keep_data=2),
    'FunctionInputsRecorder': dict(source='torch.nn.functional.relu'),
    'FunctionOutputsRecorder': dict(source='torch.nn.functional.relu'),
    'MethodInputsRecorder': dict(source='torch.nn.Linear.forward'),
    'MethodOutputsRecorder': dict(source='torch.nn.Linear.forward'),
    'ModuleInputsRecorder': dict(source='head.fc'),
    'ModuleOutputsRecorder': dict(source='head.fc'),
    'ParameterRecorder': dict(source='head.fc.weight'),
    'AutoSlimGreedySearchLoop': dict(VALIDATION, target_flops=(0.05,)),
    'DartsEpochBasedTrainLoop': dict(dataloader=loader('train'), mutator_dataloader=loader('train'), max_epochs=1),
    'DartsIterBasedTrainLoop': dict(dataloader=loader('train'), mutator_dataloader=loader('train'), max_iters=1),
    'EvolutionSearchLoop': VALIDATION,
    'ItePruneValLoop': VALIDATION,
    'LSQEpochBasedLoop': dict(dataloader=loader('train'), max_epochs=1),
    'PTQLoop': dict(VALIDATION, calibrate_dataloader=loader('train')),
    'QATEpochBasedLoop': dict(dataloader=loader('train'), max_epochs=1),
    'QATValLoop': VALIDATION,
    'SelfDistillValLoop': VALIDATION,
    'SingleTeacherDistillValLoop': VALIDATION,
    'SlimmableValLoop': VALIDATION,
    'SubnetValLoop': VALIDATION,
    'sub_model': dict(cfg=PLAIN, fix_subnet={}),
}


def documented(kind: str, name: str) -> dict[str, Any]:
    """Return the documented arguments that have a default, as far as that is a literal."""
    found = {}
    text = NAMES[kind][name]['arguments']
    signature = ast.parse(f'def f({text}): pass').body[0].args  # type: ignore[attr-defined]
    for argument, default in zip(signature.args[-len(signature.defaults) :] if signature.defaults else [], signature.defaults):
        try:
            found[argument.arg] = eval(compile(ast.Expression(default), name, 'eval'), {'dict': dict, 'tuple': tuple})
        except NameError:
            continue  # a class or an object of MMRazor's own
    return found


@pytest.fixture(scope='module')
def runners(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Runners with a model that has what a loop looks at, made when they are first asked for."""
    made: dict[str, Any] = {}

    def runner(loop: str) -> Any:
        wanted = next((kind for kind in ('Darts', 'Slim', 'Quant') if kind in loop), '')
        wanted = 'Quant' if loop.startswith(('QAT', 'LSQ', 'PTQ')) else wanted
        if wanted not in made:
            name = {'Darts': 'Darts', 'Slim': 'AutoSlim', 'Quant': 'MMArchitectureQuant', '': 'SPOS'}[wanted]
            config = train_config(model=dict(NEEDED[name], type=name))
            made[wanted] = build_runner(config, work_dir=tmp_path_factory.mktemp('runner'))
        return made[wanted]

    return runner


@pytest.fixture(scope='module')
def process_group() -> Iterator[None]:
    """A group of this process alone, as wrappers for several need one."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


ABSTRACT = ['BaseEstimator']


@pytest.mark.parametrize(('kind', 'name'), [item for item in BUILT if item[1] not in ABSTRACT], ids=lambda part: part)
def test_a_name_is_built_with_its_documented_arguments_in_both_old_scopes(
    kind: str, name: str, runners: Callable[[str], Any], request: pytest.FixtureRequest
) -> None:
    arguments = {**documented(kind, name), **NEEDED.get(name, {})}
    given: dict[str, Any] = {}  # what is no part of a config
    if kind == 'LOOPS':
        given['runner'] = runners(name)
    if kind == 'MODEL_WRAPPERS':
        request.getfixturevalue('process_group')
        given['module'] = MODELS.build(dict(NEEDED['SPOS'], type='SPOS'))
    known = getattr(registry, kind)
    built = []
    for scope, spelled in (('mmrazor', name), ('mmcls', f'mmrazor.{name}'), ('mmcls', name)):
        with DefaultScope.overwrite_default_scope(scope):
            built.append(known.build({**copy.deepcopy(arguments), 'type': spelled}, default_args=given))
            assert known.get(name) is known.get(f'mmrazor.{name}') is known.get(f'strop.{name}')
    if isinstance(known.get(name), type):
        assert [type(made) for made in built] == [known.get(name)] * 3


def test_no_name_is_both_built_and_missing_and_none_is_neither() -> None:
    listed = {name for names in NAMES.values() for name in names}
    assert len(listed) > 190
    assert set(NEAREST) <= listed
    for kind, names in NAMES.items():
        known = getattr(registry, kind)
        known.import_from_location()
        assert {name for name in names if name in known.module_dict} == set(names) - set(NEAREST)
    assert not [name for name in ABSTRACT if name not in TASK_UTILS.module_dict]


@pytest.mark.parametrize(('kind', 'name'), LATER, ids=lambda part: part)
def test_a_name_that_is_missing_is_answered_with_what_comes_nearest(kind: str, name: str) -> None:
    known = getattr(registry, kind)
    words = re.escape(f'{name!r} of MMRazor is not supported yet by Strop. Nearest: {NEAREST[name]}.')
    for spelled in (name, f'mmrazor.{name}', f'strop.{name}'):
        with pytest.raises(UnknownTypeError, match=words):
            known.build(dict(type=spelled))
    with DefaultScope.overwrite_default_scope('mmcls'), pytest.raises(UnknownTypeError, match=words):
        known.build(dict(type=name))


@pytest.mark.parametrize(('kind', 'name'), BUILT + LATER, ids=lambda part: part)
def test_a_name_is_imported_from_where_it_was_or_answered(kind: str, name: str) -> None:
    room = 'mmrazor.' + NAMES[kind][name]['room']
    if name in NEAREST:
        with pytest.raises(OldImportError, match=f'{name!r} of mmrazor is not supported yet by Strop'):
            exec(f'from {room} import {name}')
        return
    found = getattr(importlib.import_module(room), name)
    assert found is getattr(registry, kind).get(name)


def sentences() -> list[str]:
    return [*MMRAZOR.nearest.values(), *NNI.nearest.values()]


@pytest.mark.parametrize('sentence', sorted(set(sentences())))
def test_what_comes_nearest_is_there(sentence: str) -> None:
    registries = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    for name in re.findall(r"type='([\w.]+)'", sentence):
        is_class = '.' in name and name.split('.')[0] not in ('strop', 'mmrazor')
        assert is_class or any(name in known for known in registries), name
    for name in re.findall(r'\bstrop(?:\.\w+)+', sentence.replace("'", ' ')):
        module, _, attribute = name.rpartition('.')
        if not any(name in known for known in registries):
            assert hasattr(importlib.import_module(module), attribute), name
    for command in re.findall(r'`strop ([a-z-]+)', sentence):
        assert command in COMMANDS


@pytest.mark.shared
def test_the_list_is_that_of_the_specification() -> None:
    if not SHARED_LIST.is_file():
        pytest.skip(f'there is no {SHARED_LIST}')
    found: dict[str, dict[str, dict[str, str]]] = {}
    for line in SHARED_LIST.read_text(encoding='utf-8').splitlines():
        head = re.match(r'## (\S+) · (\w+)', line)
        entry = re.match(r'- \*\*(\w+)\*\*\((.*)\) · ', line)
        if head:
            room, kind = head.group(1).replace('/', '.'), head.group(2)
        elif entry:
            arguments = '**kwargs' if entry.group(2).startswith('(as its base') else entry.group(2)
            found.setdefault(kind, {})[entry.group(1)] = {'room': room, 'arguments': arguments}
    assert found == NAMES
