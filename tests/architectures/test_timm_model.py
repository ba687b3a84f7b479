from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS as ROOT
from torch import nn

from strop.architectures import TimmModel, create_timm
from strop.errors import ConfigError, DataError, MissingDependencyError, ModeError
from strop.export import load_recipe, save_recipe
from strop.registry import MODELS

timm = pytest.importorskip('timm')

NAME = 'resnet10t'


def cfg(**options: Any) -> dict[str, Any]:
    return {'type': 'TimmModel', 'model_name': NAME, 'num_classes': 5, **options}


def batch(number: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, 32, 32, generator=generator), torch.arange(number) % 5


@pytest.mark.parametrize('name', ['TimmModel', 'strop.TimmModel', 'mmrazor.TimmModel', 'timm.TimmModel'])
def test_every_name_of_the_type_reaches_it(name: str) -> None:
    for registry in (MODELS, ROOT):
        if registry is MODELS or '.' in name:
            assert type(registry.build(cfg(type=name))) is TimmModel


def test_losses_and_predictions_are_those_of_timms_logits() -> None:
    model = MODELS.build(cfg(head=dict(topk=(1, 2), cal_acc=True))).eval()
    images, labels = batch()
    logits = model.model(images)
    assert torch.equal(model(images), logits)
    losses = model(images, labels, mode='loss')
    assert torch.equal(losses['loss'], nn.functional.cross_entropy(logits, labels))
    assert set(losses) == {'loss', 'accuracy_top-1', 'accuracy_top-2'}
    samples = model(images, labels, mode='predict')
    assert torch.equal(torch.stack([sample.pred_score for sample in samples]), logits.softmax(1))
    assert [int(sample.gt_label) for sample in samples] == labels.tolist()
    assert model.extract_feat(images).shape == (4, 512, 1, 1)


def test_initialising_keeps_the_weights_that_timm_gave() -> None:
    model = MODELS.build(cfg())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not hasattr(model.model, 'is_init')


def test_bytes_are_normalised_as_the_weights_want_them() -> None:
    model = MODELS.build(cfg(data_preprocessor='pretrained'))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    found, _ = model.data_preprocessor((pixels, torch.tensor([0, 1])))
    mean, std = (np.array(model.default_cfg[name]).reshape(3, 1, 1) for name in ('mean', 'std'))
    assert np.allclose(found.numpy(), (pixels.numpy() / 255 - mean) / std, atol=1e-5)


def test_a_timm_model_teaches_another_in_a_config() -> None:
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=dict(logits=dict(type='ModuleOutputs', source='model.fc')),
        teacher_recorders=dict(logits=dict(type='ModuleOutputs', source='model.fc')),
        distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=2.0)),
        loss_forward_mappings=dict(
            loss_kl=dict(
                preds_S=dict(from_student=True, recorder='logits'), preds_T=dict(from_student=False, recorder='logits')
            )
        ),
    )
    teacher = dict(type='timm.TimmModel', model_name='resnet18', num_classes=5)
    algorithm = MODELS.build(
        dict(type='SingleTeacherDistill', architecture=cfg(), teacher=teacher, distiller=distiller, teacher_trainable=False)
    )
    losses = algorithm(*batch(), mode='loss')
    assert {name.rpartition('.')[2] for name in losses} == {'loss', 'loss_kl'}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in algorithm.architecture.parameters())
    assert all(parameter.grad is None for parameter in algorithm.teacher.parameters())


HALVES = dict(type='SlimmableChannelUnit', default_args=dict(candidate_choices=[0.5, 1.0], choice_mode='ratio'))
ALGORITHMS = {
    'ItePrune': dict(
        type='ItePruneAlgorithm',
        target_pruning_ratio=0.5,
        mutator_cfg=dict(type='ChannelMutator', channel_unit_cfg='L1MutableChannelUnit'),
    ),
    'Slimmable': dict(type='SlimmableNetwork', mutator=dict(type='SlimmableChannelMutator', channel_unit_cfg=HALVES)),
}


@pytest.mark.parametrize('algorithm', ALGORITHMS.values(), ids=[*ALGORITHMS])
def test_its_channels_are_found_and_trained_at_other_widths(algorithm: dict[str, Any]) -> None:
    key = 'mutator' if 'mutator' in algorithm else 'mutator_cfg'
    algorithm = {**algorithm, key: {**algorithm[key], 'parse_cfg': dict(demo_input=(2, 3, 32, 32))}}
    built = MODELS.build(dict(algorithm, architecture=cfg()))
    optimizer = torch.optim.SGD(built.parameters(), lr=0.01)
    log = built.train_step(batch(), optimizer)
    assert torch.isfinite(log['loss'])
    built.eval()
    if algorithm['type'] == 'SlimmableNetwork':
        built.deploy(0)
        plain = built.architecture
    else:
        plain = built.extract()
    whole = sum(parameter.numel() for parameter in MODELS.build(cfg()).parameters())
    assert 0.2 * whole < sum(parameter.numel() for parameter in plain.parameters()) < 0.35 * whole
    assert torch.equal(plain(batch()[0]), built(batch()[0]))


def test_a_recipe_of_its_config_brings_the_weights_and_reads_no_others(tmp_path: Any) -> None:
    model = MODELS.build(cfg()).eval()
    save_recipe(model, None, tmp_path / 'net', factory=cfg(pretrained=True, checkpoint_path='elsewhere.pth'))
    loaded = load_recipe(tmp_path / 'net')
    assert torch.equal(loaded(batch()[0]), model(batch()[0]))


def test_mistakes_say_what_would_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"has no model 'resnet1O'.* Did you mean .*resnet"):
        create_timm('resnet1O')
    with pytest.raises(ConfigError, match='name of a model of timm'):
        create_timm(18)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cannot build 'resnet10t' with \{'nclasses': 3\}: TypeError"):
        create_timm(NAME, nclasses=3)
    with pytest.raises(ConfigError, match="'pretrained', but got 'imagenet'"):
        TimmModel(NAME, data_preprocessor='imagenet')
    model = TimmModel(NAME, num_classes=5)
    with pytest.raises(ModeError, match='predict'):
        model(batch()[0], mode='predictions')
    with pytest.raises(DataError):
        model(batch()[0], torch.tensor([1]), mode='loss')
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'strop\[timm\]'"):
        create_timm(NAME)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    constants = pytest.importorskip('huggingface_hub.constants')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot give 'resnet10t' with its weights \(.*HF_HOME.*checkpoint_path="):
        MODELS.build(cfg(pretrained=True))


def test_a_checkpoint_file_is_read_without_a_network(tmp_path: Any) -> None:
    source = create_timm(NAME, num_classes=5)
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    model = MODELS.build(cfg(checkpoint_path=str(tmp_path / 'weights.pth')))
    assert torch.equal(model.model.fc.weight, source.fc.weight)
