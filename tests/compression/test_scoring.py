"""Scores and losses by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from strop.compression.calling import main_output
from strop.compression.parts import given_parts
from strop.compression.scoring import Judge, with_better_norms
from strop.errors import ConfigError, DataError, TrainingError
from tests.compression.conftest import small_net


def _parts(x, y=None, **options):
    samples = x if y is None else (x, y)
    return given_parts({'train': samples, 'test': samples, 'validation': samples}, batch_size=3, **options)


class Constant(nn.Module):
    """Gives the logits of a table, row by the first input."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, x):
        return self.table[x[:, 0].long()]


def test_accuracy_and_agreement_of_classes():
    x, y = torch.arange(4.0)[:, None], torch.tensor([0, 1, 1, 0])
    original = Constant([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    other = Constant([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    judge = Judge(_parts(x, y), original)
    assert judge.scores(original) == {'accuracy': 0.75, 'agreement': 1.0}
    assert judge.scores(other) == {'accuracy': 0.75, 'agreement': 0.5}
    assert (judge.metric, judge.choice, judge.learns) == ('accuracy', 'accuracy', True)


def test_without_leave_to_learn_from_labels_choices_go_by_agreement_and_scores_by_labels():
    x, y = torch.arange(4.0)[:, None], torch.tensor([0, 1, 1, 0])
    judge = Judge(_parts(x, y, labels=False), Constant([[2.0, 1.0]] * 4))
    assert (judge.metric, judge.choice, judge.learns) == ('accuracy', 'agreement', False)
    with pytest.raises(ConfigError, match='no labels to learn from'):
        judge.loss(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long))


def test_outputs_that_are_no_classes_are_compared_by_their_angle():
    x = torch.tensor([[0.0], [1.0]])
    judge = Judge(_parts(x), Constant([[[1.0], [0.0]], [[0.0], [2.0]]]))
    assert judge.metric == 'similarity'
    assert judge.scores(Constant([[[1.0], [1.0]], [[0.0], [-1.0]]]))['similarity'] == pytest.approx((1 / math.sqrt(2) - 1) / 2)


def test_the_tokens_of_a_text_are_no_labels():
    ids = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 0]])
    parts = given_parts(
        {part: [({'input_ids': row}, row) for row in ids] for part in ('train', 'validation', 'test')}, labels=False
    )

    class Next(nn.Module):
        def forward(self, input_ids):
            return torch.eye(2)[input_ids]

    judge = Judge(parts, Next())
    assert (judge.metric, judge.choice, judge.learns) == ('token_accuracy', 'token_accuracy', False)
    assert judge.score(Next()) == judge.scores(Next(), 'validation')['token_accuracy']


def test_tokens_are_scored_by_the_next_one():
    ids = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 0]])
    samples = [({'input_ids': row}, row) for row in ids]

    class Next(nn.Module):
        def forward(self, input_ids):
            return {'logits': torch.stack([torch.zeros_like(input_ids), torch.ones_like(input_ids)], -1).float()}

    judge = Judge(given_parts({'train': samples, 'test': samples, 'validation': samples}), Next())
    found = judge.scores(Next())
    assert judge.metric == 'token_accuracy'
    assert found['token_accuracy'] == pytest.approx(2 / 6)
    wanted = (2 * (1 - math.log(1 + math.e)) + 4 * -math.log(1 + math.e)) / 6
    assert found['log_likelihood'] == pytest.approx(wanted)


def test_the_divergence_of_classes_is_kullback_and_leiblers_at_a_temperature():
    judge = Judge(_parts(torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])), Constant([[1.0, 0.0]]))
    student, teacher = torch.tensor([[1.0, 3.0]], dtype=torch.float64), torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    p, q = (torch.softmax(logits / 2, 1) for logits in (teacher, student))
    wanted = 4 * float((p * (p / q).log()).sum())
    assert float(judge.divergence(student, teacher, temperature=2.0)) == pytest.approx(wanted)


