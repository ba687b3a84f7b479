"""Each connector with the loss that it was made for, through a distiller, on two networks whose shapes do not meet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.architectures import WideResNet
from strop.data import CRDDataset, ImageDataset, collate
from strop.distill import BaseConnector, ConfigurableDistiller, OFDDistiller, negative_mean
from strop.errors import ConfigError
from strop.randomness import seed_everything
from strop.registry import MODELS


class Net(nn.Module):
    """Three levels, a pooled feature and a classifier; the first level ends in a batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.two = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.ReLU())
        self.levels = Levels()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x)
        two = self.two(one.relu())
        three = self.three(two)
        self.levels(one, two, three)
        return self.fc(self.flat(self.pool(three)))


class Levels(nn.Module):
    """Stands for a backbone that returns its levels."""

    def forward(self, *features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return features


def record(from_student: bool, recorder: str, **more: object) -> dict:
    return dict(from_student=from_student, recorder=recorder, **more)


def outputs(*sources: str, **named: str) -> dict:
    """Return recorders of modules' outputs."""
    return {
        name: dict(type='ModuleOutputs', source=source) for name, source in {**dict(zip(sources, sources)), **named}.items()
    }


def pair(names: tuple[str, str], source: str, student: dict | None, teacher: dict | None) -> dict:
    """Return the connectors of a pair and what the loss gets through them."""
    connectors = {name: config for name, config in (('of_student', student), ('of_teacher', teacher)) if config}
    through = {True: dict(connector='of_student') if student else {}, False: dict(connector='of_teacher') if teacher else {}}
    mapping = {name: record(side, source, **through[side]) for name, side in zip(names, (True, False))}
    return dict(connectors=connectors, mapping=mapping)


S, T = 4, 8  # widths of student and teacher
FEATURE = ('s_feature', 't_feature')
PREDS = ('preds_S', 'preds_T')
STANDARD = dict(type='BN', affine=False, track_running_stats=False)
FBKD = dict(in_channels=16, reduction=4, sub_sample=True, maxpool_stride=2)


def conv(in_channel: int, out_channel: int, **more: object) -> dict:
    return dict(type='ConvModuleConnector', in_channel=in_channel, out_channel=out_channel, **more)


PAIRS = {
    'FitNet': (dict(type='L2Loss'), pair(FEATURE, 'two', conv(2 * S, 2 * T), None)),
    'L1': (dict(type='L1Loss'), pair(FEATURE, 'three', conv(4 * S, 4 * T, norm_cfg=dict(type='BN')), None)),
    'AB': (dict(type='ABLoss'), pair(FEATURE, 'two', conv(2 * S, 2 * T, norm_cfg=dict(type='BN'), act_cfg=None), None)),
    'CWD': (dict(type='ChannelWiseDivergence', tau=2.0), pair(PREDS, 'two', conv(2 * S, 2 * T, act_cfg=None), None)),
    'PKD': (
        dict(type='PKDLoss'),
        pair(
            PREDS,
            'two',
            conv(2 * S, 2 * T, norm_cfg=STANDARD),
            dict(type='NormConnector', in_channels=2 * T, norm_cfg=STANDARD),
        ),
    ),
    'factor transfer': (
        dict(type='FTLoss'),
        pair(
            FEATURE,
            'three',
            dict(type='Translator', in_channel=4 * S, out_channel=5),
            dict(type='Paraphraser', in_channel=4 * T, out_channel=5, phase='train'),
        ),
    ),
    'MGD': (
        dict(type='MGDLoss', alpha_mgd=1e-3),
        pair(PREDS, 'two', dict(type='MGDConnector', student_channels=2 * S, teacher_channels=2 * T), None),
    ),
    'OFD': (
        dict(type='OFDLoss'),
        pair(FEATURE, 'one', conv(S, T, norm_cfg=dict(type='BN'), act_cfg=None), dict(type='OFDTeacherConnector')),
    ),
    'FBKD': (
        dict(type='FBKDLoss'),
        pair(
            ('s_input', 't_input'),
            'same',
            dict(type='FBKDStudentConnector', **FBKD),
            dict(type='FBKDTeacherConnector', **FBKD),
        ),
    ),
    'Review KD': (
        dict(type='HCLLoss'),
        pair(PREDS, 'levels', dict(type='ABFConnector', in_channels=[S, 2 * S, 4 * S], out_channels=[T, 2 * T, 4 * T]), None),
    ),
    'interpolation': (
        dict(type='L2Loss'),
        pair(
            FEATURE,
            'sizes',
            dict(type='TorchFunctionalConnector', function_name='interpolate', func_args=dict(size=(4, 4))),
            dict(type='TorchNNConnector', module_name='Identity'),
        ),
    ),
}


def build(name: str, **options: object) -> tuple[ConfigurableDistiller, Net, Net]:
    loss, pair = PAIRS[name]
    seed_everything(0)
    of_student = outputs('one', 'two', 'three', 'levels', same='three', sizes='three')
    of_teacher = outputs('one', 'two', 'three', 'levels', same='two', sizes='two')
    distiller = ConfigurableDistiller(
        of_student,
        of_teacher,
        connectors=pair['connectors'],
        distill_losses=dict(loss_pair=loss),
        loss_forward_mappings=dict(loss_pair=pair['mapping']),
    )
    return distiller, Net(T), Net(S)


def forwards(name: str, distiller: ConfigurableDistiller, teacher: nn.Module, student: nn.Module, x: torch.Tensor) -> None:
    if name == 'OFD':
        distiller.connectors['of_teacher'].init_margin(teacher.one[1])
    with distiller.record(teacher.eval(), student):
        with torch.no_grad():
            # The student's third level has as many channels as the teacher's second, but half of its pixels.
            teacher(x[:, :, ::2, ::2] if name == 'FBKD' else x)
        student(x)


def test_every_connector_is_in_a_pair() -> None:
    paired = {config['type'] for _, made in PAIRS.values() for config in made['connectors'].values()}
    MODELS.import_from_location()
    registered = {
        cls.__name__
        for cls in MODELS.module_dict.values()
        if isinstance(cls, type) and issubclass(cls, BaseConnector) and cls.__module__.startswith('strop.')
    }
    # The last two are paired below, with what they need beside a feature.
    assert registered == paired | {'BaseConnector', 'CRDConnector', 'BYOTConnector'}


@pytest.mark.parametrize('name', PAIRS)
def test_a_pair_trains_student_and_connectors_and_not_the_teacher(name: str) -> None:
    distiller, teacher, student = build(name)
    forwards(name, distiller, teacher, student, torch.randn(6, 1, 8, 8))
    loss = distiller.loss()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert loss > 0
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    trained = {key: value for key, value in distiller.named_parameters() if value.requires_grad}
    # The block before `non_local_adaptation` starts as the identity: its weights get a gradient of zero, which is not none.
    assert all(value.grad is not None for value in trained.values())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize('name', PAIRS)
def test_a_pair_learns(name: str) -> None:
    distiller, teacher, student = build(name)
    trained = [*student.parameters(), *(parameter for parameter in distiller.parameters() if parameter.requires_grad)]
    optimizer = torch.optim.Adam(trained, 3e-3)
    x = torch.randn(16, 1, 8, 8)
    losses = []
    for step in range(25):
        seed_everything(step)
        forwards(name, distiller, teacher, student, x)
        loss = distiller.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


@pytest.mark.parametrize('name', PAIRS)
def test_a_pair_is_finite_in_half_precision(name: str) -> None:
    distiller, teacher, student = build(name)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        forwards(name, distiller, teacher, student, torch.randn(6, 1, 8, 8))
        loss = distiller.loss()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters() if parameter.grad is not None)


