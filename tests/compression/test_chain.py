"""The chain: a run that was killed goes on and ends with the same bits, and what fails leaves what was done before it."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import strop
from strop.compression import DataSource, Progress, measuring
from strop.compression.compressing import dry_run, planned
from strop.errors import ConfigError, DataError, ExportError, StoreError, StropError
from strop.estimators.latency import Machine
from strop.report.compression_result import CompressionResult
from tests.compression.conftest import drawn, small_net

STAGES = [{'finetune': {'epochs': 2, 'lr': 0.1}}, {'prune': {'ratio': 0.5}}, {'distill': {'epochs': 2, 'checkpoint_steps': 1}}]
QUICK = {'threads': 1, 'runtimes': ['eager'], 'progress': 'quiet'}


class Killed(BaseException):
    """Nobody catches it, like a signal."""


class KillAt(Progress):
    """Stop the run while a stage is under way, or right after it."""

    def __init__(self, stage: str, step: int | None) -> None:
        self.stage, self.step = stage, step

    def advance(self, stage: str, done: int, total: int) -> None:
        if stage == self.stage and self.step is not None and done >= self.step:
            raise Killed

    def end(self, stage: str, seconds: float, scores: dict[str, float], kept: bool = False) -> None:
        if stage == self.stage and self.step is None:
            raise Killed


class Listener(Progress):
    def __init__(self) -> None:
        self.kept: dict[str, bool] = {}

    def end(self, stage: str, seconds: float, scores: dict[str, float], kept: bool = False) -> None:
        self.kept[stage] = kept


class Began(Listener):
    """Write down with which step each stage that takes steps began."""

    def __init__(self, began: list[tuple[str, int]], other: Listener) -> None:
        self.began, self.kept = began, other.kept

    def advance(self, stage: str, done: int, total: int) -> None:
        if stage != 'measure' and stage not in dict(self.began) and done:
            self.began.append((stage, done))


def compress(folder: Path, pictures, **options):
    return strop.compress(small_net(), pictures, **{'stages': STAGES, 'output': folder, **QUICK, **options})


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    return compress(tmp_path_factory.mktemp('whole') / 'out', {'train': drawn(128, 'train'), 'test': drawn(64, 'test')})


def test_the_model_is_half_as_wide_and_comes_back_bit_by_bit(whole):
    assert whole.model[0].out_channels == 8
    assert same(strop.load(whole.folder, factory=small_net), whole.model)
    x = drawn(4, 'more')[0]
    assert torch.equal(strop.load(whole.folder, factory=small_net)(x), whole.model(x))


def test_the_result_tells_every_stage_with_scores_on_the_test_part_alone(whole):
    result = CompressionResult.read(whole.folder)
    assert [stage.name for stage in result.stages] == ['source', 'finetune', 'prune', 'distill']
    assert all(stage.scored_on == 'test' for stage in result.stages)
    assert result.stage('prune').resources.macs < 0.5 * result.stage('source').resources.macs
    assert result.stage('distill').curve[-1]['step'] == 6
    assert result.stage('prune').layers[0].after.shape[0] == 8
    assert result.data.parts == {'train': 115, 'calibration': 115, 'validation': 13, 'test': 64}
    assert {(entry.runtime, entry.batch) for entry in result.measurements} == {('eager', 1), ('eager', 32)}
    assert (whole.folder / 'README.md').read_text().startswith('# Sequential, compressed')


@pytest.mark.parametrize(
    ('stage', 'step'),
    [('source', None), ('finetune', 5), ('finetune', None), ('prune', None), ('distill', 3), ('distill', None)],
)
def test_a_run_that_was_killed_ends_with_the_same_bits(whole, tmp_path, pictures, stage, step):
    with pytest.raises(Killed):
        compress(tmp_path / 'out', pictures, progress=KillAt(stage, step))
    listener = Listener()
    again = compress(tmp_path / 'out', pictures, progress=listener)
    assert same(again.model, whole.model)
    first, second = (copy.deepcopy(run.result.stages) for run in (whole, again))
    for entry in (*first, *second):
        entry.seconds = 0
    assert first == second
    names = ['source', 'finetune', 'prune', 'distill']
    done = names[: names.index(stage) + (step is None)]
    assert [name for name in names[1:] if listener.kept[name]] == [name for name in done if name != 'source']


def test_a_finished_run_is_not_repeated_but_from_a_stage_it_is(whole, pictures, tmp_path):
    compress(tmp_path / 'out', pictures)
    listener = Listener()
    again = compress(tmp_path / 'out', pictures, progress=listener, from_stage='prune')
    assert (listener.kept['finetune'], listener.kept['prune'], listener.kept['distill']) == (True, False, False)
    assert same(again.model, whole.model)
    with pytest.raises(ConfigError, match=r"no stage 'prun'.*Did you mean 'prune'"):
        compress(tmp_path / 'out', pictures, from_stage='prun')


def test_a_changed_stage_is_run_again_with_those_behind_it(pictures, tmp_path):
    compress(tmp_path / 'out', pictures)
    listener = Listener()
    found = compress(
        tmp_path / 'out', pictures, stages=[STAGES[0], {'prune': {'ratio': 0.25, 'round_to': 1}}], progress=listener
    )
    assert (listener.kept['finetune'], listener.kept['prune']) == (True, False)
    assert found.model[0].out_channels == 12
    assert [stage.name for stage in found.result.stages] == ['source', 'finetune', 'prune']


def test_another_seed_gives_another_model(whole, pictures, tmp_path):
    assert not same(compress(tmp_path / 'out', pictures, seed=1).model, whole.model)


def test_two_processes_do_not_work_in_one_folder(tmp_path, pictures):
    class Again(Progress):
        def begin(self, stage: str, note: str = '') -> None:
            if stage == 'prune':
                with pytest.raises(StoreError, match='Another process is compressing'):
                    compress(tmp_path / 'out', pictures)

    compress(tmp_path / 'out', pictures, stages=STAGES[:2], progress=Again())


def test_a_folder_of_something_else_is_left_alone(tmp_path, pictures):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(StoreError, match='is not empty'):
        compress(tmp_path, pictures)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_a_run_is_not_overwritten_unless_it_may_go_on(whole, pictures):
    with pytest.raises(StoreError, match='holds a compression already'):
        compress(whole.folder, pictures, resume=False)


def test_a_stage_that_fails_is_told_in_the_result_and_leaves_the_stages_before(tmp_path, pictures, monkeypatch):
    import strop.compression.export_stage as module

    def differs(source, path, **options):
        raise ExportError('output[0] differs by 1')

    stages = [{'prune': {'ratio': 0.5}}, {'export': {'formats': ['pt2']}}]
    with monkeypatch.context() as patch:
        patch.setattr(module, 'write_program', differs)
        with pytest.raises(ExportError, match='differs by 1'):
            compress(tmp_path / 'out', pictures, stages=stages)
    result = CompressionResult.read(tmp_path / 'out')
    assert [stage.status for stage in result.stages] == ['done', 'done', 'failed']
    assert 'differs by 1' in result.stages[-1].warnings[0]
    assert not (tmp_path / 'out' / 'stages' / '02-export').exists()
    listener = Listener()
    found = compress(tmp_path / 'out', pictures, stages=stages, progress=listener)
    assert listener.kept['prune']
    assert [export.path for export in found.result.exports] == ['model', 'exports/model.pt2']


def test_a_disk_that_is_full_stops_it_with_the_name_of_the_file_and_it_goes_on(whole, tmp_path, pictures, monkeypatch):
    import strop.files

    written = strop.files.Path.write_bytes
    left = [12]

    def full(self, content):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, 'No space left on device')
        return written(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(strop.files.Path, 'write_bytes', full)
        with pytest.raises(OSError, match=r'No space left on device') as caught:
            compress(tmp_path / 'out', pictures)
    assert str(tmp_path) in str(caught.value.filename)
    assert same(compress(tmp_path / 'out', pictures).model, whole.model)


def test_a_disk_that_is_full_in_a_training_is_told_with_the_folder(tmp_path, pictures, monkeypatch):
    import strop.compression.learning as module

    def full(*args, **options):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module, 'train', full)
    with pytest.raises(OSError, match=r'No space left on device.*01-finetune'):
        compress(tmp_path / 'out', pictures)


def test_labels_that_are_no_class_are_found_before_anything_runs(tmp_path, pictures):
    x, y = pictures['train']
    with pytest.raises(DataError, match='none of 0 to 3: sample 0 has 9'):
        compress(tmp_path / 'out', {**pictures, 'train': (x, torch.full_like(y, 9))})
    assert not (tmp_path / 'out').exists()


def test_a_folder_keeps_what_was_done_in_it_though_the_data_were_damaged_since(tmp_path, pictures):
    compress(tmp_path / 'out', pictures, stages=STAGES[:1])
    x, y = pictures['train']
    with pytest.raises(DataError):
        compress(tmp_path / 'out', {**pictures, 'train': (x, torch.full_like(y, 9))}, stages=STAGES[:1])
    listener = Listener()
    compress(tmp_path / 'out', pictures, stages=STAGES[:1], progress=listener)
    assert listener.kept['finetune']


def test_a_budget_that_cannot_be_reached_gives_the_nearest_whole(tmp_path, pictures):
    found = compress(tmp_path / 'out', pictures, stages=['prune'], budget={'params': 0.001})
    assert found.met is False
    assert any('NOT met' in sentence for sentence in found.result.outcome.sentences)
    assert 'smallest model that can be reached' in found.result.stage('prune').warnings[0]
    assert same(strop.load(found.folder, factory=small_net), found.model)


def test_a_budget_of_macs_is_met_by_the_prune_stage(tmp_path, pictures):
    found = compress(tmp_path / 'out', pictures, stages=[{'prune': {'round_to': 1}}], budget={'macs': 0.5})
    assert found.met is True
    share = found.result.stage('prune').resources.macs / found.result.stage('source').resources.macs
    assert 0.4 < share <= 0.5


def test_without_leave_to_learn_from_labels_the_chain_distils_and_chooses_without_them(tmp_path, pictures):
    parts = DataSource('memory', labels=False).given(pictures)
    found = compress(
        tmp_path / 'out', parts, stages=[{'prune': {'ratio': 0.5, 'importance': 'taylor'}}, {'distill': {'epochs': 1}}]
    )
    assert set(found.result.stage('distill').scores) == {'accuracy', 'agreement'}
    assert 'without labels' in found.result.data.uses['train']
    with pytest.raises(ConfigError, match='there are none here'):
        compress(tmp_path / 'other', parts, stages=['finetune'])


def test_features_of_modules_are_distilled_too(tmp_path, pictures):
    stages = [{'prune': {'ratio': 0.5}}, {'distill': {'epochs': 1, 'features': ['3'], 'hard': 0.5}}]
    found = compress(tmp_path / 'out', pictures, stages=stages)
    assert {'loss_features', 'loss_teacher', 'loss_labels'} <= set(found.result.stage('distill').curve[0])


def test_a_checkpoint_that_was_damaged_is_an_error_not_another_model(tmp_path, pictures):
    compress(tmp_path / 'out', pictures, stages=[{'prune': {'ratio': 0.5}}])
    weights = tmp_path / 'out' / 'stages' / '01-prune' / 'model' / 'model.safetensors'
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(StropError, match='checksum'):
        compress(tmp_path / 'out', pictures, stages=[{'prune': {'ratio': 0.5}}])


def test_the_recipe_of_an_artefact_is_what_was_asked_for(whole):
    content = json.loads((whole.folder / 'recipe.json').read_text())
    assert [next(iter(stage)) for stage in content['stages']] == ['finetune', 'prune', 'distill']
    assert content['seed'] == 0


def test_a_run_from_a_stage_that_was_killed_behind_it_leaves_nothing_of_the_old_run(whole, pictures, tmp_path):
    compress(tmp_path / 'out', pictures)
    stages = tmp_path / 'out' / 'stages'
    # What a plan that was measured again would do: the new checkpoint is not the one that the next stage was made from.
    with pytest.raises(Killed):
        compress(tmp_path / 'out', pictures, from_stage='prune', progress=KillAt('prune', None))
    assert (stages / '02-prune').is_dir()
    assert not (stages / '03-distill').exists()
    assert same(compress(tmp_path / 'out', pictures).model, whole.model)


@pytest.mark.parametrize('where', ['prune', 'distill'])
def test_a_stage_goes_on_only_from_the_checkpoint_that_it_began_with(whole, pictures, tmp_path, where):
    """A plan that is measured again may cut otherwise, where the recipe is what it was."""
    output, last = tmp_path / 'out', ('distill', 3 if where == 'distill' else None)
    with pytest.raises(Killed):
        compress(output, pictures, progress=KillAt(*last))
    before = output / 'stages' / '02-prune' / 'stage.json'
    before.write_text(before.read_text().replace('"seconds": ', '"seconds": 1'))
    listener = Listener()
    began = []
    again = compress(output, pictures, progress=Began(began, listener))
    assert began == [('distill', 1)], 'from its first step'
    assert listener.kept == {'source': False, 'finetune': True, 'prune': True, 'distill': False, 'measure': False}
    assert same(again.model, whole.model)


def test_a_folder_whose_first_file_was_not_finished_is_taken(pictures, tmp_path):
    output = tmp_path / 'out'
    output.mkdir()
    for name in ('.run.0123456789ab.json', '.model.0123456789ab'):
        (output / name).write_text('{')
    compress(output, pictures, stages=[{'prune': {'ratio': 0.5}}])
    assert not list(output.glob('.run.*')) + list(output.glob('.model.*'))
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / '.mine').write_text('{')
    with pytest.raises(StoreError, match='is not empty'):
        compress(tmp_path / 'other', pictures)


def test_what_describes_an_older_model_goes_before_another_one_comes(pictures, tmp_path):
    output = tmp_path / 'out'
    compress(output, pictures, stages=[{'prune': {'ratio': 0.3}}])
    assert (output / 'report.html').is_file()
    with pytest.raises(Killed):
        compress(output, pictures, stages=[{'prune': {'ratio': 0.6}}], progress=KillAt('measure', 0))
    assert strop.load(output, factory=small_net)[0].out_channels < 12
    assert not (output / 'report.html').exists()
    assert not (output / 'README.md').exists()
    compress(output, pictures, stages=[{'prune': {'ratio': 0.6}}])
    assert (output / 'report.html').is_file()
    assert (output / 'README.md').is_file()


def test_scores_of_runtimes_are_of_the_data_of_this_run(pictures, tmp_path):
    options = {'stages': [{'prune': {'ratio': 0.5}}]}
    compress(tmp_path / 'out', pictures, **options)
    images, labels = pictures['test']
    found = compress(tmp_path / 'out', {**pictures, 'test': (images, labels.roll(1))}, **options)
    rows = [entry for entry in found.result.measurements if (entry.stage, entry.precision) == ('prune', 'f32')]
    assert [entry.score for entry in rows] == pytest.approx([found.result.stage('prune').scores['accuracy']] * len(rows))


def test_the_drop_is_that_of_the_file_for_the_runtime_of_the_budget(pictures, tmp_path):
    pytest.importorskip('openvino')
    pytest.importorskip('onnxruntime')
    quantizers = [
        {'quantize': {'backend': name, 'activation': 'min_max', 'baseline': False}} for name in ('onnxruntime', 'openvino')
    ]
    found = compress(
        tmp_path / 'out', pictures, stages=[*STAGES[:1], *quantizers], budget={'runtime': 'onnxruntime', 'accuracy_drop': 50.0},
        runtimes=['onnxruntime'],
    )  # fmt: skip
    first, judged = found.result.stage('finetune').scores['accuracy'], found.result.stage('quantize').scores['accuracy']
    assert f'{100 * (first - judged):.4g} points of 50 points' in found.result.outcome.sentences[0]


class _Noisy(torch.utils.data.Dataset):
    """Pictures with noise of the global generator."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.1 * torch.randn(1, 8, 8), int(self.labels[index])


