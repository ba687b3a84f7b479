"""Every class of the kinds that have a contract is in a row of a table here, and keeps its contract."""

import inspect

import pytest
import torch
from engine.tiny import preprocessor, supernet
from torch import nn

import strop.algorithms
import strop.distill
import strop.mutators
from strop.algorithms import BaseAlgorithm
from strop.data import DataSample
from strop.mutables import InputChoice, LayerChoice, Mutable, MutableChannelUnit, OneOf, ValueChoice
from strop.mutables.domain import Domain
from strop.mutators import BaseMutator, Mutator
from strop.registry import MODELS
from strop.search import STRATEGIES, Strategy
from strop.testing import check_algorithm, check_distill_loss, check_mutable, check_mutator, check_strategy, check_trainer

MODELS.import_from_location()

OPERATIONS = dict(relu=dict(type='torch.nn.ReLU'), tanh=dict(type='torch.nn.Tanh'), none=dict(type='torch.nn.Identity'))
IMAGES = (torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255, torch.arange(6))
X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Halves(MutableChannelUnit):
    """`MutableChannelUnit` with the method that it leaves to be written."""

    def numbers(self):
        return [self.num_channels // 2, self.num_channels]


MUTABLES = {
    'LayerChoice': [
        (lambda: LayerChoice([nn.Linear(3, 3), nn.Identity()]), X),
        (lambda: LayerChoice({'linear': nn.Linear(3, 3), 'relu': nn.ReLU(), 'id': nn.Identity()}, reduction='mean'), X),
        (lambda: LayerChoice([nn.Linear(3, 3), nn.ReLU()], return_mask=True), X),
    ],
    'InputChoice': [
        (lambda: InputChoice(n_candidates=3, n_chosen=1), [X, 2 * X, 3 * X]),
        (lambda: InputChoice(n_candidates=3, n_chosen=2, reduction='concat'), [X, 2 * X, 3 * X]),
        (lambda: InputChoice(n_candidates=2, n_chosen=None), [X, 2 * X]),
    ],
    'ValueChoice': [(lambda: ValueChoice([3, 5, 7]),), (lambda: ValueChoice(['a', 'b']),)],
    'MutableValue': [(lambda: MODELS.build(dict(type='MutableValue', value_list=[1, 2, 3])),)],
    'OneShotMutableValue': [(lambda: MODELS.build(dict(type='OneShotMutableValue', value_list=[1, 2], default_value=2)),)],
    'OneShotMutableOP': [(lambda: MODELS.build(dict(type='OneShotMutableOP', candidates=OPERATIONS)), X)],
    'OneShotProbMutableOP': [
        (lambda: MODELS.build(dict(type='OneShotProbMutableOP', candidates=OPERATIONS, choice_probs=[0.5, 0.25, 0.25])), X)
    ],
}

EDGES = dict(a=dict(type='torch.nn.Linear', in_features=3, out_features=3), b=dict(type='torch.nn.Tanh'), c=nn.Identity())
MUTABLES |= {
    name: [(lambda name=name: MODELS.build(dict(type=name, candidates=OPERATIONS)), X)]
    for name in ('DiffMutableOP', 'OneHotMutableOP')
}
MUTABLES |= {
    name: [
        (lambda name=name, more=more: MODELS.build(dict(type=name, edges=EDGES, **more)), [X, 2 * X, 3 * X])
        for more in ({}, dict(num_chosen=1, with_arch_param=True))
    ]
    for name in ('DiffChoiceRoute', 'GumbelChoiceRoute')
}

MUTABLES |= {
    name: [(lambda name=name, more=more: MODELS.build(dict(type=name, num_channels=8, **more)),)]
    for name, more in {
        'SequentialMutableChannelUnit': dict(divisor=2),
        'L1MutableChannelUnit': dict(choice_mode='ratio'),
        'OneShotMutableChannelUnit': dict(candidate_choices=[0.25, 0.5, 1.0]),
        'SlimmableChannelUnit': dict(candidate_choices=[2, 4, 8]),
    }.items()
}
MUTABLES['MutableChannelUnit'] = [(lambda: Halves(8),)]


class Written(Mutator):
    """`Mutator` with the two methods that it leaves to be written."""

    def sample_search(self):
        return {key: self.get_random_mask(info).bool() for key, info in self.search_spaces.items()}

    sample_final = sample_search


class Mixed(nn.Module):
    """Decisions that can be mixed: a choice of layers in an edge of a route, one beside it, and one of inputs."""

    def __init__(self):
        super().__init__()
        op = dict(type='DiffMutableOP', candidates=OPERATIONS, alias='edge.op')
        edges = dict(a=op, b=nn.Linear(4, 4), c=nn.Identity())
        self.route = MODELS.build(dict(type='DiffChoiceRoute', edges=edges, with_arch_param=True))
        self.layer = LayerChoice([nn.Linear(4, 4), nn.Identity()])
        self.source = InputChoice(n_candidates=2, n_chosen=1)

    def forward(self, x):
        return self.source([self.layer(x), self.route([x, x, x])])


PARSE = dict(type='ChannelAnalyzer', demo_input=(2, 1, 8, 8))
SLIMMABLE = dict(type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio'))


def channels():
    """Return a model with channels that may vary, and an input for it."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 10))


MUTATORS = {
    'BaseMutator': [(BaseMutator,)],
    'Mutator': [(Written,)],
    'RandomMutator': [(strop.mutators.RandomMutator,)],
    'FixedArchitecture': [(lambda model: strop.mutators.FixedArchitecture(model, strop.space_of(model).first()),)],
    'OneShotMutator': [(strop.mutators.OneShotMutator,)],
    'SPOSSupernetTrainingMutator': [(strop.algorithms.SPOSSupernetTrainingMutator,)],
    **{
        name: [(lambda model, name=name: MODELS.build(dict(type=name, model=model)), Mixed(), torch.randn(3, 4))]
        for name in ('DifferentiableMutator', 'DartsMutator', 'GumbelMutator', 'ProxylessMutator')
    },
    **{
        name: [
            (lambda model, name=name, more=more: bound(model, dict(type=name, parse_cfg=PARSE, **more)), channels(), IMAGES[0])
        ]
        for name, more in {
            'ChannelMutator': {},
            'OneShotChannelMutator': {},
            'SlimmableChannelMutator': dict(channel_unit_cfg=SLIMMABLE),
        }.items()
    },
}


def bound(model, config):
    mutator = MODELS.build(config)
    mutator.prepare_from_supernet(model)
    return mutator


def distiller(kind='ConfigurableDistiller', path='0', loss='torch.nn.MSELoss', names=('input', 'target'), **target):
    """Return the config of a distiller of one layer."""
    layer = dict(layer=dict(type='ModuleOutputs', source=path))
    loss = dict(type='OFDLoss' if target else loss)
    names = ('s_feature', 't_feature') if target else names
    sides = (dict(recorder='layer', from_student=True), dict(recorder='layer', from_student=False, **target))
    return dict(
        type=kind,
        student_recorders=layer,
        teacher_recorders=layer,
        connectors=dict(margin=dict(type='OFDTeacherConnector')) if target else None,
        distill_losses=dict(loss_layer=loss),
        loss_forward_mappings=dict(loss_layer=dict(zip(names, sides))),
    )


def normed():
    """Return a small network with a batch norm."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10))


SHUFFLE = dict.fromkeys(('backbone.layers.0.0', 'backbone.layers.0.1', 'backbone.layers.1.0'), 'shuffle_3x3')
DISTILLING = {
    'DistillAlgorithm': [
        (lambda: strop.algorithms.DistillAlgorithm(distiller(), architecture=channels()), IMAGES),
    ],
    'SingleTeacherDistill': [
        (lambda: strop.algorithms.SingleTeacherDistill(distiller(), channels(), architecture=channels()), IMAGES),
        (
            dict(
                type='mmrazor.SingleTeacherDistill',
                architecture=dict(type='sub_model', cfg=supernet, fix_subnet=SHUFFLE),
                teacher=dict(type='sub_model', cfg=supernet, fix_subnet=SHUFFLE),
                teacher_trainable=True,
                distiller=distiller(path='head.fc'),
                data_preprocessor=preprocessor,
            ),
            IMAGES,
        ),
    ],
    'SelfDistill': [
        (lambda: strop.algorithms.SelfDistill(distiller('BYOTDistiller', path='0'), architecture=channels()), IMAGES),
    ],
    'FpnTeacherDistill': [
        (
            dict(
                type='mmrazor.FpnTeacherDistill',
                architecture=dict(type='sub_model', cfg=supernet, fix_subnet=SHUFFLE),
                teacher=dict(type='sub_model', cfg=supernet, fix_subnet=SHUFFLE),
                distiller=distiller(path='backbone.layers.1'),
                data_preprocessor=preprocessor,
            ),
            IMAGES,
        ),
    ],
    'OverhaulFeatureDistillation': [
        (
            lambda: strop.algorithms.OverhaulFeatureDistillation(
                distiller('OFDDistiller', path='1', connector='margin'), normed(), architecture=normed()
            ),
            IMAGES,
        ),
    ],
}


def mixed():
    """Return a small supernet of mixed operations."""
    op = dict(type='DiffMutableOP', candidates=OPERATIONS)
    return nn.Sequential(nn.Linear(3, 4), MODELS.build(op), LayerChoice([nn.Linear(4, 4), nn.Identity()]), nn.Linear(4, 2))


ALGORITHMS = {
    'Darts': [
        (lambda: strop.algorithms.Darts(mixed()), (X, torch.tensor([0, 1]))),
        (
            lambda: strop.algorithms.Darts(mixed(), dict(type='mmrazor.DiffModuleMutator'), unroll=True),
            {'inputs': X, 'data_samples': torch.tensor([0, 1])},
        ),
    ],
    **DISTILLING,
    'MMArchitectureQuant': [
        (
            lambda: strop.algorithms.MMArchitectureQuant(
                normed(), dict(type='mmrazor.TorchNativeQuantizer', global_qconfig='int8'), data_preprocessor=dict()
            ),
            IMAGES,
        ),
        (
            dict(
                type='mmrazor.MMArchitectureQuant',
                architecture=dict(type='sub_model', cfg=supernet, fix_subnet=SHUFFLE),
                quantizer=dict(type='mmrazor.AcademicQuantizer', qconfig_mapping=dict(_global_='lsq4')),
                data_preprocessor=preprocessor,
            ),
            IMAGES,
        ),
    ],
    'BaseAlgorithm': [
        (lambda: BaseAlgorithm(nn.Linear(3, 2)), (X, torch.tensor([0, 1]))),
        (
            dict(
                type='BaseAlgorithm',
                architecture=dict(type='PlainArchitecture', module=dict(type='torch.nn.Linear', in_features=3, out_features=2)),
            ),
            {'inputs': X, 'data_samples': torch.tensor([0, 1])},
        ),
    ],
    # Their training sees no batch, so it cannot spoil one: tests/algorithms/test_data_free.py.
    'DataFreeDistillation': [],
    'DAFLDataFreeDistillation': [],
    # The base of those that train several subnets; with none of its own it trains the architecture.
    'SeveralSubnets': [(lambda: strop.algorithms.several_subnets.SeveralSubnets(channels()), IMAGES)],
    'AutoSlim': [
        (
            lambda: strop.algorithms.AutoSlim(
                channels(),
                dict(type='OneShotChannelMutator', parse_cfg=PARSE),
                distiller(path='4', loss='KLDivergence', names=('preds_S', 'preds_T')),
            ),
            IMAGES,
        ),
    ],
    'SlimmableNetwork': [
        (
            lambda: strop.algorithms.SlimmableNetwork(
                channels(), dict(type='SlimmableChannelMutator', channel_unit_cfg=SLIMMABLE, parse_cfg=PARSE)
            ),
            IMAGES,
        ),
    ],
    'ItePruneAlgorithm': [
        (
            lambda: strop.algorithms.ItePruneAlgorithm(
                channels(),
                dict(
                    type='mmrazor.ChannelMutator', channel_unit_cfg=dict(type='mmrazor.L1MutableChannelUnit'), parse_cfg=PARSE
                ),
                target_pruning_ratio=0.5,
                prune_times=3,
            ),
            IMAGES,
        ),
    ],
    'SPOS': [
        (
            lambda: strop.algorithms.SPOS(
                channels(), mutator=dict(type='mmrazor.OneShotChannelMutator', parse_cfg=PARSE), input_shape=(1, 1, 8, 8)
            ),
            IMAGES,
        ),
        (dict(type='SPOS', architecture=supernet, data_preprocessor=preprocessor), IMAGES),
        (
            dict(
                type='mmrazor.SPOS',
                architecture=supernet,
                mutator=dict(type='mmrazor.NasMutator'),
                data_preprocessor=preprocessor,
            ),
            {'inputs': list(IMAGES[0]), 'data_samples': [DataSample().set_gt_label(label) for label in range(6)]},
        ),
    ],
}


DRAW = torch.Generator().manual_seed(1)
LOGITS = (torch.randn(5, 4, generator=DRAW), torch.randn(5, 4, generator=DRAW))
MAPS = (torch.randn(3, 4, 6, 5, generator=DRAW), torch.randn(3, 4, 6, 5, generator=DRAW))
TOKENS = (torch.randn(2, 9, 4, generator=DRAW), torch.randn(2, 9, 6, generator=DRAW))
UNITS = [nn.functional.normalize(x) for x in LOGITS]
CLASSES = torch.tensor([0, 3, 1, 1, 2])
TEXT = (torch.randn(2, 5, 11, generator=DRAW), torch.randn(2, 5, 11, generator=DRAW), torch.tensor([[1, 2, 3, -100, 4]] * 2))


def attentions(feature):
    """Return what the FBKD connectors take of a feature, without their layers."""
    return (feature.abs().mean(1, True), feature.abs().mean((2, 3), True)), feature.mean(1, True), feature.flip(1), feature


FBKD = [attentions(x) for x in MAPS]

LOSSES = {
    'KLDivergence': [
        (lambda: strop.distill.KLDivergence(tau=3.0), *LOGITS),
        (lambda: strop.distill.KLDivergence(reduction='mean', standardize=True), *MAPS),
    ],
    'LSKDLoss': [(strop.distill.LSKDLoss, *LOGITS)],
    'KDSoftCELoss': [(lambda: strop.distill.KDSoftCELoss(tau=2.0), *LOGITS)],
    'DKDLoss': [(lambda: strop.distill.DKDLoss(tau=4.0, beta=8.0), *LOGITS, CLASSES)],
    'NKDLoss': [(strop.distill.NKDLoss, *LOGITS, CLASSES)],
    'WSLD': [(lambda: strop.distill.WSLD(num_classes=4), *LOGITS, CLASSES)],
    'DISTLoss': [(strop.distill.DISTLoss, *LOGITS), (strop.distill.DISTLoss, *MAPS)],
    'TokenKLDivergence': [
        (strop.distill.TokenKLDivergence, *TEXT),
        (lambda: strop.distill.TokenKLDivergence(top_k=3, direction='reverse', shift=True), *TEXT),
        (lambda: strop.distill.TokenKLDivergence(top_k=3, tail='renormalize'), *TEXT[:2]),
    ],
    'L1Loss': [(strop.distill.L1Loss, *MAPS)],
    'L2Loss': [(strop.distill.L2Loss, *MAPS), (lambda: strop.distill.L2Loss(dist=True, normalize=False), *LOGITS)],
    'ATLoss': [(strop.distill.ATLoss, *MAPS), (strop.distill.ATLoss, MAPS[0], MAPS[1][:, :2])],
    'ABLoss': [(strop.distill.ABLoss, *MAPS)],
    'FTLoss': [(strop.distill.FTLoss, *MAPS)],
    'OFDLoss': [(strop.distill.OFDLoss, *MAPS)],
    'FBKDLoss': [
        (
            strop.distill.FBKDLoss,
            (*FBKD[0][0], MAPS[0].mean((2, 3)), *FBKD[0][1:]),
            (*FBKD[1][0], *FBKD[1][1:]),
        )
    ],
    'MGDLoss': [(strop.distill.MGDLoss, *MAPS)],
    'PKDLoss': [(strop.distill.PKDLoss, *MAPS), (strop.distill.PKDLoss, (MAPS[0],) * 2, (MAPS[1], MAPS[1][..., :4, :4]))],
    'HCLLoss': [(strop.distill.HCLLoss, *MAPS)],
    'ChannelWiseDivergence': [(lambda: strop.distill.ChannelWiseDivergence(tau=4.0), *MAPS)],
    'ViTKDLoss': [
        (
            lambda: strop.distill.ViTKDLoss(4, 6, shallow=1),
            TOKENS[0],
            TOKENS[1],
            TOKENS[0].flip(0),
            TOKENS[1].flip(0),
        )
    ],
    'AngleWiseRKD': [(strop.distill.AngleWiseRKD, *LOGITS)],
    'DistanceWiseRKD': [(strop.distill.DistanceWiseRKD, *LOGITS), (strop.distill.DistanceWiseRKD, MAPS[0], MAPS[1][:, :1])],
    'CKALoss': [(strop.distill.CKALoss, *LOGITS), (strop.distill.CKALoss, MAPS[0], LOGITS[0][:3])],
    'CRDLoss': [
        (lambda: strop.distill.CRDLoss(neg_num=3, sample_n=9, dim_out=4), *UNITS, torch.tensor([0, 8, 3, 4, 5])),
        (lambda: strop.distill.CRDLoss(neg_num=1, sample_n=99, dim_out=4), *UNITS, torch.tensor([0, 8, 3, 4, 98])),
    ],
    'ActivationLoss': [(strop.distill.ActivationLoss, MAPS[0])],
    'OnehotLikeLoss': [(strop.distill.OnehotLikeLoss, LOGITS[0])],
    'InformationEntropyLoss': [(strop.distill.InformationEntropyLoss, LOGITS[0])],
}


def searched(cls, folder, **more):
    """Return a trainer of a small supernet."""
    torch.manual_seed(0)
    net = mixed()
    data = [(torch.randn(3), index % 2) for index in range(16)]
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    options = dict(batch_size=4, workers=0, device='cpu', work_dir=folder, log_level='ERROR', **more)
    if 'NasTrainer' in cls.__name__:
        loader = torch.utils.data.DataLoader(data, 4)
        del options['batch_size'], options['workers'], options['device']
        return cls(net, sgd, 'cpu', loader, loader, n_epochs=2, warmup_epochs=0, grad_update_arch_param_every=1, **options)
    return cls(net, nn.CrossEntropyLoss(), None, sgd, 2, data, data, **options)


TRAINERS = {
    'SinglePathTrainer': [dict()],
    'SPOSSupernetTrainer': [dict()],
    'DartsTrainer': [dict(), dict(unrolled=True), dict(unrolled=True, second_order='finite_difference')],
    'ProxylessTrainer': [dict()],
    'ProxylessNasTrainer': [dict()],
}


def rows(table):
    return [pytest.param(row, id=f'{name}-{index}') for name, entries in table.items() for index, row in enumerate(entries)]


def subclasses(cls):
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def shipped(kind):
    """Return the names of Strop's own classes of a kind, registered or not."""
    registered = {cls for cls in MODELS.module_dict.values() if inspect.isclass(cls) and issubclass(cls, kind)}
    return {cls.__name__ for cls in registered | set(subclasses(kind)) if cls.__module__.split('.')[0] == 'strop'}


# -- nothing is left out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(('kind', 'table'), [(Mutable, MUTABLES), (BaseMutator, MUTATORS), (BaseAlgorithm, ALGORITHMS)])
def test_every_class_is_in_the_table(kind, table):
    assert shipped(kind) == set(table), 'a class without a row in the table of this file, or a row without a class'


def losses():
    """Return the names of the registered distillation losses that ship with Strop."""
    return {
        name
        for name, cls in MODELS.module_dict.items()
        if cls.__module__.startswith('strop.distill.') and (cls.__module__.endswith('_losses') or name.endswith('Loss'))
    }


def test_every_distillation_loss_is_in_the_table():
    assert losses() == set(LOSSES), 'a loss without a row in the table of this file, or a row without a loss'


def test_a_distillation_loss_without_a_row_is_noticed():
    MODELS.register_module('UnlistedLoss', module=type('UnlistedLoss', (nn.Module,), {'__module__': 'strop.distill.own'}))
    assert losses() - set(LOSSES) == {'UnlistedLoss'}
    del MODELS.module_dict['UnlistedLoss']


def test_a_class_without_a_row_is_noticed():
    before = shipped(Mutable)
    unlisted = type('Unlisted', (Mutable,), {'__module__': 'strop.mutables.unlisted'})
    assert shipped(Mutable) - before == {'Unlisted'}
    unlisted.__module__ = 'elsewhere'  # as long as it lives, it is no longer one of Strop's


def test_every_trainer_is_in_the_table():
    names = {cls.__name__ for cls in subclasses(strop.engine.Trainer) if cls.__module__.split('.')[0] == 'strop'}
    assert names == set(TRAINERS), 'a trainer without a row in the table of this file, or a row without a trainer'


# -- the contracts are kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'more'), [(name, more) for name, rows_ in TRAINERS.items() for more in rows_])
def test_trainers(name, more):
    check_trainer(lambda folder: searched(getattr(strop.algorithms, name), folder, **more))


@pytest.mark.parametrize('row', rows(MUTABLES))
def test_mutables(row):
    check_mutable(*row)


@pytest.mark.parametrize('row', rows(MUTATORS))
def test_mutators(row):
    check_mutator(*row)


def test_mutators_on_a_real_supernet():
    model = MODELS.build(supernet).eval()
    check_mutator(strop.mutators.OneShotMutator, model, IMAGES[0] / 255)


@pytest.mark.parametrize('row', rows(ALGORITHMS))
def test_algorithms(row):
    check_algorithm(*row)


@pytest.mark.parametrize('row', rows(LOSSES))
def test_distillation_losses(row):
    check_distill_loss(*row)


# The first batch of CRDLoss sets a constant, which is a question to the data.
@pytest.mark.parametrize('row', rows({name: entries[:1] for name, entries in LOSSES.items() if name != 'CRDLoss'}))
def test_distillation_losses_compile_without_a_graph_break(row):
    make, *inputs = row
    values = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        loss = make()
        values.append((torch.compile(loss, backend='eager', fullgraph=True) if compiled else loss)(*inputs))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize('name', STRATEGIES)
def test_strategies(name):
    check_strategy(name)


# -- the contracts notice what breaks them ---------------------------------------------------------------------------


def test_mutable_that_depends_on_more_than_its_decision():
    class Drifting(LayerChoice):
        calls = 0

        def run(self, x):
            self.calls += 1
            return super().run(x) + self.calls

    with pytest.raises(AssertionError, match='Drifting must give the same output twice'):
        check_mutable(lambda: Drifting([nn.Identity(), nn.Identity()]), X)


def test_mutable_that_cannot_be_extracted():
    class Kept(Mutable):
        def make_domain(self) -> Domain:
            return OneOf(('a', 'b'))

        def run(self):
            return self.choice()

    with pytest.raises(Exception, match='cannot be extracted'):
        check_mutable(Kept)


def test_mutable_that_runs_undecided():
    class Careless(ValueChoice):
        def run(self):
            return self.values[0] if self.decision is None else super().run()

    with pytest.raises(AssertionError, match='without a decision must say so'):
        check_mutable(lambda: Careless([1, 2]))


def test_mutator_with_a_generator_of_its_own():
    class Own(Written):
        def sample_search(self):
            generator = self.__dict__.setdefault('generator', torch.Generator())
            return {
                key: torch.arange(len(self.space[key])) == int(torch.randint(len(self.space[key]), (), generator=generator))
                for key in self.space
            }

    with pytest.raises(AssertionError, match='function of the global generators'):
        check_mutator(Own)


def test_mutator_whose_mutation_always_redraws():
    class Restless(strop.mutators.OneShotMutator):
        def mutation(self, subnet_dict, prob=0.1):
            return self.sample_subnet()

    with pytest.raises(AssertionError, match='probability 0 must change nothing'):
        check_mutator(Restless)


def test_mutator_that_takes_over_the_models_parameters():
    class Greedy(strop.mutators.OneShotMutator):
        def prepare_from_supernet(self, supernet):
            super().prepare_from_supernet(supernet)
            self.stolen = supernet.head

    with pytest.raises(AssertionError, match='its own alone'):
        check_mutator(Greedy)


@pytest.mark.parametrize(
    ('body', 'words'),
    [
        (dict(loss=lambda self, inputs: {'value': inputs.sum()}), 'mapping with a loss'),
        (dict(_predict=lambda self, inputs: [1]), 'one prediction for each sample'),
        (dict(train_step=lambda self, data, optimizer: {'loss': torch.tensor(1.0)}), 'must change parameters'),
        (dict(_check_finite=lambda self, *_: None), 'must stop at a loss that is not finite'),
        (
            dict(forward=lambda self, inputs, data_samples=None, mode='tensor': self._by(inputs, data_samples, mode)),
            'unknown mode',
        ),
    ],
)
def test_algorithms_that_break_a_rule(body, words):
    class Broken(BaseAlgorithm):
        def _by(self, inputs, data_samples, mode):
            return super().forward(inputs, data_samples, mode if mode != 'train' else 'tensor')

    for name, function in body.items():
        setattr(Broken, name, function)
    Broken.__init_subclass__()
    if 'train_step' in body:
        Broken.train_step = lambda self, data, optim_wrapper: {'loss': torch.tensor(1.0)}
    with pytest.raises(AssertionError, match=words):
        check_algorithm(lambda: Broken(nn.Linear(3, 2)), (X, torch.tensor([0, 1])))


@pytest.mark.parametrize('broken', ['repeats', 'forgets', 'ignores'])
def test_strategies_that_break_a_rule(broken):
    class Broken(Strategy):
        name = 'broken'
        calls = 0

        def propose(self, number, rng):
            if broken == 'repeats':
                return self.space.first()
            if broken == 'forgets':
                Broken.calls += 1
                rng = type(rng)(type(rng.bit_generator)(Broken.calls))
                return self.random(rng)
            while (subnet := self.space.sample(rng)) in self.seen:
                pass
            return subnet

    words = {'repeats': 'every subnet of a small space|twice', 'forgets': 'repeat itself', 'ignores': 'keep to the constraints'}
    with pytest.raises(AssertionError, match=words[broken]):
        check_strategy(lambda: Broken(unique=broken != 'repeats'))


@pytest.mark.parametrize(
    ('forward', 'words'),
    [
        (lambda self, *pair: (pair[0] - pair[1]).square().mean(), 'by name'),
        (lambda self, a, b: (a - b).square(), 'finite scalar'),
        (lambda self, a, b: (a.abs() - b - 99).sqrt().mean(), 'finite scalar'),
        (lambda self, a, b: self.loss_weight * (a.detach() * b + self.zero).mean(), 'first input a gradient'),
        (lambda self, a, b: a.sub_(b).square().mean() if not a.requires_grad else a.sum(), 'leave its inputs'),
        (lambda self, a, b: (a - b).square().mean() + self.loss_weight, 'proportional'),
        (lambda self, a, b: self.loss_weight * (a / (0 * b + 1.001 - 1)).mean(), 'half precision'),
        (lambda self, a, b: self.loss_weight * a.abs().sqrt().mean(), 'finite gradients'),
    ],
)
def test_distillation_losses_that_break_a_rule(forward, words):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss_weight = 2.0
            self.zero = nn.Parameter(torch.zeros(()))

    Broken.forward = forward
    student, teacher = (2 * x.clone() for x in LOGITS)
    student[0] = 0
    with pytest.raises(AssertionError, match=words):
        check_distill_loss(Broken, student, teacher)