def test_the_gap_is_the_mean_divergence_of_all_samples():
    x = torch.arange(4.0)[:, None]
    first = torch.tensor([[2.0, 1.0], [1.0, 2.0], [0.0, 0.0], [3.0, -3.0]])
    second = first + torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    judge = Judge(_parts(x, labels=False), Constant(first.tolist()))  # batches of three and one
    p, q = first.double().softmax(1), second.double().softmax(1)
    assert judge.gap(Constant(second.tolist())) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    assert judge.gap(judge.original) == 0
    assert judge.gap(lambda inputs: second[inputs[:, 0].long()]) == judge.gap(Constant(second.tolist()))


def test_the_gap_of_tokens_is_of_every_token():
    ids = torch.tensor([[0, 1, 0], [1, 1, 0]])
    samples = [({'input_ids': row, 'attention_mask': torch.tensor([1, 1, 0])}, row) for row in ids]

    class Words(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def forward(self, input_ids, attention_mask):
            return {'logits': torch.stack([input_ids.float(), self.shift * torch.ones_like(input_ids)], 2)}

    judge = Judge(given_parts({'train': samples, 'test': samples, 'validation': samples}, batch_size=2), Words(0.0))
    assert judge.task == 'tokens'
    p = torch.tensor([[[x, 0.0] for x in row] for row in ids.tolist()]).double().softmax(2)
    q = torch.tensor([[[x, 1.0] for x in row] for row in ids.tolist()]).double().softmax(2)
    # A divergence is a sum over the classes of one token and a mean over the tokens.
    assert judge.gap(Words(1.0)) == pytest.approx(float((p * (p / q).log()).sum(2).mean()), rel=1e-5)


def test_the_standard_error_is_that_of_a_share_of_the_samples():
    judge = Judge(_parts(torch.arange(4.0)[:, None], torch.tensor([0, 1, 1, 0])), Constant([[2.0, 1.0]] * 4))
    assert judge.error(0.75) == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert judge.error(1.0) == 0
    assert Judge(_parts(torch.zeros(3, 1)), Constant([[[1.0], [0.0]]])).error(0.5) == 0


def test_hidden_states_are_averaged_where_the_mask_has_tokens():
    states = torch.tensor([[[1.0], [3.0], [100.0]]])
    inputs = {'attention_mask': torch.tensor([[1, 1, 0]])}
    assert main_output({'last_hidden_state': states}, inputs).tolist() == [[2.0]]
    assert main_output([states], inputs).tolist() == [[2.0]]


def test_a_model_that_does_not_take_the_data_is_told_with_the_shapes():
    with pytest.raises(DataError, match=r'Linear does not take the data \(\(2, 1\)\)'):
        Judge(_parts(torch.zeros(4, 1)), nn.Linear(3, 2))


def test_outputs_that_are_not_finite_are_an_error():
    parts = _parts(torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(DataError, match='NaN or infinite'):
        Judge(parts, Constant([[float('nan'), 0.0]]))
    with pytest.raises(TrainingError, match='NaN or infinite'):
        Judge(parts, Constant([[1.0, 0.0]])).scores(Constant([[float('inf'), 0.0]]))


def test_a_judge_of_smaller_images_compares_with_what_the_original_says_of_whole_ones(parts, judge):
    seen = []

    def run(inputs):
        seen.append(tuple(inputs.shape[2:]))
        return small_net()(inputs)

    half = judge.at(4).scores(run)
    assert set(seen) == {(4, 4)}
    answers = torch.cat([small_net()(inputs) for inputs in parts.inputs('test')]).argmax(1)
    mine = torch.cat([small_net()(inputs) for inputs in parts.at(4).inputs('test')]).argmax(1)
    assert half['agreement'] == pytest.approx(float((answers == mine).double().mean()))
    assert judge.scores(small_net())['agreement'] == 1


def test_norms_are_measured_again_where_that_does_better(parts, judge):
    class Normed(nn.Module):
        """Gives the norm of each quarter's mean; the right class if the statistics are those of the data."""

        def __init__(self, mean):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.norm.running_mean += torch.tensor(mean)

        def forward(self, x):
            return self.norm(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))

    batches = parts.inputs('calibration')
    off, right = Normed([0.0, 0.0, 0.0, 9.0]), Normed([0.25] * 4)
    mended = with_better_norms(off, batches, judge)
    assert mended.again
    assert mended.score == judge.score(mended.model) > judge.score(off)
    assert off.norm.running_mean[3] == 9  # what was given stays as it is
    # Statistics of one class alone are worse than those that it has.
    mine, _ = parts.calibration[0]
    kept = with_better_norms(right, [mine[None].repeat(8, 1, 1, 1)], judge)
    assert kept.model is not right
    assert torch.equal(kept.model.norm.running_mean, right.norm.running_mean)
    assert (kept.again, kept.score) == (False, judge.score(right))
    # Where there are none, nothing has to be scored.
    plain = with_better_norms(nn.Sequential(nn.Flatten(), nn.Linear(mine.numel(), 4)), batches, judge)
    assert (plain.again, plain.score) == (False, None)


def test_score_and_gap_are_found_in_one_pass(parts, judge):
    calls, student = [], small_net(8)
    student.register_forward_hook(lambda *_: calls.append(1))
    both = judge.score_and_gap(student)
    once = len(calls)
    assert both == (judge.score(student), judge.gap(student))
    assert len(calls) == 3 * once
    assert judge.score_and_gap(student, 'test')[0] == judge.scores(student)['accuracy']


def test_the_original_answers_once_for_each_part(parts):
    calls, original = [], small_net()
    judge = Judge(parts, original)
    same, student = judge.at(4).scores(original), small_net()
    original.register_forward_hook(lambda *_: calls.append(1))
    assert judge.scores(original)['agreement'] == 1
    assert judge.scores(original) == judge.scores(student)
    assert not calls, 'its answers are known from before'
    # Images of another size are others to it.
    assert judge.at(4).scores(original) == same == judge.at(4).scores(student)
    assert calls


def test_labels_in_columns_are_an_error_and_vectors_no_classes():
    x, table = torch.arange(4.0)[:, None], [[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]]
    with pytest.raises(DataError, match='one whole number for each sample'):
        Judge(_parts(x, torch.zeros(4, 1, dtype=torch.long)), Constant(table))
    judge = Judge(_parts(x, torch.rand(4, 2)), Constant(table))
    assert (judge.metric, judge.learns) == ('similarity', False)
    assert judge.scores(judge.original) == {'similarity': pytest.approx(1.0)}


class _Late(torch.utils.data.Dataset):
    """Says which label a sample has only when it is read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([float(index)]), [0, 1, 7, 0][index]


def test_labels_that_are_only_seen_when_they_are_read_are_an_error_then():
    judge = Judge(_parts(_Late()), Constant([[2.0, 1.0]] * 4))
    with pytest.raises(DataError, match="tells 2 classes apart, but the part 'test' has the label 7"):
        judge.scores(judge.original)
    with pytest.raises(DataError, match='the training part has the label 7'):
        judge.loss(torch.zeros(2, 2), torch.tensor([0, 7]))


@pytest.mark.parametrize('squeezed', [False, True])
def test_a_model_of_one_number_is_scored_by_how_far_off_it_is(squeezed):
    """By hand: the original gives 0, 1, 2, 5 with a variance of 3.5; the other is 1 off twice."""

    class Regressor(nn.Module):
        def __init__(self, offset):
            super().__init__()
            self.offset = nn.Parameter(torch.tensor(offset))

        def forward(self, x):
            found = x + self.offset * (x < 2)
            return found[:, 0] if squeezed else found

    x = torch.tensor([[0.0], [1.0], [2.0], [5.0]])
    judge = Judge(_parts(x, torch.rand(4)), Regressor(0.0))
    assert (judge.task, judge.metric, judge.choice) == ('outputs', 'r2', 'r2')
    assert judge.scores(judge.original) == {'r2': 1.0}
    assert judge.scores(Regressor(1.0)) == {'r2': pytest.approx(1 - 0.5 / 3.5)}
    assert judge.score(Regressor(-8.0)) == pytest.approx(1 - 32 / 3.5)
    assert judge.error(0.5) == 0
    assert judge.gap(Regressor(1.0)) > 0


def test_labels_of_tokens_belong_to_their_own_place():
    """A tagger and a text: the target of a place is its own there, and the next one's here."""
    ids, tags = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]), torch.tensor([[1, 0, 1, -100], [0, 0, -100, -100]])
    given = [({'input_ids': row}, target) for row, target in zip(ids, tags)]
    text = [({'input_ids': row}, torch.cat([row[:3], torch.tensor([-100])])) for row in ids]

    class Opposite(nn.Module):
        def forward(self, input_ids):
            return 4.0 * torch.eye(2)[1 - input_ids]

    tagger = Judge(given_parts(dict.fromkeys(('train', 'validation', 'test'), given)), Opposite())
    assert (tagger.metric, tagger.shifted) == ('token_accuracy', False)
    sure = -math.log1p(math.exp(-4.0))
    assert tagger.scores(Opposite()) == {'token_accuracy': 1.0, 'log_likelihood': pytest.approx(sure, rel=1e-5)}
    outputs = Opposite()(ids)
    assert float(tagger.loss(outputs, tags)) == pytest.approx(-sure, rel=1e-5)

    reader = Judge(given_parts(dict.fromkeys(('train', 'validation', 'test'), text)), Opposite())
    assert reader.shifted
    # Of 0 1 0 the two that follow are foreseen; of 1 1 0 the last alone.
    assert reader.scores(Opposite())['token_accuracy'] == pytest.approx((1 + 0.5) / 2)


