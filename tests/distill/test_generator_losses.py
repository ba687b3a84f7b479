"""Losses that train generators, against their formulas; and what losses exchange between processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from strop.distill import ActivationLoss, CRDLoss, InformationEntropyLoss, OnehotLikeLoss
from strop.errors import ComponentTypeError, ConfigError
from strop.registry import MODELS

GENERATOR = torch.Generator().manual_seed(0)
T = torch.randn(5, 4, dtype=torch.float64, generator=GENERATOR)
OTHER = torch.nn.functional.normalize(torch.randn(5, 4, dtype=torch.float64, generator=GENERATOR))
INDEX = torch.tensor([0, 8, 3, 4, 5])
LOSSES = [ActivationLoss(), ActivationLoss(norm_type='norm'), OnehotLikeLoss(), InformationEntropyLoss()]


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(z) for z in logits]
    return [power / sum(powers) for power in powers]


def close(loss: Tensor, expected: float) -> None:
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_activation_by_its_formulas() -> None:
    numbers = T.flatten().tolist()
    close(ActivationLoss(2.0)(T), -2 * sum(map(abs, numbers)) / 20)
    close(ActivationLoss(2.0, 'norm')(T), -2 * math.sqrt(sum(v * v for v in numbers)))
    close(ActivationLoss()(T.reshape(5, 2, 2)), -sum(map(abs, numbers)) / 20)


def test_likeness_to_one_class_by_its_formula() -> None:
    close(OnehotLikeLoss(3.0)(T), 3 * sum(-math.log(max(softmax(row))) for row in T.tolist()) / 5)


def test_balance_of_classes_by_its_formula() -> None:
    mean = [sum(column) / 5 for column in zip(*map(softmax, T.tolist()))]
    close(InformationEntropyLoss(loss_weight=3.0)(T), 3 * sum(p * math.log10(p) for p in mean))


def test_balance_is_least_where_all_classes_come_equally_often() -> None:
    least = InformationEntropyLoss()(100 * torch.eye(4, dtype=torch.float64))
    close(least, -math.log10(4))
    assert InformationEntropyLoss()(T) > least


@pytest.mark.parametrize('loss', LOSSES)
def test_gradients(loss) -> None:
    assert torch.autograd.gradcheck(loss, T.clone().requires_grad_())


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_sure_teachers_give_finite_gradients(loss, dtype) -> None:
    # One class takes it all, so that the others have no probability in any precision.
    logits = torch.tensor([[1e4, 0, -1e4, 1]] * 3).to(dtype).requires_grad_()
    value = loss(logits)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize('loss', [OnehotLikeLoss(), InformationEntropyLoss()])
def test_bad_inputs(loss) -> None:
    with pytest.raises(ConfigError, match=r'\(n, classes\), but got shape \(5, 2, 2\)'):
        loss(T.reshape(5, 2, 2))
    with pytest.raises(ComponentTypeError, match='teacher gave a list'):
        loss([T])


def test_bad_norm_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'abs'"):
        ActivationLoss(norm_type='ab')


def test_built_from_configs() -> None:
    assert MODELS.build(dict(type='mmrazor.OnehotLikeLoss', loss_weight=0.05)).loss_weight == 0.05
    assert MODELS.build(dict(type='mmrazor.InformationEntropyLoss', loss_weight=5, gather=False)).gather is False
    assert MODELS.build(dict(type='mmrazor.ActivationLoss', loss_weight=0.01, norm_type='abs')).norm_type == 'abs'


# -- two processes ------------------------------------------------------------------------------------------------


def contrast() -> CRDLoss:
    torch.manual_seed(0)
    return CRDLoss(neg_num=8, sample_n=9, dim_out=4).double()


def gradient(rows: slice, gather: bool = True) -> Tensor:
    weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
    InformationEntropyLoss(gather)(T[rows] @ weight).backward()
    return weight.grad


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    rows = slice(0, 3) if rank == 0 else slice(3, 5)
    loss = contrast()
    torch.manual_seed(0)
    loss(OTHER[rows], OTHER[rows].flip(1), INDEX[rows])
    found = {'together': gradient(rows), 'alone': gradient(rows, gather=False), **loss.state_dict()}
    torch.save(found, f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_of_unequal_batches_are_one_of_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method='spawn')
    first, second = (torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in range(2))
    # DDP takes the mean of the gradients.
    torch.testing.assert_close((first['together'] + second['together']) / 2, gradient(slice(None)))
    assert not torch.allclose((first['alone'] + second['alone']) / 2, gradient(slice(None)))
    whole = contrast()
    whole(OTHER, OTHER.flip(1), INDEX)
    for name in ('memory_S', 'memory_T'):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], whole.state_dict()[name])
    assert torch.equal(first['scale'], second['scale'])
    assert (first['scale'] > 0).all()