def test_a_run_on_samples_that_are_drawn_goes_on_and_gives_the_same(tmp_path, pictures):
    noisy = {part: _Noisy(*given) for part, given in pictures.items()}
    first = compress(tmp_path / 'first', noisy)
    torch.rand(3)  # another process finds the generator elsewhere
    with pytest.raises(Killed):
        compress(tmp_path / 'second', noisy, progress=KillAt('prune', None))
    torch.rand(5)
    listener = Listener()
    second = compress(tmp_path / 'second', noisy, progress=listener)
    assert listener.kept['finetune']
    assert listener.kept['prune']
    assert same(first.model, second.model)
    assert [stage.scores for stage in first.result.stages] == [stage.scores for stage in second.result.stages]


def test_another_model_in_memory_is_not_written_over_the_first(tmp_path, pictures):
    compress(tmp_path / 'out', pictures, stages=[{'prune': {'ratio': 0.5}}])
    other = small_net()
    with torch.no_grad():
        other[0].weight.mul_(2)
    options = {'stages': [{'prune': {'ratio': 0.5}}], 'output': tmp_path / 'out', **QUICK}
    with pytest.raises(StoreError, match=r'holds a compression of Sequential in memory, weights \w+ on'):
        strop.compress(other, pictures, **options)


def test_a_factory_is_tried_before_anything_runs_and_may_be_corrected(tmp_path, pictures, monkeypatch):
    (tmp_path / 'own_nets.py').write_text(
        'from tests.compression.conftest import small_net\n'
        'def right():\n    return small_net()\n'
        'def wide():\n    return small_net(24)\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    stages = [{'prune': {'ratio': 0.5}}]
    with pytest.raises(StropError, match='own_nets'):
        compress(tmp_path / 'out', pictures, stages=stages, factory='own_nets:wrong')
    with pytest.raises(ConfigError, match=r"'0\.bias' is of shape \(24,\), that of the model is of shape \(16,\)"):
        compress(tmp_path / 'out', pictures, stages=stages, factory='own_nets:wide')
    assert not (tmp_path / 'out').exists()
    compress(tmp_path / 'out', pictures, stages=stages)
    listener = Listener()
    found = compress(tmp_path / 'out', pictures, stages=stages, factory='own_nets:right', progress=listener)
    assert listener.kept['prune']
    assert same(strop.load(found.folder, allow=['own_nets']), found.model)


def test_a_stage_that_fails_by_whatever_error_is_told_in_the_result(tmp_path, pictures, monkeypatch):
    import strop.compression.learning as module

    def broken(*args, **options):
        raise IndexError('no such thing')

    monkeypatch.setattr(module, 'train', broken)
    with pytest.raises(IndexError, match='no such thing'):
        compress(tmp_path / 'out', pictures)
    entry = CompressionResult.read(tmp_path / 'out').stages[-1]
    assert (entry.status, entry.warnings) == ('failed', ['IndexError: no such thing'])


def test_a_model_of_timm_in_memory_gets_images_as_it_was_trained_with_them(tmp_path, image_folder):
    timm = pytest.importorskip('timm')
    model = timm.create_model('resnet10t', num_classes=2)
    options = dict(output=tmp_path / 'out', **QUICK)
    job = planned(model, DataSource(str(image_folder), size=32, augment=False), stages=['export'], **options)
    job.open()
    raw = DataSource(str(image_folder), size=32, augment=False, mean=(0, 0, 0), std=(1, 1, 1))
    unchanged = planned(model, raw, stages=['export'], **options)
    unchanged.open()
    mean, std = (255 * torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    assert torch.allclose(job.data.test[0][0], (unchanged.data.test[0][0] - mean) / std, atol=1e-5)
    assert 'normalised as `pretrained_cfg` of the ResNet says' in job.notes[0]
    assert not unchanged.notes


def test_the_threads_of_the_caller_are_put_back(tmp_path, pictures):
    torch.set_num_threads(2)
    compress(tmp_path / 'out', pictures, stages=[{'prune': {'ratio': 0.5}}])
    assert torch.get_num_threads() == 2
    dry_run(planned(small_net(), pictures, stages=['finetune'], threads=1))
    assert torch.get_num_threads() == 2


def test_times_of_another_machine_are_measured_again(tmp_path, pictures, monkeypatch):
    def times(folder):
        return json.loads((folder / 'stages' / 'measurements.json').read_text())['digest']

    stages = [{'prune': {'ratio': 0.5}}]
    compress(tmp_path / 'out', pictures, stages=stages)
    before = times(tmp_path / 'out')
    compress(tmp_path / 'out', pictures, stages=stages)
    assert times(tmp_path / 'out') == before
    here = Machine.here(1)
    monkeypatch.setattr(Machine, 'here', lambda threads: dataclasses.replace(here, cpu='another'))
    compress(tmp_path / 'out', pictures, stages=stages)
    assert times(tmp_path / 'out') != before


def test_from_any_stage_times_are_measured_again_and_from_the_first_the_original_is_scored_again(
    tmp_path, pictures, monkeypatch
):
    measure, timed = measuring.measure_runtimes, []

    def counted(*args, **options):
        timed.append(1)
        return measure(*args, **options)

    monkeypatch.setattr(measuring, 'measure_runtimes', counted)
    options = {'stages': [{'prune': {'ratio': 0.5}}, {'distill': {'epochs': 1}}]}
    scores = compress(tmp_path / 'out', pictures, **options).result.stage('source').scores
    # As if the code behind the names of the model and the data had been another one then.
    kept = tmp_path / 'out' / 'stages' / '00-source' / 'stage.json'
    content = json.loads(kept.read_text())
    content['entry']['scores'] = old = {**scores, 'accuracy': 0.123}
    kept.write_text(json.dumps(content))

    def again(**more):
        return compress(tmp_path / 'out', pictures, **options, **more).result.stage('source').scores

    assert (again(), len(timed)) == (old, 1)
    assert (again(from_stage='distill'), len(timed)) == (old, 2)
    assert (again(from_stage='prune'), len(timed)) == (scores, 3)
