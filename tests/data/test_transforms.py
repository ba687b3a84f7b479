from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.data.transforms import TensorNormalize, TensorRandomCrop, TensorRandomFlip, Transforms
from strop.errors import ConfigError, UnknownTypeError

IMAGE = torch.arange(1, 37, dtype=torch.uint8).reshape(1, 6, 6)


def test_normalise_by_hand() -> None:
    image = torch.tensor([[[10]], [[20]]], dtype=torch.uint8)
    assert TensorNormalize([4.0, 0.0], [2.0, 5.0])(image).flatten().tolist() == [3.0, 4.0]
    with pytest.raises(ConfigError):
        TensorNormalize([1.0], [1.0, 2.0])
    with pytest.raises(ConfigError):
        TensorNormalize([1.0], [0.0])
    for mean, other in (([1.0], image), ([1.0, 2.0], image[:1]), ([1.0, 2.0, 3.0], image), ([1.0], image[0])):
        with pytest.raises(ConfigError, match=f'has {len(mean)} numbers, one a channel'):
            TensorNormalize(mean, [1.0] * len(mean))(other)


@given(st.integers(0, 2**32), st.integers(0, 4))
def test_crop_is_a_window_of_the_padded_image(seed: int, padding: int) -> None:
    crop = TensorRandomCrop(padding=padding).apply(IMAGE, np.random.default_rng(seed))
    assert crop.shape == IMAGE.shape
    padded = torch.nn.functional.pad(IMAGE, (padding,) * 4)
    windows = [padded[:, i : i + 6, j : j + 6] for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    assert any(torch.equal(crop, window) for window in windows)


def test_crop_reaches_every_place() -> None:
    crop = TensorRandomCrop(size=5, padding=0)
    seen = {int(crop.apply(IMAGE, np.random.default_rng(seed))[0, 0, 0]) for seed in range(60)}
    assert seen == {1, 2, 7, 8}
    with pytest.raises(ConfigError, match='does not fit'):
        TensorRandomCrop(size=9, padding=1)(IMAGE)
    with pytest.raises(ConfigError):
        TensorRandomCrop(padding=-1)


def test_flip() -> None:
    assert torch.equal(TensorRandomFlip(1.0)(IMAGE), IMAGE.flip(-1))
    assert torch.equal(TensorRandomFlip(0.0)(IMAGE), IMAGE)
    flips = [torch.equal(TensorRandomFlip(0.3).apply(IMAGE, np.random.default_rng(i)), IMAGE.flip(-1)) for i in range(1000)]
    assert 0.25 < np.mean(flips) < 0.35
    with pytest.raises(ConfigError):
        TensorRandomFlip(1.1)


def test_a_counter_decides_everything_that_is_drawn() -> None:
    def noise(image: torch.Tensor) -> torch.Tensor:
        return image + torch.rand(1) + float(np.random.rand())

    both = Transforms([{'type': 'TensorRandomCrop', 'padding': 2}, TensorRandomFlip(), noise], seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = both(IMAGE, counter=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(both(IMAGE, counter=3), first)
    assert not torch.equal(both(IMAGE, counter=4), first)
    assert not torch.equal(Transforms(both.transforms, seed=2)(IMAGE, counter=3), first)


def test_without_a_counter_the_global_generator_draws() -> None:
    flips = Transforms([TensorRandomFlip(), TensorRandomCrop(padding=3)])
    torch.manual_seed(0)
    first = [flips(IMAGE) for _ in range(8)]
    torch.manual_seed(0)
    again = [flips(IMAGE) for _ in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(first[0], other) for other in first)


def test_torchvision_transforms_are_seeded_as_well() -> None:
    v2 = pytest.importorskip('torchvision.transforms.v2')
    both = Transforms([v2.RandomCrop(4, padding=2), v2.ToDtype(torch.float32, scale=True)], seed=0)
    assert torch.equal(both(IMAGE, counter=1), both(IMAGE, counter=1))
    assert both(IMAGE, counter=1).shape == (1, 4, 4)


def test_what_is_no_transform() -> None:
    with pytest.raises(ConfigError, match='callable'):
        Transforms(['TensorRandomFlip'])
    with pytest.raises(UnknownTypeError, match='TensorRandomFlip'):
        Transforms([{'type': 'TensorRandomFlop'}])