class _Tagger(nn.Module):
    """Tags each token by its opposite, or all of them alike."""

    def __init__(self, alike=False):
        super().__init__()
        self.alike = alike

    def forward(self, input_ids, attention_mask):
        return {'logits': 4.0 * torch.eye(2)[torch.ones_like(input_ids) if self.alike else 1 - input_ids]}


def _tagged(tags):
    ids, mask = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    return [({'input_ids': row, 'attention_mask': seen}, target) for row, seen, target in zip(ids, mask, tags)]


def test_without_leave_to_learn_from_labels_of_tokens_choices_go_by_agreement():
    """By hand, of the places in the mask: 1 0 1 and 0 0 of the original, 1 1 1 and 1 1 of the other."""
    given = _tagged(torch.tensor([[1, 0, 1, -100], [0, 0, -100, -100]]))
    unread = _tagged(torch.full((2, 4), 7))  # no class at all
    parts = given_parts({'train': given, 'validation': unread, 'test': given}, labels=False, batch_size=1)
    judge = Judge(parts, _Tagger())
    assert (judge.metric, judge.choice, judge.learns) == ('token_accuracy', 'agreement', False)
    assert judge.scores(judge.original, 'validation') == {'agreement': 1.0}
    score, gap = judge.score_and_gap(_Tagger(alike=True))
    assert score == judge.score(_Tagger(alike=True)) == pytest.approx((2 / 3 + 0) / 2)
    assert gap > 0 == judge.gap(judge.original)
    found = judge.scores(_Tagger(alike=True))
    assert set(found) == {'token_accuracy', 'log_likelihood', 'agreement'}
    assert judge.score(_Tagger(alike=True), 'test') == found['token_accuracy'] == pytest.approx((2 / 3 + 0) / 2)


