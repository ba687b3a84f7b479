from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import strop
from strop.compression.calling import Answers, Compiled, laid, layout_for
from strop.errors import ConfigError, NotDecidedError
from strop.mutables import LayerChoice
from strop.mutables.binding import bind


class Flattens(nn.Module):
    """A network of the kind that flattens by `view`."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        return self.head(x.view(x.size(0), -1))


class Reshapes(Flattens):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).flatten(1))


class TestLayouts:
    @pytest.mark.parametrize('weights', [False, True])
    def test_what_a_model_takes(self, weights: bool) -> None:
        images = torch.rand(4, 3, 8, 8)
        assert layout_for(Reshapes(), images, weights) is torch.channels_last
        assert layout_for(Flattens(), images, weights) is torch.contiguous_format

    def test_images_of_one_channel_are_seen_to_be_in_a_layout(self) -> None:
        images, model = torch.rand(4, 1, 8, 8), nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
        seen = laid(images, torch.channels_last)
        assert torch.equal(seen, images)
        assert torch.equal(laid(images[1:], torch.channels_last), images[1:])
        assert model(seen).is_contiguous(memory_format=torch.channels_last)
        assert model(laid(seen, torch.contiguous_format)).is_contiguous()
        assert layout_for(model, images) is torch.channels_last
        assert layout_for(Flattens(1), images) is torch.contiguous_format
        with pytest.raises(RuntimeError, match='view size is not compatible'):
            Flattens(1)(seen)

    def test_of_what_is_made_contiguous_inside_the_weights_decide(self) -> None:
        class Orders(Flattens):
            def forward(self, images: Tensor) -> Tensor:
                return super().forward(images.contiguous())

        images = torch.rand(4, 3, 8, 8)
        assert layout_for(Orders(), images) is torch.channels_last
        assert layout_for(Orders(), images, weights=True) is torch.contiguous_format

    def test_the_model_stays_as_it_is(self) -> None:
        model = Flattens().train()
        model.features[1].eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        strides = [parameter.stride() for parameter in model.parameters()]
        for weights in (False, True):
            layout_for(model, torch.rand(4, 3, 8, 8), weights)
        assert [module.training for module in model.features][:3] == [True, False, True]
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert [parameter.stride() for parameter in model.parameters()] == strides

    def test_an_undecided_supernet_is_said_to_be_one(self) -> None:
        supernet = nn.Sequential(LayerChoice([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)], key='kernel'))
        for weights in (False, True):
            with pytest.raises(NotDecidedError):
                layout_for(supernet, torch.rand(2, 3, 8, 8), weights)
        bind(supernet).apply({'kernel': 1})
        assert layout_for(supernet, torch.rand(2, 3, 8, 8), weights=True) is torch.channels_last

    def test_without_images_nothing_is_called(self) -> None:
        def fail(*_: Any) -> None:
            raise AssertionError

        model = nn.Linear(3, 2)
        model.register_forward_hook(fail)
        assert layout_for(model, {'tokens': torch.ones(2, 3), 'mask': [torch.ones(2)]}) is torch.contiguous_format

    def test_every_image_of_nested_inputs_is_laid(self) -> None:
        images, rows = torch.rand(2, 3, 4, 4), torch.rand(2, 3)
        found = laid({'a': images, 'b': (rows, images)}, torch.channels_last)
        assert found['a'].stride() == found['b'][1].stride() == (48, 1, 12, 3)
        assert found['b'][0] is rows
        assert torch.equal(found['a'], images)


class Multiplies(nn.Module):
    """A network of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 64), nn.Linear(4, 64)
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.first(first) * self.second(second))))


