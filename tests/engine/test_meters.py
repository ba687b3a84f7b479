import json

import pytest
import torch

from strop.engine import AverageMeter, AverageMeterGroup, start_process_group

from .forked import in_group


def test_a_mean_is_weighted_by_the_number_of_samples():
    meter = AverageMeter('loss', ':.2f')
    meter.update(torch.tensor(1.0, requires_grad=True), n=3)
    meter.update(5, n=1)
    assert meter.avg == 2.0
    assert meter.val == 5.0
    assert str(meter) == 'loss 5.00 (2.00)'
    assert meter.summary() == 'loss: 2.00'
    meter.reset()
    assert meter.avg == 0.0


def test_a_group_has_a_meter_for_each_name():
    group = AverageMeterGroup()
    group.update({'a': 1, 'b': 2})
    group.update({'a': 3})
    assert list(group) == ['a', 'b']
    assert group['a'].avg == 2.0
    assert group.reduce().means() == {'a': 2.0, 'b': 2.0}
    assert group.summary() == 'a: 2.0000  b: 2.0000'
    with pytest.raises(KeyError):
        group['c']


def one_of_two_has_no_samples(rank, folder):
    start_process_group()
    group = AverageMeterGroup()
    if rank:
        group.update({'a': 1, 'b': 2})
        group.update({'a': 4}, n=2)
    (folder / f'{rank}.json').write_text(json.dumps([group.reduce().means(), AverageMeterGroup().reduce().means()]))


def test_a_process_without_samples_takes_part(tmp_path):
    in_group(one_of_two_has_no_samples, tmp_path, folder=tmp_path)
    for rank in range(2):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == [{'a': 3.0, 'b': 2.0}, {}]