def test_labels_of_tokens_that_are_no_class_are_told_and_may_be_of_any_integer_type():
    tags = torch.tensor([[1, 0, 1, -100], [0, 0, -100, -100]])
    judge = Judge(given_parts(dict.fromkeys(('train', 'validation', 'test'), _tagged(tags))), _Tagger())
    short = Judge(given_parts(dict.fromkeys(('train', 'validation', 'test'), _tagged(tags.int()))), _Tagger())
    assert short.scores(short.original) == judge.scores(judge.original)
    outputs = _Tagger()(torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]), None)
    assert short.loss(outputs, tags.int()) == judge.loss(outputs, tags)
    wrong = _tagged(torch.where(tags == 1, 7, tags))
    for part in ('validation', 'test'):
        judge = Judge(given_parts({**dict.fromkeys(('train', 'validation', 'test'), _tagged(tags)), part: wrong}), _Tagger())
        with pytest.raises(DataError, match=f"tells 2 classes apart, but the part '{part}' has the label 7"):
            judge.scores(judge.original, part)


@pytest.mark.parametrize('part', ['train', 'validation', 'test'])
def test_a_sample_without_a_label_among_others_is_an_error(part):
    x, y = torch.arange(4.0)[:, None], torch.tensor([0, 1, 1, 0])
    given = {name: (x, y.clone()) for name in ('train', 'validation', 'test')}
    given[part][1][2] = -1
    with pytest.raises(DataError, match=f"Samples of the part '{part}' have no label"):
        Judge(given_parts(given), Constant([[2.0, 1.0]] * 4))
    if part != 'test':  # nothing reads them then
        Judge(given_parts(given, labels=False), Constant([[2.0, 1.0]] * 4)).scores(Constant([[2.0, 1.0]] * 4), part)
    if part == 'validation':
        with pytest.raises(DataError, match="Samples of the part 'validation' have no label"):
            Judge(given_parts({**given, 'validation': x}), Constant([[2.0, 1.0]] * 4))