class Pairs(torch.utils.data.Dataset[Any]):
    """Two tensors a sample, which a loader makes a list of."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        return (torch.rand(8, generator=generator) + index % 2, torch.rand(4, generator=generator)), index % 2


@pytest.mark.parametrize(
    'stages',
    [
        [
            {'prune': {'rehearse': 2, 'tries': 1}},
            {'distill': {'epochs': 1}},
            {'quantize': {'backend': 'onnxruntime'}},
            'export',
        ],
        [{'prune': {'ratio': 0.5, 'importance': 'taylor'}}, {'quantize': {'backend': 'inductor'}}],
    ],
)
def test_a_network_of_two_inputs_goes_through_the_chain(tmp_path: Path, stages: list[Any]) -> None:
    pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    found = strop.compress(
        Multiplies(), {'train': Pairs(), 'test': Pairs()}, stages=stages, output=tmp_path / 'out', runtimes=['eager'],
        budget={'params': 0.7}, progress='quiet', threads=1,
    )  # fmt: skip
    assert found.result.stages[1].resources.params <= 0.7 * found.result.stages[0].resources.params
    assert 0 <= found.result.stages[-1].scores.get('accuracy', 0.0) <= 1


def _stripes(count: int, channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(count, channels, 8, 8, generator=generator), torch.arange(count) % 2
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    return images, labels


@pytest.mark.parametrize('channels', [1, 3])
def test_a_network_that_flattens_by_view_goes_through_the_chain(tmp_path: Path, channels: int) -> None:
    pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    found = strop.compress(
        Flattens(channels), {'train': _stripes(320, channels), 'test': _stripes(64, channels)},
        stages=[
            {'finetune': {'epochs': 3, 'lr': 0.05}}, {'prune': {'ratio': 0.5}}, {'distill': {'epochs': 2}},
            {'quantize': {'backend': 'onnxruntime'}}, 'export',
        ],
        output=tmp_path / 'out', runtimes=['eager', 'onnxruntime'], progress='quiet',
    )  # fmt: skip
    assert found.result.stages[-2].scores['accuracy'] > 0.9
    again = strop.load(tmp_path / 'out', factory=lambda: Flattens(channels))
    assert again(torch.rand(2, channels, 8, 8)).shape == (2, 2)


def _counting(model: nn.Module) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    model.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    return shapes


def test_one_shape_runs_compiled_and_others_as_always(monkeypatch):
    model, compiled_for = nn.Linear(3, 2), []

    def compiled(module, dynamic):
        assert dynamic is False
        return lambda *args, **kwargs: compiled_for.append(args[0].shape) or module.forward(*args, **kwargs)

    monkeypatch.setattr(torch, 'compile', compiled)
    plain, run = _counting(model), Compiled(model, torch.rand(8, 3))
    for rows in (8, 5, 8, 1):
        x = torch.rand(rows, 3)
        assert torch.equal(run(x), model.forward(x))
    assert compiled_for == [(8, 3), (8, 3)]
    assert plain == [(5, 3), (1, 3)]


def test_what_is_compiled_learns_as_the_model_does():
    torch.manual_seed(0)
    model, x = Flattens().train(), torch.rand(4, 3, 8, 8)
    twin = Flattens().train()
    twin.load_state_dict(model.state_dict())
    run = Compiled(model, x)
    run(x).square().mean().backward()
    twin(x).square().mean().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(model.features[1].running_mean, twin.features[1].running_mean)


def test_a_model_that_cannot_be_compiled_is_told_and_its_own_errors_stay(monkeypatch):
    def broken(module, dynamic):
        def run(*args, **kwargs):
            raise RuntimeError('no working C++ compiler found')

        return run

    monkeypatch.setattr(torch, 'compile', broken)
    with pytest.raises(ConfigError, match=r'compile Linear here: RuntimeError: no working C.*Leave `compile` out'):
        Compiled(nn.Linear(3, 2), torch.rand(4, 3))(torch.rand(4, 3))
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        Compiled(nn.Linear(3, 2), torch.rand(4, 5))(torch.rand(4, 5))


def test_answers_are_of_equal_inputs_only():
    answers, number = Answers(), iter(range(100))

    def found(inputs):
        return float(answers.of(inputs, lambda: torch.tensor(float(next(number)))))

    x, y = torch.arange(16.0).reshape(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    different = [
        x, y, x.double(), x.reshape(1, 4, 4), [x, y], [y, x], {'a': x, 'b': y}, {'b': x, 'a': y},
        {'x': x, 'task': ['a']}, {'x': x, 'task': ['b']}, {'x': x, 'scale': 1},
    ]  # fmt: skip
    first = [found(inputs) for inputs in different]
    assert first == list(range(len(different)))
    assert [found(inputs) for inputs in different] == first
    assert found(x.clone().contiguous(memory_format=torch.channels_last)) == 0, 'the layout is no part of the content'
    assert found({'x': x.clone(), 'task': ['b']}) == 9


def test_answers_keep_no_more_bytes_than_they_may():
    calls = []

    def ask(answers, inputs):
        def find():
            calls.append(1)
            return torch.zeros(8, 1000, 4)[:, 0]  # a view of something large: 128 bytes of 128,000

        return answers.of(inputs, find)

    answers = Answers(most=2 * 8 * 4 * 4)
    several = [torch.full((1,), float(number)) for number in range(3)]
    kept = [ask(answers, inputs) for inputs in several]
    assert [entry.untyped_storage().nbytes() for entry in kept] == [128, 128, 128_000]
    for inputs in several:
        ask(answers, inputs)
    assert len(calls) == 4, 'the third does not fit, and is asked for again'
