"""Models of a plan: built as they will be, measured once, remembered by a plan that was killed."""

from __future__ import annotations

import copy

import pytest
import torch

from strop.compression import Judge
from strop.compression.budget import Budget
from strop.compression.calling import as_batches
from strop.compression.ladder import Rung
from strop.compression.learning import DistillStage
from strop.compression.progress import Progress
from strop.compression.scoring import Normed
from strop.compression.stage import Surroundings
from strop.compression.workshop import Workshop
from strop.errors import StropError
from strop.graph import channel_units
from strop.pruning import Ranking, build_importance, recalibrate, score
from tests.compression.conftest import small_net


@pytest.fixture
def shop(tmp_path, parts, by_count):
    """Return what makes workshops on the same folder, for one model."""
    model = small_net()
    graph = channel_units(model, parts.example(1))
    found = score(graph, model, build_importance('l1', seed=0))
    calibration = parts.inputs('calibration')

    def make(follows=None, budget=None, recalibrate=True):
        budget = budget or Budget(latency=0.5, runtime='eager')
        around = Surroundings(
            'prune', model, parts, Judge(parts, model), budget, 0, 1, tmp_path, tmp_path / 'work', Progress.of('quiet')
        )
        around.follows = follows
        ranking = Ranking(graph, model, found)
        return Workshop(
            model, around, ranking, importance='l1', recalibrate=recalibrate, calibration=calibration
        )  # fmt: skip

    return make


def _narrow(found: Workshop) -> Rung:
    return Rung(found.ranking.lengths(0.5), (), 0.0, 0.0)


def test_the_whole_model_is_what_everything_is_compared_with(shop):
    found = shop()
    found.compare(10)
    assert found.harm(found.whole) == 0.0
    assert found.pace(found.whole).share == pytest.approx(1.0)
    assert found.excess(found.whole) == pytest.approx(2.0)  # half of the time is allowed
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(found.model(found.whole)(x), small_net()(x))


def test_a_narrow_model_takes_less_and_loses_something(shop):
    found = shop()
    found.compare(10)
    rung = _narrow(found)
    model, records = found.built(rung, check=True)
    assert sum(p.numel() for p in model.parameters()) == found.costs(rung).params < found.costs(found.whole).params
    assert (records[0].params[1], records[0].importance) == (found.costs(rung).params, 'l1')
    assert found.pace(rung).share < 1
    assert found.harm(rung) > 0
    assert set(found.layers(rung)['layers']) == set(found.layers(found.whole)['layers'])


def test_a_block_goes_out_whole(shop):
    found = shop()
    rung = Rung(found.whole.lengths, ('3',), 0.0, 0.0)
    assert len(found.built(rung)[1]) == 1
    assert found.costs(rung).macs < found.costs(found.whole).macs
    with pytest.raises(StropError):
        found.built(Rung(found.whole.lengths, ('4',), 0.0, 0.0))


def test_limits_that_are_counted_need_no_clock(shop):
    found = shop(budget=Budget(params=0.25))
    assert found.pace(found.whole).milliseconds == 0
    assert found.excess(found.whole) == pytest.approx(4.0)


def test_what_a_killed_plan_found_out_is_not_found_out_again(shop, monkeypatch):
    first = shop(DistillStage(epochs=1, lr=0.05))
    first.compare(10)
    rung = _narrow(first)
    known = first.pace(rung), first.harm(rung), first.untaught(rung), first.taught(rung, 2), first.layers(rung)
    assert first.taught(rung, 2)[0] != first.untaught(rung) or first.taught(rung, 2)[1] > 0

    def never(*args, **kwargs):
        raise AssertionError('it is known')

    second = shop(DistillStage(epochs=1, lr=0.05))
    second.compare(10)
    for name in ('model', 'built'):
        monkeypatch.setattr(second, name, never)
    assert (second.pace(rung), second.harm(rung), second.untaught(rung), second.taught(rung, 2), second.layers(rung)) == known


def test_without_a_stage_that_trains_nothing_is_taught(shop):
    found = shop()
    rung = _narrow(found)
    assert found.taught(rung, 2)[0] == shop(DistillStage()).taught(rung, 0)[0]


@pytest.mark.parametrize('again', [True, False])
def test_norms_are_chosen_once_and_taught_models_begin_with_them(shop, monkeypatch, again):
    found = shop(DistillStage())
    rung = _narrow(found)
    plain = found.model(rung)
    measured = copy.deepcopy(plain)
    recalibrate(measured, as_batches(found.around.data.inputs('calibration')))
    asked, begun = [], []

    def chosen(model, batches, judge):
        asked.append(sum(len(inputs) for inputs in batches))
        return Normed(measured if again else plain, 0.625, again)

    monkeypatch.setattr('strop.compression.workshop.with_better_norms', chosen)
    monkeypatch.setattr(DistillStage, 'rehearse', lambda self, model, around, steps: begun.append(model) or model)
    assert found.untaught(rung) == 0.625
    found.taught(rung, 2)
    found.taught(rung, 4)
    assert asked == [len(found.around.data.calibration)], 'once, on all samples that the stage will measure them on'
    for model in begun:
        for ours, theirs in zip(model.buffers(), (measured if again else plain).buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert not torch.equal(next(plain.buffers()), next(measured.buffers()))


def test_without_leave_to_measure_norms_they_stay(shop, monkeypatch):
    monkeypatch.setattr('strop.compression.workshop.with_better_norms', None)
    found = shop(recalibrate=False)
    rung = _narrow(found)
    assert found.untaught(rung) == found.around.judge.score(found.model(rung))
    assert found.taught(rung, 0)[0] == found.untaught(rung)


def test_many_validation_samples_are_drawn_from(shop, monkeypatch):
    found = shop()
    whole, rung = len(found.around.data.validation), _narrow(found)
    assert found.sampled is None
    assert found.screen is found.judge is found.around.judge
    monkeypatch.setattr('strop.compression.workshop._SCREENED', 5)
    found = shop(DistillStage())
    assert found.sampled == f'Models were scored on 5 of the {whole} validation samples, those that were taught on all.'
    monkeypatch.setattr('strop.compression.workshop._JUDGED', 7)
    found = shop(DistillStage())
    assert found.sampled == f'Models were scored on 5 of the {whole} validation samples, those that were taught on 7 of them.'
    seen = []
    monkeypatch.setattr('strop.compression.scoring.Judge.score', lambda self, *_: seen.append(len(self.data.validation)) or 0.5)
    monkeypatch.setattr(
        'strop.compression.scoring.Judge.score_and_gap', lambda self, *_: seen.append(len(self.data.validation)) or (0.5, 0.1)
    )
    monkeypatch.setattr(DistillStage, 'rehearse', lambda self, model, around, steps: model)
    found.untaught(rung)
    assert set(seen) == {5}
    seen.clear()
    found.taught(rung, 2)
    assert seen == [7]
