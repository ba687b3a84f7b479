"""Generators of images: sizes, latent vectors, what they learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.architectures import DAFLGenerator, ZSKTGenerator
from strop.errors import ConfigError
from strop.registry import MODELS

BOTH = pytest.mark.parametrize('kind', ['DAFLGenerator', 'ZSKTGenerator'])


def make(kind: str, **options: object) -> nn.Module:
    return MODELS.build({'type': f'mmrazor.{kind}', 'img_size': 8, 'latent_dim': 5, 'hidden_channels': 6, **options})


@BOTH
@pytest.mark.parametrize(
    ('options', 'shape'),
    [
        ({}, (3, 3, 8, 8)),
        (dict(img_size=28, channels=1), (3, 1, 28, 28)),
        (dict(img_size=27, scale_factor=3), (3, 3, 27, 27)),
        (dict(img_size=5, scale_factor=1, hidden_channels=7), (3, 3, 5, 5)),
    ],
)
def test_images_have_the_size_that_was_asked_for(kind: str, options: dict, shape: tuple) -> None:
    assert make(kind, **options)(batch_size=3).shape == shape


def test_parameters_counted_by_hand() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    hidden = 5 * 24 + 24 + 2 * 6 + (6 * 6 * 9 + 6) + 2 * 6 + (6 * 3 * 9 + 3) + 2 * 3 + (3 * 3 * 9 + 3)
    assert count(make('DAFLGenerator')) == hidden
    assert count(make('ZSKTGenerator')) == hidden + 2 * 3


def test_the_parameters_have_the_names_of_checkpoints_in_use() -> None:
    dafl, zskt = set(make('DAFLGenerator').state_dict()), set(make('ZSKTGenerator').state_dict())
    assert {'linear.weight', 'bn1.weight', 'conv_blocks1.0.weight', 'conv_blocks1.1.bias'} < dafl
    assert {'conv_blocks2.0.weight', 'conv_blocks2.3.weight', 'conv_blocks2.5.running_mean'} < dafl
    assert {f'layers.{place}.weight' for place in (0, 2, 4, 5, 8, 9, 11, 12)} < zskt


@BOTH
def test_latent_vectors_are_given_drawn_or_made_by_a_function(kind: str) -> None:
    generator = make(kind).eval()
    vectors = torch.randn(4, 5)
    images = generator(vectors)
    assert torch.equal(images, generator(vectors, batch_size=4))
    assert torch.equal(images, generator(lambda batch, size: vectors[:batch, :size], batch_size=4))
    torch.manual_seed(0)
    drawn = generator(batch_size=2)
    torch.manual_seed(0)
    assert torch.equal(drawn, generator(torch.randn(2, 5)))


@BOTH
def test_images_are_normalised_over_the_batch_while_training(kind: str) -> None:
    images = make(kind).train()(torch.randn(64, 5)).transpose(0, 1).flatten(1)
    assert torch.allclose(images.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(images.std(1), torch.ones(3), atol=1e-2)


@BOTH
def test_a_generator_learns_to_be_bright_where_it_is_told(kind: str) -> None:
    torch.manual_seed(0)
    generator = make(kind, hidden_channels=16, channels=1)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    vectors = torch.randn(32, 5)
    centre = torch.zeros(8, 8)
    centre[2:6, 2:6] = 1
    heights = []
    for _ in range(40):
        images = generator(vectors)[:, 0]
        inside = (images * centre).sum((1, 2)) / 16 - (images * (1 - centre)).sum((1, 2)) / 48
        optimizer.zero_grad()
        (-inside.mean()).backward()
        assert all(parameter.grad is not None for parameter in generator.parameters())
        optimizer.step()
        heights.append(inside.mean().item())
    assert heights[-1] > heights[0] + 0.5


@BOTH
def test_half_precision_is_finite(kind: str) -> None:
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.isfinite(make(kind)(batch_size=4)).all()


@pytest.mark.parametrize('cls', [DAFLGenerator, ZSKTGenerator])
@pytest.mark.parametrize(
    ('sizes', 'message'),
    [((30, 5, 6), 'multiple of 4.*32 would do'), ((2, 5, 6), '4 would do'), ((8, 0, 6), 'positive'), ((8, 5, 1), 'at least 2')],
)
def test_sizes_are_checked(cls: type, sizes: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(*sizes)


@BOTH
def test_latent_vectors_are_checked(kind: str) -> None:
    generator = make(kind)
    with pytest.raises(ConfigError, match=r'\(batch, 5\), but got \(4, 6\)'):
        generator(torch.randn(4, 6))
    with pytest.raises(ConfigError, match='leave it out'):
        generator(torch.randn(4, 5), batch_size=3)
    for number in (None, 0, 2.5):
        with pytest.raises(ConfigError, match='how many to draw'):
            generator(batch_size=number)
