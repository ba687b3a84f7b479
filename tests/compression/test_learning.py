"""The stages that train."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import strop
from strop.compression import Judge
from strop.compression.budget import Budget
from strop.compression.calling import Answers, Compiled
from strop.compression.learning import DistillStage, FinetuneStage
from strop.compression.progress import Progress
from strop.compression.stage import State, Surroundings
from strop.errors import ConfigError
from tests.compression.conftest import small_net


def test_a_training_that_makes_it_worse_is_not_taken(tmp_path, pictures):
    stages = [{'finetune': {'epochs': 4, 'lr': 0.1}}, {'finetune': {'epochs': 1, 'lr': 50.0, 'warmup': 0.0, 'clip': None}}]
    found = strop.compress(
        small_net(), pictures, stages=stages, output=tmp_path / 'out', threads=1, runtimes=['eager'], progress='quiet'
    )
    first, second = found.result.stage('finetune'), found.result.stage('finetune-2')
    assert first.scores['accuracy'] == second.scores['accuracy'] > 0.3
    assert 'it was not taken' in second.warnings[0]
    assert second.curve


@pytest.mark.parametrize(('score', 'gap', 'taken'), [(0.88, 0.1, True), (0.88, 0.3, False), (0.80, 0.1, False)])
def test_a_score_within_its_standard_error_is_told_by_the_divergence(tmp_path, parts, monkeypatch, score, gap, taken):
    judge = Judge(parts, small_net())
    told = iter([(0.9, 0.2), (score, gap)])
    monkeypatch.setattr(judge, 'score_and_gap', lambda model, part: next(told))
    monkeypatch.setattr(judge, 'error', lambda score: 0.03)
    work = tmp_path / 'work'
    around = Surroundings('distill', small_net(), parts, judge, Budget(), 0, 1, tmp_path, work, Progress.of('quiet'))
    model = small_net()
    before = model[0].weight.clone()
    outcome = FinetuneStage(epochs=1, lr=0.1).run(State(model), around)
    assert torch.equal(outcome.model[0].weight, before) is not taken
    assert any('divergence tells' in text for text in outcome.explanation) is taken
    assert bool(outcome.warnings) is not taken


def test_a_distilled_model_comes_closer_to_its_teacher_without_a_label(tmp_path, pictures):
    stages = [
        {'finetune': {'epochs': 6, 'lr': 0.1}},
        {'prune': {'ratio': 0.25, 'round_to': 1}},
        {'distill': {'epochs': 6, 'lr': 0.02}},
    ]
    images = {part: x for part, (x, _) in pictures.items()}
    found = strop.compress(
        small_net(), images, stages=stages[1:], output=tmp_path / 'out', threads=1, runtimes=['eager'], progress='quiet'
    )
    scores = [found.result.stage(name).scores for name in ('prune', 'distill')]
    assert set(scores[0]) == {'agreement'}
    assert scores[1]['agreement'] >= scores[0]['agreement']
    assert found.result.stage('distill').curve[-1]['loss'] < found.result.stage('distill').curve[0]['loss']


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        (DistillStage, {'temperature': 0}), (DistillStage, {'features': 'layer1'}), (DistillStage, {'hard': -1}),
        (DistillStage, {'soft': 0}), (FinetuneStage, {'smoothing': 1.0}), (FinetuneStage, {'epochs': 0}),
        (DistillStage, {'compile': True, 'features': ['3']}), (FinetuneStage, {'compile': 1}),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(kind, options):
    with pytest.raises(ConfigError):
        kind.of(options)


def test_the_number_of_steps_is_known_before():
    assert DistillStage(epochs=3).steps(100, 32) == 9


def test_a_rehearsal_leaves_the_model_as_it_is_and_needs_no_folder_afterwards(tmp_path, parts, monkeypatch):
    model = small_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    judge, work = Judge(parts, small_net()), tmp_path / 'work'
    around = Surroundings('prune', small_net(), parts, judge, Budget(), 0, 1, tmp_path, work, Progress.of('quiet'))
    stage = FinetuneStage(epochs=50, lr=0.1)
    first, second = stage.rehearse(model, around, 2), stage.rehearse(model, around, 2)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    losses = []
    monkeypatch.setattr('strop.compression.learning.call', lambda model, inputs: losses.append(1) or model(inputs))
    stage.rehearse(model, around, 7)  # an epoch has three batches
    assert len(losses) == 6
    assert judge.score(first, 'validation') > judge.score(model, 'validation')
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not (work / 'rehearsal').exists()


def test_rehearsals_ask_the_teacher_once_for_each_batch(tmp_path, parts, monkeypatch):
    teacher = small_net()
    judge, work = Judge(parts, teacher), tmp_path / 'work'
    around = Surroundings('prune', teacher, parts, judge, Budget(), 0, 1, tmp_path, work, Progress.of('quiet'))
    asked = []
    monkeypatch.setattr(
        'strop.compression.learning.call',
        lambda model, inputs: asked.append(not getattr(model, 'training', True)) or model(inputs),
    )
    stage, first, second = DistillStage(epochs=5, lr=0.05, hard=0.5), small_net(8), small_net(4)
    stage.rehearse(first, around, 2)
    assert asked.count(True) == 2, 'each batch anew at first'
    found = stage.rehearse(second, around.at(None), 3)
    assert asked.count(True) == 3, 'the first two of three batches are known'
    # What is looked up is what the teacher says.
    alone = stage.rehearse(second, replace(around, answers=Answers(most=0)), 3)
    assert asked.count(True) == 6
    for ours, theirs in zip(found.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    stage.rehearse(second, replace(around, answers=Answers(most=0)), 3)
    stage.run(State(second), around)
    assert asked.count(True) == 9 + 5 * 3, 'a training has other batches in each epoch, and asks for all'


def test_student_and_teacher_run_compiled_and_a_rehearsal_does_not(tmp_path, parts, monkeypatch):
    ran = []

    class Spy(Compiled):
        def __call__(self, *args, **kwargs):
            ran.append(self.model.training)
            return super().__call__(*args, **kwargs)

    monkeypatch.setattr('strop.compression.learning.Compiled', Spy)
    monkeypatch.setattr('strop.compression.training.Compiled', Spy)
    judge, work = Judge(parts, small_net()), tmp_path / 'work'
    around = Surroundings('distill', small_net(), parts, judge, Budget(), 0, 1, tmp_path, work, Progress.of('quiet'))
    stage, weak = DistillStage(epochs=2, lr=0.05, compile=True), small_net(8)
    stage.rehearse(weak, around, 2)
    assert ran == []
    found = stage.run(State(weak), around)
    assert ran == [False, True] * 6  # the teacher first, in eval mode
    assert found.curve[-1]['loss'] < found.curve[0]['loss']
    plain = DistillStage(epochs=2, lr=0.05).run(State(small_net(8)), replace(around, work=tmp_path / 'plain'))
    for ours, theirs in zip(found.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=2e-3)