def test_a_wrong_label_is_found_before_the_loss_is_computed(monkeypatch):
    """On a GPU the loss itself would end the process."""
    x, y = torch.arange(4.0)[:, None], torch.tensor([0, 1, 1, 0])
    judge = Judge(_parts(x, y), Constant([[2.0, 1.0]] * 4))

    def fails(*args, **options):
        raise RuntimeError('CUDA error: device-side assert triggered')

    monkeypatch.setattr('strop.compression.scoring.F.cross_entropy', fails)
    with pytest.raises(DataError, match='has the label 7'):
        judge.loss(torch.zeros(2, 2), torch.tensor([0, 7]))


def test_a_judge_of_fewer_samples_draws_them_from_all(pictures):
    images, labels = (tensor[:100] for tensor in pictures['train'])
    order = labels.argsort()  # in the order of their classes, as in folders
    parts = given_parts({'train': (images, labels), 'validation': (images[order], labels[order]), 'test': (images, labels)})
    original = small_net()
    judge, few = Judge(parts, original), Judge(parts, original).fewer(40)
    assert judge.fewer(100) is judge
    assert (few.data.counts()['validation'], parts.counts()['validation']) == (40, 100)
    drawn = [few.data.validation[index] for index in range(40)]
    assert len({int(target) for _, target in drawn}) == 4
    student = small_net(8)
    with torch.no_grad():
        right = [float(student(image[None])[0].argmax() == target) for image, target in drawn]
        same = [float(student(image[None])[0].argmax() == original(image[None])[0].argmax()) for image, _ in drawn]
    assert few.scores(student, 'validation') == pytest.approx({'accuracy': sum(right) / 40, 'agreement': sum(same) / 40})
    assert few.error(0.5) == pytest.approx((0.25 / 40) ** 0.5)
    assert few.at(4).data.counts() == few.data.counts()
    assert few.scores(student, 'test') == judge.scores(student, 'test')
