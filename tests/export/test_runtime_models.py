from __future__ import annotations

from typing import Any

import pytest
import torch

from strop.export.runtime_models import RuntimeModel


@pytest.mark.parametrize(
    ('batches', 'size', 'ran'),
    [
        ((1, 4), 11, [4, 4, 1, 1, 1]),
        ((4,), 11, [4, 4, 4]),  # the last part repeats a sample
        ((8, 3), 4, [3, 3]),
        ((4, 11), 11, [11]),
        ((), 11, [11]),
    ],
)
def test_a_score_needs_no_batch_size_but_those_that_have_run(batches: tuple[int, ...], size: int, ran: list[int]) -> None:
    seen = []

    def run(tensors: Any) -> list[torch.Tensor]:
        seen.append(len(tensors[0]))
        return [tensors[0] - 2 * tensors[1], tensors[1].sum(1)]

    first, second = torch.rand(size, 3), torch.rand(size, 3)
    found = RuntimeModel(run, ('b', 'a'), batches)(a=second, b=first)
    assert seen == ran
    assert torch.equal(found[0], first - 2 * second)
    assert torch.equal(found[1], second.sum(1))


def test_what_gives_one_value_for_a_batch_is_scored_on_the_whole_batch() -> None:
    rows = torch.rand(11, 3)
    total = RuntimeModel(lambda tensors: [tensors[0].sum()], batches=(1, 4))
    assert float(total(rows)) == float(rows.sum())
    transposed = RuntimeModel(lambda tensors: [tensors[0].T], batches=(4,))
    assert torch.equal(transposed(rows), rows.T)
