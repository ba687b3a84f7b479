"""A training that is killed between any two steps ends with the same bits as one that is not."""

from __future__ import annotations

import pytest
import torch

from strop.compression.calling import call
from strop.compression.training import Schedule, _Watch, train
from strop.errors import ConfigError, TrainingError
from tests.compression.conftest import small_net


class Killed(Exception):
    pass


def _run(judge, parts, folder, stop=None, **options):
    def tell(done: int, total: int) -> None:
        if stop is not None and done == stop:
            raise Killed

    def objective(student, inputs, targets, step):
        return {'loss': judge.loss(call(student, inputs), targets, inputs)}

    schedule = Schedule(**{'epochs': 3, 'lr': 0.1, 'checkpoint_steps': 2, **options})
    example = parts.example(parts.full_batch)
    return train(small_net(), parts.loader(0), objective, schedule, folder, seed=0, example=example, tell=tell)


@pytest.mark.parametrize(('stop', 'compile'), [(3, False), (4, False), (8, False), (4, True)])
def test_a_training_that_was_stopped_ends_with_the_same_bits_and_curve(judge, parts, tmp_path, stop, compile):
    whole = _run(judge, parts, tmp_path / 'whole', compile=compile)
    with pytest.raises(Killed):
        _run(judge, parts, tmp_path / 'parts', stop=stop, compile=compile)
    again = _run(judge, parts, tmp_path / 'parts', compile=compile)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert whole.curve == again.curve
    assert [point['step'] for point in whole.curve] == list(range(1, 10))


def test_a_training_killed_while_it_writes_a_checkpoint_has_the_same_curve(judge, parts, tmp_path, monkeypatch):
    # Points are means over three steps, checkpoints come after every second one.
    monkeypatch.setattr('strop.compression.training._POINTS', 3)
    whole = _run(judge, parts, tmp_path / 'whole')
    assert [point['step'] for point in whole.curve] == [3, 6, 9]
    written, save = [], _Watch.before_save_checkpoint

    def dying(self, runner, checkpoint):
        save(self, runner, checkpoint)
        written.append(checkpoint['meta']['iter'])
        if len(written) == 3:
            raise Killed

    monkeypatch.setattr(_Watch, 'before_save_checkpoint', dying)
    with pytest.raises(Killed):
        _run(judge, parts, tmp_path / 'parts')
    assert written == [2, 4, 6]
    assert _run(judge, parts, tmp_path / 'parts').curve == whole.curve


def test_training_makes_it_better_and_leaves_the_model_in_eval_mode_without_gradients(judge, parts, tmp_path):
    before = judge.score(small_net())
    found = _run(judge, parts, tmp_path, epochs=4)
    assert judge.score(found.model) > before
    assert not found.model.training
    assert all(parameter.grad is None for parameter in found.model.parameters())
    assert found.curve[-1]['loss'] < found.curve[0]['loss']


def test_a_loss_that_is_not_finite_stops_the_training(parts, tmp_path):
    def objective(student, inputs, targets, step):
        return {'loss': student(inputs).sum() * float('nan')}

    with pytest.raises(TrainingError, match='not finite'):
        train(small_net(), parts.loader(0), objective, Schedule(epochs=1), tmp_path, seed=0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'epochs': 0}, '`epochs`'),
        ({'lr': -1}, '`lr`'),
        ({'lr': float('nan')}, '`lr`'),
        ({'warmup': 1.0}, '`warmup`'),
        ({'optimizer': 'adamm'}, "Did you mean 'adamw'"),
        ({'precision': 'int8'}, '`precision`'),
        ({'clip': 0}, '`clip`'),
        ({'compile': 'yes'}, '`compile` is true or false'),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(**options)


def test_frozen_norms_keep_their_statistics_while_weights_learn(judge, parts, tmp_path):
    model = _run(judge, parts, tmp_path / 'a', epochs=2, freeze_norms=True).model
    before = small_net().state_dict()
    for name, tensor in model.state_dict().items():
        statistic = 'running' in name or 'tracked' in name
        assert torch.equal(tensor, before[name]) == statistic, name
