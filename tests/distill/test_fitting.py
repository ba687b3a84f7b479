import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import strop
from strop.distill import distiller_for
from strop.errors import ComponentTypeError, ConfigError

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def cnn(width, classes=5, stride=2):
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=stride, padding=1),
        nn.BatchNorm2d(width),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(width, classes),
    )


def step(distiller, teacher, student, *args, **kwargs):
    with distiller.record(teacher, student):
        with torch.no_grad():
            teacher(*args, **kwargs)
        student(*args, **kwargs)
    return distiller.loss()


def trains(distiller, teacher, student, steps=3, **kwargs):
    """Check that a few steps make the loss smaller, and the teacher no different."""
    teacher.eval()
    student.eval()  # without noise, a few steps are enough to see it
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = step(distiller, teacher, student, **kwargs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_loss_is_that_of_logits_and_projected_features():
    teacher, student = cnn(8).eval(), cnn(4, stride=4)
    distiller = distiller_for(
        student, teacher, X, features={'1': '1', '2': '2'}, temperature=2, logits_weight=0.5, features_weight=3
    )
    loss = step(distiller, teacher, student, X)
    student.train()
    maps, vectors = student[1](student[0](X)), student[:3](X)
    up, wide = distiller.connectors['to_1'], distiller.connectors['to_2']
    assert [type(part).__name__ for part in up] == ['ConvModuleConnector', 'TorchFunctionalConnector']
    projected = F.interpolate(up[0](maps), size=(16, 16), mode='bilinear', align_corners=False)
    expected = 3 * F.mse_loss(projected, teacher[:2](X)) + 3 * F.mse_loss(wide(vectors), teacher[:3](X))
    soft = [F.log_softmax(logits / 2, 1) for logits in (student(X), teacher(X))]
    expected += 0.5 * 4 * F.kl_div(*soft, log_target=True, reduction='batchmean')
    torch.testing.assert_close(loss, expected)


def test_nothing_is_projected_that_meets():
    distiller = distiller_for(cnn(8), cnn(8), X, features=['1', '2'])
    assert not list(distiller.parameters())
    assert set(distiller.distill_losses) == {'loss_logits', 'loss_1', 'loss_2'}


def test_modes_statistics_and_gradients_are_as_before():
    student = cnn(4).train()
    student[1].eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    distiller_for(student, cnn(8), X, features=['1'])
    assert student.training
    assert not student[1].training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not student[1]._forward_hooks


def test_features_of_another_batch_are_not_stretched():
    teacher, student = cnn(8), cnn(8)
    distiller = distiller_for(student, teacher, X, features=['0'], logits=False)
    with distiller.record(teacher, student):
        with torch.no_grad():
            teacher(X[:1])
        student(X)
    with pytest.raises(ConfigError, match=r'preds_S is \(2, 8, 16, 16\).*preds_T is \(1, 8, 16, 16\)'):
        distiller.loss()


def test_connectors_and_losses_of_ones_own():
    connector = nn.Conv2d(4, 8, 3, padding=1)
    distiller = strop.distiller_for(
        cnn(4), cnn(8), X, features=['1'], logits=False, connectors={'1': connector}, feature_loss=dict(type='PKDLoss')
    )
    assert distiller.connectors['to_1'] is connector
    assert set(distiller.distill_losses) == {'loss_1'}
    assert distiller_for(cnn(4), cnn(8), X, logits_loss=dict(type='DISTLoss')).distill_losses['loss_logits'].tau == 1


def test_paths_that_would_share_a_name_are_kept_apart():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 2, 1))
            self.a_0 = nn.Conv2d(2, 2, 1)
            self.logits = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x):
            return self.logits(self.a_0(self.a(x)))

    distiller = distiller_for(Named(), Named(), X, features=['a.0', 'a_0', 'logits'])
    assert set(distiller.distill_losses) == {'loss_logits', 'loss_logits_', 'loss_a_0', 'loss_a_0_'}
    sources = {recorder.source for recorder in distiller.student_recorders.recorders.values()}
    assert sources == {'', 'a.0', 'a_0', 'logits'}


def test_precision_is_the_students():
    distiller = distiller_for(cnn(4).double(), cnn(8).double(), X.double(), features=['1'])
    assert next(distiller.parameters()).dtype == torch.float64


