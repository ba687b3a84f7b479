import pytest
import torch
from torch import nn

from strop.engine import kept_batch_norms, recalibrate_batch_norms


def net():
    return nn.Sequential(nn.BatchNorm1d(1, dtype=torch.float64), nn.Dropout(0.5), nn.BatchNorm1d(1, dtype=torch.float64))


BATCHES = [torch.tensor(rows, dtype=torch.float64)[:, None] for rows in ([0.0, 4.0], [1.0, 3.0], [10.0, 30.0])]


def test_statistics_are_the_averages_over_the_batches_that_are_needed():
    model = net()
    model[0].running_mean.fill_(99.0)
    used = recalibrate_batch_norms(model, BATCHES, lambda batch: len(model(batch)), images=3)
    assert used == 4
    # Means 2 and 2; unbiased variances 8 and 2.
    assert model[0].running_mean.item() == 2.0
    assert model[0].running_var.item() == 5.0
    # The first norm gives -+2 / sqrt(4) and -+1 / sqrt(1), so the second sees unbiased variances 2 and 2.
    assert model[2].running_mean.item() == pytest.approx(0.0, abs=1e-12)
    assert model[2].running_var.item() == pytest.approx(2.0, rel=2e-5)
    assert not any(module.training for module in model.modules())


def test_all_batches_are_used_where_images_are_few():
    model = net()
    assert recalibrate_batch_norms(model, BATCHES, lambda batch: len(model(batch)), images=1000) == 6
    assert model[0].running_mean.item() == 8.0


def test_no_gradient_and_no_dropout():
    model = net()
    outputs = []

    def forward(batch):
        outputs.append(model(batch))
        return len(batch)

    recalibrate_batch_norms(model, BATCHES, forward, images=6)
    assert not any(output.requires_grad for output in outputs)
    assert all(bool(output.abs().gt(0).all()) for output in outputs)


def test_norms_without_statistics_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False))
    recalibrate_batch_norms(model, [torch.zeros(2, 1)], lambda batch: len(model(batch)), images=2)
    assert model[0].running_mean is None


def test_statistics_are_put_back():
    model = net().train()
    model[0].eval()
    model[0].momentum = 0.3
    model(BATCHES[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fail():
        with kept_batch_norms(model):
            recalibrate_batch_norms(model, BATCHES, lambda batch: len(model(batch)), images=2)
            assert model[0].momentum is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].momentum == 0.3
    assert model[2].momentum == 0.1
    assert (model[0].training, model[2].training) == (False, True)
