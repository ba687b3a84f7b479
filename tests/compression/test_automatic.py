"""The automatic plan: units and blocks that cost little go first, and models that are measured decide."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import strop
import strop.compression.automatic as automatic
import strop.compression.workshop as workshop
from strop.compression.automatic import Planner
from strop.compression.ladder import Rung
from strop.compression.learning import DistillStage
from strop.compression.plan import Candidate, Planned
from strop.estimators import count
from tests.compression.conftest import small_net


def compress(folder, pictures, budget, **stage):
    return strop.compress(
        small_net(), pictures, stages=[{'finetune': {'epochs': 3, 'lr': 0.1}}, {'prune': {'round_to': 4, **stage}}],
        budget={'runtime': 'eager', **budget}, output=folder, threads=1, runtimes=['eager'], progress='quiet',
    )  # fmt: skip


def test_the_plan_keeps_the_budget_with_the_least_harm_and_says_why(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency': 0.5}, tries=12)
    stage = found.result.stage('prune')
    times = {entry.label: entry.latency_ms for entry in found.result.tried}
    chosen = next(entry for entry in found.result.tried if entry.chosen)
    assert chosen.latency_ms <= 0.5
    # The rung before it was measured as well and takes longer than allowed, or the chosen one is as good as at the limit.
    label, step, last = chosen.label.rpartition(', step ')[0], *map(int, chosen.label.rpartition(', step ')[2].split(' of '))
    before = times['as it is'] if step == 1 else times.get(f'{label}, step {step - 1} of {last}', 0.0)
    assert chosen.latency_ms > 0.97 * 0.5 or before > 0.5
    # Without a stage that trains, the candidate that moves the outputs least is taken.
    plan = json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())
    assert len(plan['candidates']) > 1
    assert min(plan['candidates'], key=lambda candidate: candidate['harm'])['label'] == chosen.label
    assert all(candidate['share'] <= 0.5 for candidate in plan['candidates'])
    assert any('Measured on eager' in sentence for sentence in stage.explanation)
    assert f'{chosen.latency_ms:.2f} of what the original model takes in turns with it' in stage.explanation[-1]
    assert any(' went from ' in sentence or 'Taken out whole' in sentence for sentence in stage.explanation)
    assert stage.resources.macs < found.result.stage('source').resources.macs
    assert strop.load(found.folder, factory=small_net)(pictures['test'][0]).shape == (64, 4)


def test_candidates_are_taught_as_the_next_stage_will_and_the_best_learner_is_taken(tmp_path, pictures, by_count, monkeypatch):
    taught = []
    rehearse = DistillStage.rehearse

    def watched(self, model, around, steps):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        found = rehearse(self, model, around, steps)
        taught.append((self.lr, steps, around.judge.score(found), around.judge.gap(found)))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        return found

    monkeypatch.setattr(DistillStage, 'rehearse', watched)
    stages = [
        {'finetune': {'epochs': 3, 'lr': 0.1}},
        {'prune': {'round_to': 4, 'rehearse': 3}},
        {'distill': {'epochs': 1, 'lr': 0.03}},
    ]
    found = strop.compress(
        small_net(), pictures, stages=stages, budget={'runtime': 'eager', 'latency': 0.5}, output=tmp_path / 'out', threads=1,
        runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    plan = json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())
    many = len(plan['candidates'])
    assert many == 4, 'more than three: the better half is taught again'
    rounds = [(rate, steps) for rate, steps, _, _ in taught]
    assert rounds[: many + 2] == [(0.03, 3)] * many + [(0.03, 6)] * 2
    assert rounds[many + 2 :] in ([], [(0.03, 12)] * 2), 'two that are level are taught once more'
    known = {(steps, score, gap) for _, steps, score, gap in taught}
    assert all((candidate['steps'], candidate['score'], candidate['gap']) in known for candidate in plan['candidates'])
    longest = max(candidate['steps'] for candidate in plan['candidates'])
    last = [candidate for candidate in plan['candidates'] if candidate['steps'] == longest]
    assert len(last) == 2
    chosen = next(entry for entry in found.result.tried if entry.chosen)
    best = max(candidate['score'] for candidate in last)
    error = math.sqrt(best * (1 - best) / found.result.data.parts['validation'])
    level = [candidate for candidate in last if candidate['score'] >= best - error]
    assert longest == (12 if len(rounds) > many + 2 else 6)
    assert len(level) == 1 or longest == 12
    assert min(level, key=lambda candidate: candidate['gap'])['label'] == chosen.label
    assert any(
        'were taught for about 3 steps, as the stage `distill` will' in text for text in found.result.stage('prune').explanation
    )


def test_of_equally_good_learners_the_one_nearest_to_the_original_is_taken(tmp_path, pictures, by_count, monkeypatch):
    seen = []

    def close(self, rung, steps):
        """Each is better than the one before, by less than an error of a share of a hundred samples, but for the first."""
        if rung.key not in seen:
            seen.append(rung.key)
        place = seen.index(rung.key)
        return (0.5, 0.0) if place == 0 else (0.9 + 0.001 * place, 2.0 + place)

    monkeypatch.setattr(workshop.Workshop, 'taught', close)
    stages = [{'finetune': {'epochs': 3, 'lr': 0.1}}, {'prune': {'round_to': 4, 'rehearse': 3}}, {'distill': {'epochs': 1}}]
    found = strop.compress(
        small_net(), pictures, stages=stages, budget={'runtime': 'eager', 'latency': 0.5}, output=tmp_path / 'out', threads=1,
        runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    plan = json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())
    assert len(plan['candidates']) >= 3
    chosen = next(entry for entry in found.result.tried if entry.chosen)
    assert chosen.label == next(candidate['label'] for candidate in plan['candidates'] if candidate['gap'] == 3)
    assert any('lie within the standard error of the best' in text for text in found.result.stage('prune').explanation)


def _teaching(taught):
    """Return what `Planner._best` needs, where `taught(rung, steps)` gives score and gap."""
    planner = SimpleNamespace(
        around=SimpleNamespace(
            follows=SimpleNamespace(kind='distill'), judge=SimpleNamespace(choice='accuracy'),
        ), rehearse=30, planned=Planned(None), _advance=lambda: None,
        shop=SimpleNamespace(taught=taught, judge=SimpleNamespace(error=lambda score: 0.01)),
    )  # fmt: skip
    planner._teach, planner._ranked = partial(Planner._teach, planner), partial(Planner._ranked, planner)
    return planner


def test_the_better_half_is_taught_for_twice_as_long():
    """What is ahead after few steps is not what is ahead after more."""
    asked = []

    def taught(rung, steps):
        asked.append((rung.harm, steps))
        early, late = {0: (0.1, 0.9), 1: (0.8, 0.81), 2: (0.7, 0.9), 3: (0.6, 0.7), 4: (0.2, 0.9), 5: (0.6, 0.9)}[rung.harm]
        return (early if steps == 30 else late), rung.harm

    candidates = [Candidate(f'model {harm}', Rung({}, (), 0.0, harm), None, harm) for harm in range(6)]
    planner = _teaching(taught)
    chosen = Planner._best(planner, candidates)
    assert asked == [(harm, 30) for harm in range(6)] + [(harm, 60) for harm in (1, 2, 3)]
    assert chosen is candidates[2]  # also better than the two that had led
    assert [(found.score, found.steps) for found in candidates] == [
        (0.1, 30), (0.81, 60), (0.9, 60), (0.7, 60), (0.2, 30), (0.6, 30),
    ]  # fmt: skip
    first, second, *_ = planner.planned.explanation
    assert first.startswith('6 models that keep the budget were taught for about 30 steps, as the stage `distill` will; ')
    assert second.startswith('The 3 best of them were taught for about 60 steps')
    asked.clear()
    Planner._best(planner, candidates[:3])
    assert asked == [(harm, 30) for harm in range(3)], 'one leads'


def test_models_that_are_level_are_taught_on():
    asked = []

    def taught(rung, steps):
        asked.append((rung.harm, steps))
        return {0: 0.5, 1: 0.805, 2: 0.8 if steps < 60 else 0.9}[rung.harm] if tied is None else tied, 3 - rung.harm

    planner = _teaching(taught)
    tied = None
    candidates = [Candidate(f'model {harm}', Rung({}, (), 0.0, harm), None, harm) for harm in range(3)]
    assert Planner._best(planner, candidates) is candidates[2]
    assert asked == [(0, 30), (1, 30), (2, 30), (2, 60), (1, 60)]
    asked.clear()
    tied = 0.8
    assert Planner._best(planner, candidates) is candidates[2], 'level to the end: the nearest'
    assert [steps for _, steps in asked] == [30] * 3 + [60] * 3 + [120] * 3
    assert planner.planned.explanation[-2].startswith('3 of them lie within the standard error of the best, 0.0100; ')


def test_the_search_for_smaller_images_goes_on_to_the_first_within_the_budget():
    sides = range(224, 104, -8)
    ladder = [Rung({}, (), 1.5 * (side / 224) ** 2, 0.0, side) for side in sides]
    asked = []
    planner = SimpleNamespace(
        _excess=lambda rung, label=None: asked.append(rung.side) or rung.milliseconds, _timed_alone=lambda: True
    )
    found = Planner._first_within(planner, [f'images of {side}' for side in sides], ladder, len(ladder))
    assert sides[found] == 176
    assert {176, 184} <= set(asked)
    assert len(asked) < len(ladder)
    assert 112 not in asked, 'a quarter of the pixels is foreseen to be enough'


@pytest.mark.parametrize(('last', 'expected'), [(0.9, 3), (1.1, None)])
def test_an_end_that_was_foreseen_is_measured_before_it_is_taken(last, expected):
    ladder = [Rung({}, (), milliseconds, 0.0) for milliseconds in (1.0, 0.8, 0.6, 0.1)]
    truth = dict(zip((1.0, 0.8, 0.6, 0.1), (2.0, 1.8, 1.6, last)))
    asked = []
    planner = SimpleNamespace(
        _excess=lambda rung, label=None: asked.append(rung.milliseconds) or truth[rung.milliseconds],
        _timed_alone=lambda: True,
    )
    assert Planner._first_within(planner, list('abcd'), ladder, 4) == expected
    assert asked[-1] == 0.1


def test_a_limit_that_is_counted_is_counted_at_the_end_too():
    ladder = [Rung({}, (), milliseconds, 0.0) for milliseconds in (1.0, 0.5, 0.1)]
    asked = []
    planner = SimpleNamespace(
        _excess=lambda rung, label=None: asked.append(rung.milliseconds) or (1.5 if rung.milliseconds < 1 else 2.0),
        _timed_alone=lambda: False,
    )
    assert Planner._first_within(planner, list('abc'), ladder, 4) is None
    assert asked[-1] == 0.1


@pytest.mark.parametrize(
    ('likely', 'number', 'rehearse', 'expected'),
    [(0.2, 6, 30, True), (0.55, 6, 30, False), (0.2, 5, 30, False), (0.2, 6, 0, False)],
)
def test_ladders_that_are_far_behind_are_not_measured(likely, number, rehearse, expected):
    """Six models have scores of 0.6 to 0.85; of the ladder the second rung is expected to keep the budget."""
    scores = {f'{0.6 + index / 20:.2f}': 0.6 + index / 20 for index in range(number)}
    candidates = [Candidate(name, Rung({}, (name,), 0.5, 0.0), None, 0.0) for name in scores]
    ladder = [Rung({}, (), 1.0, 0.0), Rung({}, ('b',), 0.5, 1.0), Rung({}, ('c',), 0.2, 2.0)]
    planner = SimpleNamespace(
        planned=SimpleNamespace(candidates=candidates), rehearse=rehearse, _excess=lambda rung: 1.5, _timed_alone=lambda: True,
        around=SimpleNamespace(follows=object()),
        shop=SimpleNamespace(
            untaught=lambda rung: scores.get(rung.removed[0], likely), screen=SimpleNamespace(error=lambda score: 0.01)
        ),
    )  # fmt: skip
    assert Planner._is_behind(planner, ladder) is expected


def test_a_block_that_went_with_smaller_images_makes_room_for_larger_ones():
    """Pixels cost in steps of a pixel, the ladder in one of a whole block."""
    sides = [*range(31, 15, -1)]
    whole, cut, least = Rung({}, (), 1.0, 0.0), Rung({'3': 4}, ('3',), 0.8, 1.0), Rung({'3': 4}, ('3', '5'), 0.4, 2.0)
    planner = SimpleNamespace(
        around=SimpleNamespace(data=SimpleNamespace(side=32, image_side=32)), sides=sides, tries=3, planned=Planned(None),
        _ladders={'least harm': [whole, cut, least]}, _missed=[], _tried={},
        shop=SimpleNamespace(harm=lambda rung: rung.harm, pace=lambda rung: None), _timed_alone=lambda: True,
    )  # fmt: skip

    def excess(rung, label=None):
        planner._tried.setdefault(rung.key, SimpleNamespace(label=label))
        return rung.milliseconds / 0.55

    planner._excess = excess
    planner._first_within = partial(Planner._first_within, planner)
    planner._reach = partial(Planner._reach, planner)
    planner._foreseen = partial(Planner._foreseen, planner)
    Planner._smaller_images(planner)
    # 23 pixels alone have 0.517 of the time; without one block 26 have 0.528, without two all have less than 0.4.
    found = {(candidate.rung.side, len(candidate.rung.removed)): candidate.label for candidate in planner.planned.candidates}
    assert found == {
        (23, 0): 'images of 23 alone',
        (26, 1): 'images of 26, least harm, step 1 of 2',
        (31, 2): 'images of 31, least harm, step 2 of 2',
    }
    assert not any('step 0 of' in entry.label for entry in planner._tried.values()), 'known from images alone'


@pytest.mark.parametrize(('drop', 'expected'), [(0.0, 0), (2.0, 2), (100.0, None)])
def test_a_drop_of_the_score_alone_drives_the_pruning(tmp_path, pictures, by_count, monkeypatch, drop, expected):
    sizes, ladders, ordered = [], {}, Planner._ordered

    def falling(self, rung, steps):
        """Lose a point with each step."""
        (ladder,) = ladders.values()
        sizes[:] = [len(ladder)]
        return self.around.judge.score(self.model(self.whole), 'validation') - 0.01 * ladder.index(rung) + 1e-9, 0.0

    monkeypatch.setattr(Planner, '_ordered', lambda self: ladders.update(ordered(self)) or ladders)
    monkeypatch.setattr(workshop.Workshop, 'taught', falling)
    stages = [{'prune': {'round_to': 4, 'tries': 6}}]
    found = strop.compress(
        small_net(), pictures, stages=stages, budget={'runtime': 'eager', 'accuracy_drop': drop}, output=tmp_path / 'out',
        threads=1, runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    stage = found.result.stage('prune')
    expected = sizes[0] - 1 if expected is None else expected
    if expected == 0:
        assert 'cannot keep accuracy_drop=0' in stage.warnings[0]
        assert stage.resources.macs == found.result.stage('source').resources.macs
    else:
        assert [entry.label for entry in found.result.tried if entry.chosen] == [
            f'least harm, step {expected} of {sizes[0] - 1}'
        ]
        assert stage.resources.macs < found.result.stage('source').resources.macs
        assert f'within {drop:g} points' in ' '.join(stage.explanation)


def test_what_was_found_out_is_not_found_out_again(tmp_path, pictures, by_count, monkeypatch):
    class Stop(Exception):
        pass

    times = []
    counted = workshop.Clock
    measure = counted.time

    def dies(self, *of):
        if len(times) == 6:  # four are of the whole model and of three narrower ones
            raise Stop
        times.append(measure(self, *of))
        return times[-1]

    monkeypatch.setattr(counted, 'time', dies)
    with pytest.raises(Stop):
        compress(tmp_path / 'out', pictures, {'latency': 0.5})
    harms = []
    monkeypatch.setattr(counted, 'time', lambda self, *of: times.append(measure(self, *of)) or times[-1])
    monkeypatch.setattr(workshop, '_distance', lambda *tensors: harms.append(1) or 1.0)
    resumed = compress(tmp_path / 'out', pictures, {'latency': 0.5})
    monkeypatch.undo()
    monkeypatch.setattr(workshop, 'Clock', counted)
    plain = compress(tmp_path / 'plain', pictures, {'latency': 0.5})
    entries = {entry.label: entry.latency_ms for entry in plain.result.tried}
    assert {entry.label: entry.latency_ms for entry in resumed.result.tried} == entries
    worths = [json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())['units'] for found in (resumed, plain)]
    assert worths[0] == worths[1]  # of before it was stopped: after that every harm would have been 1
    for first, second in zip(resumed.model.state_dict().values(), plain.model.state_dict().values()):
        assert torch.equal(first, second)


def test_a_budget_that_cannot_be_reached_gives_the_smallest_and_says_so(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency_ms': 0.01})
    assert 'cannot be reached by pruning' in found.result.stage('prune').warnings[0]
    labels = [entry.label for entry in found.result.tried]
    assert len(labels) == len(set(labels))
    # One model, once: the ends of most orders are the same model.
    assert len({(entry.macs, entry.params) for entry in found.result.tried}) == len(labels)
    assert sum(entry.chosen for entry in found.result.tried) == 1
    assert found.met is False
    widths = [module.out_channels for module in found.model.modules() if isinstance(module, nn.Conv2d)]
    assert max(widths) <= 4


def test_a_model_that_keeps_the_budget_is_left_as_it_is(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency_ms': 100.0})
    assert 'keeps the budget as it is' in ' '.join(found.result.stage('prune').explanation)
    assert found.model[0].out_channels == 16


def test_blocks_stay_where_depth_is_not_to_be_touched(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency_ms': 0.01}, depth=False)
    assert isinstance(found.model[3].body[0], nn.Conv2d)


def test_counted_limits_are_kept_beside_the_measured_one(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency': 0.9, 'params': 0.3}, tries=8)
    first, last = found.result.stage('source').resources, found.result.stage('prune').resources
    assert last.params <= 0.3 * first.params


def test_lengths_are_multiples_where_they_are_cut(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency': 0.4}, tries=8)
    widths = [module.out_channels for module in found.model.modules() if isinstance(module, nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)


def test_a_unit_without_effect_is_found_harmless(tmp_path, pictures, by_count):
    class Idle(nn.Module):
        """Half of its channels are multiplied by zero."""

        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(64, 16), nn.Linear(64, 16)
            self.out = nn.Linear(32, 4)
            with torch.no_grad():
                self.out.weight[:, 16:] = 0

        def forward(self, x):
            x = x.flatten(1)
            return self.out(torch.cat([self.used(x).relu(), self.idle(x).relu()], 1))

    found = strop.compress(
        Idle(),
        pictures,
        stages=[{'prune': {'round_to': 4}}],
        budget={'latency': 0.7, 'runtime': 'eager'},
        output=tmp_path / 'out',
        threads=1,
        runtimes=['eager'],
        progress='quiet',
    )
    assert found.model.used.out_features == 16
    assert found.model.idle.out_features < 16


def test_one_try_does_not_end_in_a_far_smaller_model(tmp_path, pictures, by_count):
    found = compress(tmp_path / 'out', pictures, {'latency': 0.8}, tries=1)
    plan = json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())
    first = plan['candidates'][0]
    ladder = [entry for entry in found.result.tried if entry.label.startswith('least harm')]
    larger = [entry.latency_ms for entry in ladder if entry.latency_ms > 0.8]
    # It lies in the upper part of the budget, or the next larger model was measured and breaks it.
    assert first['share'] > 0.8 * 0.8 or larger
    step, last = map(int, re.findall(r'step (\d+) of (\d+)', first['label'])[0])
    assert step < last


def smaller(folder, pictures, *after, **stage):
    settings = {'round_to': 4, 'max_ratio': 0.3, 'depth': False, 'resolution': True, **stage}
    return strop.compress(
        small_net(), pictures, stages=[{'finetune': {'epochs': 3, 'lr': 0.1}}, {'prune': settings}, *after],
        budget={'runtime': 'eager', 'latency': 0.45}, output=folder, threads=1, runtimes=['eager'], progress='quiet',
    )  # fmt: skip


def test_images_get_smaller_where_the_recipe_allows_it(tmp_path, pictures, by_count):
    """The lengths that may go do not keep the budget; half the pixels do."""
    after = [{'distill': {'epochs': 2, 'hard': 1.0, 'features': ['3']}}, {'export': {'formats': ['pt2']}}]
    found = smaller(tmp_path / 'out', pictures, *after, rehearse=2)
    plan = json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())
    side = plan['side']
    alone = [candidate for candidate in plan['candidates'] if candidate['label'].endswith('alone')]
    beside = [candidate for candidate in plan['candidates'] if candidate['label'].startswith('images of 6, least harm')]
    assert [candidate['side'] for candidate in alone] == [4]
    assert [candidate['side'] for candidate in beside] == [6]
    assert alone[0]['lengths'] != beside[0]['lengths']
    assert side in (4, 6)
    assert any('from 8 pixels (the short side) to' in text for text in found.result.stage('prune').explanation)
    # Scores, costs and files are of the smaller images.
    images, labels = pictures['test']
    shrunk = torch.nn.functional.interpolate(images, size=(side, side), mode='bilinear')
    accuracy = float((found.model(shrunk).argmax(1) == labels).double().mean())
    assert found.result.stage('distill').scores['accuracy'] == pytest.approx(accuracy)
    assert found.result.stage('distill').resources.macs == count(found.model, shrunk[:1]).macs
    program = torch.export.load(found.folder / 'exports' / 'model.pt2').module()
    torch.testing.assert_close(program(shrunk), found.model(shrunk))
    assert torch.load(found.folder / 'example.pt')[0].shape == (2, 1, side, side)
    assert f'take images of {side} × {side} pixels' in (found.folder / 'README.md').read_text()
    assert any(
        f'take images of {side} × {side} pixels, where the original takes 8 × 8' in text for text in found.result.warnings
    )
    loaded = strop.load(found.folder, factory=small_net)
    assert torch.equal(loaded(shrunk), found.model(shrunk))
    # The original is scored on whole ones.
    assert found.result.stage('finetune').resources.macs == count(small_net(), images[:1]).macs
    again = smaller(tmp_path / 'out', pictures, *after, rehearse=2)
    assert again.result.stage('distill').scores == found.result.stage('distill').scores
    assert torch.equal(again.model(shrunk), found.model(shrunk))


def test_the_original_is_quantized_for_whole_images_beside_smaller_ones(tmp_path, pictures, by_count):
    runtime = pytest.importorskip('onnxruntime')
    found = smaller(tmp_path / 'out', pictures, {'quantize': {'backend': 'onnxruntime', 'activation': 'min_max'}}, rehearse=0)
    side = json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())['side']
    images, labels = pictures['test']
    shrunk = torch.nn.functional.interpolate(images, size=(side, side), mode='bilinear')
    said = found.result.stage('quantize')
    accuracies = []
    for name, given in (('original-', images), ('', shrunk)):
        session = runtime.InferenceSession(found.folder / 'stages' / '03-quantize' / f'{name}onnxruntime-int8.onnx')
        assert session.get_inputs()[0].shape[1:] == list(given.shape[1:])
        answers = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: given.numpy()})[0])
        accuracies.append(float((answers.argmax(1) == labels).double().mean()))
    assert any(f'The original, quantized alike, has accuracy {accuracies[0]:.4f}' in text for text in said.explanation)
    assert said.scores['accuracy'] == pytest.approx(accuracies[1])


def test_images_stay_where_nobody_allows_smaller_ones(tmp_path, pictures, by_count):
    found = smaller(tmp_path / 'out', pictures, resolution=False)
    assert found.met is False
    assert json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())['side'] is None


def test_a_model_of_one_size_of_images_keeps_it_and_says_why(tmp_path, pictures, by_count):
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(64, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.out(self.hidden(x.flatten(1)).relu())

    found = strop.compress(
        Placed(), pictures, stages=[{'prune': {'round_to': 4, 'resolution': True}}],
        budget={'runtime': 'eager', 'latency': 0.7}, output=tmp_path / 'out', threads=1, runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    assert any('Placed does not take images of 7 pixels' in text for text in found.result.stage('prune').warnings)
    assert found.model.hidden.out_features < 16


def test_of_many_candidates_the_best_without_training_are_taught(tmp_path, pictures, by_count, monkeypatch):
    monkeypatch.setattr(automatic, '_TAUGHT', 1)
    stages = [{'finetune': {'epochs': 3, 'lr': 0.1}}, {'prune': {'round_to': 4, 'rehearse': 2}}, {'distill': {'epochs': 1}}]
    found = strop.compress(
        small_net(), pictures, stages=stages, budget={'runtime': 'eager', 'latency': 0.5}, output=tmp_path / 'out', threads=1,
        runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    plan = json.loads((found.folder / 'records' / '02-prune-plan.json').read_text())
    untaught = {entry.label: entry.score for entry in found.result.tried}
    taught = [candidate['label'] for candidate in plan['candidates'] if candidate['score'] is not None]
    assert len(plan['candidates']) > 1
    assert len(taught) == 1
    assert untaught[taught[0]] == max(untaught[candidate['label']] for candidate in plan['candidates'])


def test_blocks_stay_whose_features_are_distilled(tmp_path, pictures, by_count):
    after = {'distill': {'epochs': 1, 'features': ['3.body.0']}}
    found = strop.compress(
        small_net(), pictures, stages=[{'prune': {'round_to': 4, 'rehearse': 1}}, after], output=tmp_path / 'out', threads=1,
        budget={'runtime': 'eager', 'latency': 0.6}, runtimes=['eager'], progress='quiet',
    )  # fmt: skip
    assert isinstance(found.model[3].body[0], nn.Conv2d)


@pytest.mark.parametrize(
    ('milliseconds', 'expected'),
    [(4.0, 2.0), (3.0, 1.5), (2.1, None), (5.0, None), (0.5, None)],
)
def test_a_beginning_is_foreseen_from_others_unless_it_is_near_the_limit(milliseconds, expected):
    others = [Rung({}, (), time, 0.0, side) for side, time in ((32, 4.0), (20, 1.5), (24, 2.0), (8, 0.1))]
    planner = SimpleNamespace(
        _excess=lambda rung: rung.milliseconds / 2, _tried={rung.key: None for rung in others[:3]}, _timed_alone=lambda: True,
    )  # fmt: skip
    assert Planner._foreseen(planner, Rung({}, (), milliseconds, 0.0, 28), others) == expected