def test_timm_models():
    torch.manual_seed(0)
    teacher = timm.create_model('resnet26', num_classes=6)
    student = timm.create_model('mobilenetv3_small_050', num_classes=6)
    distiller = distiller_for(student, teacher, X, features={'blocks.3': 'layer3', 'blocks.5': 'layer4'})
    trains(distiller, teacher, student, x=X)


def test_vision_transformers_of_timm():
    settings = dict(img_size=32, patch_size=8, num_classes=6, num_heads=2)
    teacher = timm.create_model('vit_tiny_patch16_224', embed_dim=24, depth=3, **settings)
    student = timm.create_model('vit_tiny_patch16_224', embed_dim=16, depth=2, **settings)
    distiller = distiller_for(student, teacher, X, features={'blocks.0': 'blocks.1', 'norm': 'norm'})
    assert [type(connector).__name__ for connector in distiller.connectors.values()] == ['TorchNNConnector'] * 2
    trains(distiller, teacher, student, x=X)


def test_torchvision_models():
    torchvision = pytest.importorskip('torchvision')
    torch.manual_seed(0)
    teacher, student = (torchvision.models.resnet18(num_classes=4) for _ in range(2))
    distiller = distiller_for(student, teacher, X, features=['layer1', 'layer4'])
    trains(distiller, teacher, student, x=X)


def test_a_classifier_of_transformers():
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)

    def bert(width, layers):
        shape = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width)
        config = transformers.BertConfig(vocab_size=50, num_labels=3, max_position_embeddings=16, **shape)
        return transformers.BertForSequenceClassification(config)

    teacher, student = bert(32, 3), bert(16, 2)
    batch = dict(input_ids=torch.arange(12).view(2, 6), attention_mask=torch.ones(2, 6, dtype=torch.long))
    features = {'bert.embeddings': 'bert.embeddings', 'bert.encoder.layer.1': 'bert.encoder.layer.2'}
    distiller = distiller_for(student, teacher, batch, features=features)
    assert distiller.loss_forward_mappings['loss_logits']['preds_S']['data_idx'] == 'logits'
    trains(distiller, teacher, student, **batch)


def test_a_language_model_of_transformers():
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)

    def gpt(width, layers):
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=width, n_layer=layers, n_head=2, use_cache=False)
        )

    teacher, student = gpt(16, 2), gpt(8, 1)
    batch = dict(input_ids=torch.arange(12).view(2, 6))
    distiller = distiller_for(student, teacher, batch, temperature=1)
    assert type(distiller.distill_losses['loss_logits']).__name__ == 'TokenKLDivergence'
    trains(distiller, teacher, student, **batch)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(features=['2.x']), r"no module '2\.x'"),
        (dict(features='1'), 'mapping of paths or a list'),
        (dict(features=[1]), 'mapping of paths or a list'),
        (dict(logits=False), 'nothing to compare'),
        (
            dict(features={'1': '2'}),
            r"student '1' gives \(2, 4, 16, 16\), the teacher '2' \(2, 8\).*connectors=\{'1': module\}",
        ),
        (dict(features=['1'], connectors={'2': nn.Identity()}), "`connectors` has '2'"),
    ],
)
def test_bad_input(settings, words):
    with pytest.raises(ConfigError, match=words):
        distiller_for(cnn(4), cnn(8), X, **settings)


def test_outputs_of_other_classes():
    with pytest.raises(ConfigError, match=r'student have the shape \(2, 5\), those of the teacher \(2, 7\)'):
        distiller_for(cnn(4), cnn(8, classes=7), X)
    with pytest.raises(ComponentTypeError, match='`teacher` must be an nn.Module, but got str'.replace('.', r'\.')):
        distiller_for(cnn(4), 'resnet50', X)


def test_outputs_of_several_tensors():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn(4)

        def forward(self, x):
            return self.net(x), self.net(x)

    with pytest.raises(ConfigError, match=r'What the teacher gives is a tuple that holds 0, 1, not one tensor'):
        distiller_for(cnn(4), Two(), X)


def test_inputs_are_seen_by_both_models_wherever_they_are():
    student, teacher = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), nn.Linear(4, 3, device='meta')
    assert distiller_for(student, teacher, torch.randn(2, 4)) is not None