def test_pairs_without_their_connector_say_which_one_would_help() -> None:
    distiller = ConfigurableDistiller(
        outputs('two'),
        outputs('two'),
        distill_losses=dict(loss_pair=dict(type='L2Loss')),
        loss_forward_mappings=dict(loss_pair=dict(s_feature=record(True, 'two'), t_feature=record(False, 'two'))),
    )
    forwards('none', distiller, Net(T), Net(S), torch.randn(2, 1, 8, 8))
    with pytest.raises(ConfigError, match='ConvModuleConnector'):
        distiller.loss()


def test_a_wrong_connector_names_the_loss_and_the_record() -> None:
    PAIRS['wrong'] = (dict(type='L2Loss'), pair(FEATURE, 'two', conv(3, 2 * T), None))
    distiller, teacher, student = build('wrong')
    del PAIRS['wrong']
    forwards('wrong', distiller, teacher, student, torch.randn(2, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"'loss_pair', argument 's_feature'.*'two'.*in_channel=8 would fit"):
        distiller.loss()


def test_a_paraphraser_is_pretrained_against_the_feature_itself() -> None:
    distiller = ConfigurableDistiller(
        {},
        outputs('three'),
        connectors=dict(of_teacher=dict(type='Paraphraser', in_channel=4 * T, out_channel=2 * T, phase='pretrain')),
        distill_losses=dict(loss_pair=dict(type='L2Loss')),
        loss_forward_mappings=dict(
            loss_pair=dict(s_feature=record(False, 'three', connector='of_teacher'), t_feature=record(False, 'three'))
        ),
    )
    forwards('none', distiller, Net(T), Net(S), torch.randn(2, 1, 8, 8))
    distiller.loss().backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters())


