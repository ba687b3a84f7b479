import pytest
import torch
from torch import nn

from strop.engine import build_runner, sub_model
from strop.errors import ConfigError, StropError
from strop.estimators import count
from strop.mutables import apply_subnet, dump_subnet, extract, space_of
from strop.registry import MODELS

from .tiny import preprocessor, supernet, train_config

CHOICES = {
    'backbone.layers.0.0': 'shuffle_5x5',
    'backbone.layers.0.1': 'shuffle_xception',
    'backbone.layers.1.0': 'shuffle_3x3',
}
OF_BACKBONE = {key.removeprefix('backbone.'): choice for key, choice in CHOICES.items()}
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def trained(tmp_path):
    """A supernet with weights of its own, and the checkpoint of it."""
    model = MODELS.build(supernet)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), tmp_path / 'supernet.pth')
    return model, dict(type='Pretrained', checkpoint=str(tmp_path / 'supernet.pth'))


@pytest.mark.parametrize('mode', ['mutable', 'mutator'])
def test_is_the_plain_model_of_the_subnet(mode):
    model = sub_model(supernet, CHOICES, mode=mode)
    assert not [module for module in model.modules() if type(module).__module__.startswith('strop.mutables')]
    assert type(model.backbone.layers[0][1]).__name__ == 'ShuffleXception'
    assert model(IMAGES).shape == (4, 10)


@pytest.mark.parametrize('form', ['yaml', 'json', 'mmrazor', 'subnet'])
def test_reads_every_form_of_a_subnet(tmp_path, form):
    subnet = space_of(MODELS.build(supernet)).subnet(CHOICES)
    given = subnet
    if form in ('yaml', 'json'):
        given = str(tmp_path / f'best.{form}')
        dump_subnet(subnet, given)
    elif form == 'mmrazor':
        given = tmp_path / 'mmrazor.yaml'
        given.write_text(''.join(f'{key}:\n  chosen: {choice}\n' for key, choice in CHOICES.items()))
    built = MODELS.build(dict(type='mmrazor.sub_model', cfg=supernet, fix_subnet=given))
    assert count(built, IMAGES).params == count(extract(MODELS.build(supernet), CHOICES), IMAGES).params


def test_weights_are_inherited_from_the_supernet(trained):
    model, pretrained = trained
    plain = sub_model(supernet, CHOICES, init_weight_from_supernet=True, init_cfg=pretrained)
    expected = extract(model, CHOICES).state_dict()
    assert plain.state_dict().keys() == expected.keys()
    assert all(torch.equal(expected[name], value) for name, value in plain.state_dict().items())
    apply_subnet(model, CHOICES)
    assert torch.equal(model.eval()(IMAGES), plain.eval()(IMAGES))


def test_inherited_weights_survive_the_runners_initialization(trained, tmp_path):
    model, pretrained = trained
    config = train_config(
        model=dict(
            type='sub_model',
            cfg=dict(supernet, data_preprocessor=preprocessor),
            fix_subnet=CHOICES,
            init_weight_from_supernet=True,
            init_cfg=pretrained,
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    runner = build_runner(config, work_dir=tmp_path / 'work')
    runner.train()
    expected = dict(extract(model, CHOICES).named_parameters())
    assert all(torch.equal(expected[name], value) for name, value in runner.model.named_parameters())


def test_a_backbone_takes_its_part_of_a_classifiers_subnet(trained):
    model, _ = trained
    backbone = sub_model(supernet['backbone'], CHOICES, extra_prefix='backbone.')
    assert backbone.state_dict().keys() == extract(model, CHOICES).backbone.state_dict().keys()


def test_a_classifier_takes_the_subnet_of_its_backbone():
    model = sub_model(supernet, OF_BACKBONE, prefix='backbone.')
    assert model.state_dict().keys() == extract(MODELS.build(supernet), CHOICES).state_dict().keys()


def test_further_arguments_go_to_the_model():
    assert sub_model(supernet, CHOICES, data_preprocessor=preprocessor).data_preprocessor.mean.item() == 78.0


def test_trains_through_the_runner_and_is_tested(tmp_path):
    model = dict(type='sub_model', cfg=dict(supernet, data_preprocessor=preprocessor), fix_subnet=CHOICES)
    runner = build_runner(train_config(model=model), work_dir=tmp_path)
    runner.train()
    assert set(runner.test()) == {'accuracy/top1'}


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(mode='mutables'), "Did you mean 'mutable' or 'mutator'|Did you mean 'mutable'"),
        (dict(fix_subnet={**CHOICES, 'backbone.layers.0.0': 'shufle_3x3'}), "Did you mean 'shuffle_3x3'"),
        (dict(fix_subnet={'backbone.layers.0.0': 'shuffle_3x3'}), 'backbone.layers.0.1'),
        (dict(fix_subnet=OF_BACKBONE), 'Did you mean|layers.0.0'),
        (dict(fix_subnet=OF_BACKBONE, prefix='head.'), 'has no choice for'),
        (dict(fix_subnet='nowhere.yaml'), 'nowhere.yaml'),
    ],
)
def test_bad_arguments(options, words):
    arguments = {'cfg': supernet, 'fix_subnet': CHOICES, **options}
    with pytest.raises((StropError, FileNotFoundError), match=words):
        sub_model(**arguments)


def test_inheriting_needs_a_model_that_can_be_initialized():
    from strop.mutables import LayerChoice

    model = nn.Sequential(LayerChoice([nn.ReLU(), nn.GELU()], key='a'))
    with pytest.raises(ConfigError, match='init_weights'):
        sub_model(model, {'a': 0}, init_weight_from_supernet=True)