def test_overhauled_features_of_wide_residual_networks_get_their_margins_from_the_norms() -> None:
    seed_everything(0)
    teacher, student = WideResNet(10, 2, in_channels=1).eval(), WideResNet(10, 1, in_channels=1)
    norms = {'first': ('layer2.0.bn1', 16, 0.25), 'second': ('layer3.0.bn1', 32, 0.5), 'last': ('bn1', 64, 1.0)}
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    connectors = {
        f'of_student_{name}': conv(width, 2 * width, norm_cfg=dict(type='BN'), act_cfg=None)
        for name, (_, width, _) in norms.items()
    }
    connectors |= {f'of_teacher_{name}': dict(type='OFDTeacherConnector') for name in norms}
    sources = outputs(**{name: source for name, (source, _, _) in norms.items()})
    distiller = OFDDistiller(
        sources,
        sources,
        connectors=connectors,
        distill_losses={f'loss_{name}': dict(type='OFDLoss', loss_weight=weight) for name, (_, _, weight) in norms.items()},
        loss_forward_mappings={
            f'loss_{name}': dict(
                s_feature=record(True, name, connector=f'of_student_{name}'),
                t_feature=record(False, name, connector=f'of_teacher_{name}'),
            )
            for name in norms
        },
    )
    x = torch.randn(4, 1, 12, 12)
    with distiller.record(teacher, student):
        with torch.no_grad():
            teacher(x)
        student(x)
    for name, (source, _, _) in norms.items():
        norm = teacher.get_submodule(source)
        expected = negative_mean(norm.bias, norm.weight).float()
        assert torch.equal(distiller.connectors[f'of_teacher_{name}'].margin.flatten(), expected)
        # What was recorded is the norm's output before the ReLU: half of it is negative.
        recorded = distiller.get_record(name, from_student=False)
        assert (recorded < 0).float().mean() > 0.2
    losses = distiller.compute_distill_losses()
    assert set(losses) == {f'loss_{name}' for name in norms}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in student.layer1.parameters())


def test_contrast_takes_its_indices_from_the_samples_of_the_data_set() -> None:
    seed_everything(0)
    dataset = CRDDataset(ImageDataset('digits', 'train', form='samples', limit=60), neg_num=20, percent=1.0)
    batch = collate([dataset[index] for index in range(12)])

    class WithSamples(Net):
        def forward(self, x: torch.Tensor, samples: object = None) -> torch.Tensor:
            return super().forward(x)

    recorders = outputs('pool')
    distiller = ConfigurableDistiller(
        dict(recorders, samples=dict(type='ModuleInputs', source='')),
        recorders,
        connectors=dict(
            of_student=dict(type='CRDConnector', dim_in=4 * S, dim_out=16),
            of_teacher=dict(type='CRDConnector', dim_in=4 * T, dim_out=16),
        ),
        distill_losses=dict(loss_crd=dict(type='CRDLoss', neg_num=20, sample_n=60, dim_out=16)),
        loss_forward_mappings=dict(
            loss_crd=dict(
                s_feats=record(True, 'pool', connector='of_student'),
                t_feats=record(False, 'pool', connector='of_teacher'),
                data_samples=record(True, 'samples', data_idx=1),
            )
        ),
    )
    teacher, student = WithSamples(T).eval(), WithSamples(S)
    x = batch['inputs'].float() / 128 - 1
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], 3e-3)
    losses = []
    for _ in range(15):
        with distiller.record(teacher, student):
            with torch.no_grad():
                teacher(x, batch['data_samples'])
            student(x, batch['data_samples'])
        loss = distiller.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < losses[0]


def test_a_network_is_its_own_teacher_through_shallow_classifiers() -> None:
    seed_everything(0)
    student = Net(S)
    shallow = dict(
        type='BYOTConnector', in_channel=2 * S, out_channel=4 * S, num_classes=10, expansion=1, stride=2, pool_size=2
    )
    distiller = ConfigurableDistiller(
        outputs('two'),
        outputs('fc', 'flat'),
        connectors=dict(shallow=shallow),
        distill_losses=dict(
            loss_feature=dict(type='L2Loss', normalize=False, loss_weight=0.03, dist=True),
            loss_soft=dict(type='KDSoftCELoss', tau=3.0, loss_weight=0.3),
        ),
        loss_forward_mappings=dict(
            loss_feature=dict(
                s_feature=record(True, 'two', connector='shallow', connector_idx=0), t_feature=record(False, 'flat')
            ),
            loss_soft=dict(preds_S=record(True, 'two', connector='shallow', connector_idx=1), preds_T=record(False, 'fc')),
        ),
    )
    with distiller.record(None, student):
        student(torch.randn(4, 1, 8, 8))
    distiller.loss().backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters())
    assert all(parameter.grad is not None for parameter in student.two.parameters())
