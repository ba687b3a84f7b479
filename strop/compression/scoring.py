"""How good a model is: what its outputs are, the scores of them, and the losses to learn by."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from strop.compression.calling import as_batches, call, laid, layout_for, main_output
from strop.compression.parts import DataParts, check_classes, check_range, is_class
from strop.errors import ConfigError, DataError, TrainingError
from strop.pruning import recalibrate

#: The target of a token that does not count, such as one of padding.
IGNORED = -100

#: Takes inputs, gives outputs: a model, or a file in its runtime.
Run = Callable[[Any], Any]


class Judge:
    """The scores of models on the parts of a data set; higher is better.

    What the scores are follows from the outputs of the original model and the targets:

    - `accuracy`, and `top5` of more than 20 classes, where there are classes and labels;
    - `agreement`: the share of samples whose likeliest class is the original's; where each token has a label that stages may
      not see, the share of places, without those that the attention mask leaves out;
    - `token_accuracy` and `log_likelihood` (a token, in nats) for a model that predicts each token of a text, or a label of
      each; targets of -100 do not count;
    - `r2`, for a model that gives one number: one less the mean squared difference to the original's over their variance;
    - `similarity`: the mean cosine of the outputs to the original's, for everything else, such as targets that are vectors.

    Args:
        data: The parts.
        original: The model before any stage, in eval mode. It stays as it is: what it gives for a part is found out once.

    Raises:
        DataError: If labels are no classes of the model, or outputs are not finite.
    """

    def __init__(self, data: DataParts, original: nn.Module) -> None:
        self.data = data
        self.original = original
        self._answers: dict[str, list[Tensor]] = {}
        inputs = data.example(2)
        with torch.no_grad():
            try:
                output = main_output(call(original, inputs), inputs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                if isinstance(error, (DataError, ConfigError)):
                    raise
                raise DataError(
                    f'{type(original).__name__} does not take the data ({_shapes(inputs)}): {type(error).__name__}: '
                    f'{str(error).strip().splitlines()[0][:300]}'
                ) from error
        if not bool(torch.isfinite(output).all()):
            raise DataError(
                f'{type(original).__name__} gives NaN or infinite outputs on the data before anything was done to it.'
            )
        self.outputs = output.shape[1:]
        target = data.test[0][1]
        tokens = isinstance(target, Tensor) and output.ndim == 3 and not target.is_floating_point()
        classes = output.ndim == 2 and output.shape[1] > 1 and not data.tokens
        if classes and not is_class(target):
            # A vector for each sample, or a real number: what is to be given, not which class it is.
            classes = isinstance(target, (Tensor, np.ndarray)) and math.prod(target.shape) == 1 and is_class(target.reshape(()))
        #: Whether the target of a token is the one behind it, as in a text, and not a label of its own.
        self.shifted = data.tokens or (tokens and _is_the_text(data.test[0][0], target))
        #: 'classes', 'tokens' or 'outputs'.
        self.task = 'tokens' if tokens else 'classes' if classes else 'outputs'
        #: Whether there are labels to score by.
        self.labelled = self.task == 'tokens' or (self.task == 'classes' and data.scored_by_label)
        if self.task == 'classes' and self.labelled:
            check_classes(data, int(output.shape[1]))
        #: Whether stages may learn from labels.
        self.learns = self.labelled and data.labels

    def at(self, side: int | None) -> Judge:
        """Return a judge of models that see images with another short side; the original sees whole ones as before."""
        other = copy.copy(self)
        other.data = self.data.at(side)
        return other

    def fewer(self, most: int) -> Judge:
        """Return a judge that chooses by so many validation samples at most, drawn from all of them."""
        data = self.data.fewer(most)
        if data is self.data:
            return self
        other = copy.copy(self)
        other.data, other._answers = data, {}
        return other

    @property
    def metric(self) -> str:
        """The name of the main score on the test part."""
        if self.task == 'tokens':
            return 'token_accuracy'
        if self.task == 'outputs':
            # The angle between two numbers is 0 or a half turn, however far apart they are.
            return 'r2' if math.prod(self.outputs) == 1 else 'similarity'
        return 'accuracy' if self.labelled else 'agreement'

    @property
    def choice(self) -> str:
        """The name of the score that choices are made by: one without labels if stages may not see them."""
        return self.metric if self.learns or self.shifted or self.task == 'outputs' else 'agreement'

    def scores(self, run: Run | nn.Module, part: str = 'test', limit: int | None = None) -> dict[str, float]:
        """Return every score of a model on a part.

        Args:
            run: A model, or what runs it: inputs in, outputs out.
            part: Which samples.
            limit: So many batches at most.

        Raises:
            TrainingError: If outputs are not finite.
        """
        return self._judged(run, part, limit, gap=False)[0]

    def score(self, run: Run | nn.Module, part: str = 'validation', limit: int | None = None) -> float:
        """Return the score that choices are made by; of the test part the main one."""
        return self.scores(run, part, limit)[self.metric if part == 'test' else self.choice]

    def error(self, score: float, part: str = 'validation') -> float:
        """Return the standard error of a score: that of a share of the samples; 0 for what is no share of them."""
        samples = len(getattr(self.data, part))
        return 0.0 if self.task == 'outputs' else math.sqrt(max(score * (1 - score), 0.0) / max(samples, 1))

    def gap(self, run: Run | nn.Module, part: str = 'validation') -> float:
        """Return how far outputs are from the original's on a part: the mean `divergence`.

        It tells models apart that get equally many samples right.

        Args:
            run: A model, or what runs it.
            part: Which samples.

        Raises:
            TrainingError: If outputs are not finite.
        """
        return self.score_and_gap(run, part)[1]

    def score_and_gap(self, run: Run | nn.Module, part: str = 'validation') -> tuple[float, float]:
        """Return `score` and `gap` of a model, which goes through the samples once for both.

        Args:
            run: A model, or what runs it.
            part: Which samples.

        Raises:
            TrainingError: If outputs are not finite.
        """
        scores, gap = self._judged(run, part, None, gap=True)
        return scores[self.metric if part == 'test' else self.choice], gap

    def loss(self, outputs: Any, targets: Any, inputs: Any = None, smoothing: float = 0.0) -> Tensor:
        """Return the mean loss of a batch by its targets: cross-entropy of classes, or of the next token.

        Raises:
            ConfigError: If there are no targets to learn from.
        """
        if not self.learns:
            raise ConfigError(
                'There are no labels to learn from here. Learn from the original model instead: a `distill` '
                'stage without `hard`.'
            )
        output = main_output(outputs, inputs)
        if self.task == 'tokens':
            output, targets = self._aligned(output, targets)
            output, targets = output.flatten(0, 1), targets.flatten()
        if not targets.is_floating_point():  # before, since on a GPU a wrong one ends the whole process
            targets = targets.long()  # unsigned ones would wrap around in comparisons
            wrong = ((targets < 0) | (targets >= output.shape[1])) & (targets != IGNORED)
            if bool(wrong.any()):
                check_range(targets[wrong], output.shape[1], 'the training part')
        if self.task == 'tokens':
            return F.cross_entropy(output, targets, ignore_index=IGNORED)
        return F.cross_entropy(output, targets, label_smoothing=smoothing)

    def divergence(self, outputs: Any, answers: Any, inputs: Any = None, temperature: float = 1.0) -> Tensor:
        """Return how far outputs are from those of another model, as a mean over the batch.

        The Kullback-Leibler divergence of classes and tokens at a temperature, times its square; of other outputs the mean
        squared difference, in units of the other's mean square.
        """
        output, wanted = main_output(outputs, inputs), main_output(answers, inputs).detach()
        if self.task == 'outputs':
            return F.mse_loss(output, wanted) / wanted.square().mean().clamp_min(1e-12)
        size = output.shape[-1]
        first = F.log_softmax(output.reshape(-1, size) / temperature, 1)
        second = F.log_softmax(wanted.reshape(-1, size) / temperature, 1)
        return F.kl_div(first, second, reduction='batchmean', log_target=True) * temperature**2

    # -- internals -------------------------------------------------------------------------

    def _judged(self, run: Run | nn.Module, part: str, limit: int | None, gap: bool) -> tuple[dict[str, float], float]:
        """Return every score, and the gap if it is wanted."""
        tokens = self.task == 'tokens'
        answers = self._original_answers(part) if not tokens or self.choice == 'agreement' else []
        sums: dict[str, float] = {}
        total, count = 0.0, 0
        # What the original itself gives is known where its answers are, unless it sees other images here than there.
        known = answers if run is self.original and self.data.side is None and not tokens else None
        seen = part == 'test' or self.learns or self.shifted  # the tokens of a text are no labels
        for number, (inputs, targets, output) in enumerate(_outputs(run, self.data.batches(part), limit, known)):
            if not bool(torch.isfinite(output).all()):
                raise TrainingError(f'The model gives NaN or infinite outputs on the {part} samples.')
            if self.labelled and seen:
                wanted = self._aligned(output, targets)[1].long()
                check_range(wanted[wanted != IGNORED] if tokens else wanted, output.shape[-1], f'the part {part!r}')
            answer = answers[number] if answers else None
            targets = targets if seen or not tokens else None
            for name, value in self._of_batch(inputs, output, targets, answer).items():
                sums[name] = sums.get(name, 0.0) + value
            if gap:
                if tokens:  # those to each token of a text are too large to keep
                    with torch.no_grad():
                        answer = main_output(call(self.original, inputs), inputs).float()
                total += float(self.divergence(output, answer)) * len(output)
            count += len(output)
        mean = total / max(count, 1)
        if 'r2' in sums:
            every = torch.cat([answer.flatten() for answer in answers]).double()
            spread = every.var(correction=0) or every.square().mean()  # of a constant: how far off in units of itself
            return {'r2': 1 - sums['r2'] / max(count, 1) / max(float(spread), 1e-24)}, mean
        return {name: value / max(count, 1) for name, value in sums.items()}, mean

    def _original_answers(self, part: str) -> list[Tensor]:
        """Return what the original gives for the batches of a part; of each token the likeliest class alone."""
        if part not in self._answers:
            outputs = (output for _, _, output in _outputs(self.original, self.data.at(None).batches(part)))
            self._answers[part] = [output.argmax(2) if self.task == 'tokens' else output for output in outputs]
        return self._answers[part]

    def _aligned(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (output[:, :-1], targets[:, 1:]) if self.shifted else (output, targets)

    def _of_batch(self, inputs: Any, output: Tensor, targets: Any, answer: Tensor | None) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.task == 'tokens':
            if targets is not None:
                predicted, wanted = self._aligned(output, targets.long())
                counted = (wanted != IGNORED).sum(1).clamp_min(1)
                right = (predicted.argmax(2) == wanted).double()  # where a target does not count, nothing is right
                losses = F.cross_entropy(predicted.flatten(0, 1), wanted.flatten(), reduction='none', ignore_index=IGNORED)
                likelihood = -losses.double().view(wanted.shape)
                found['token_accuracy'] = float((right.sum(1) / counted).sum())
                found['log_likelihood'] = float((likelihood.sum(1) / counted).sum())
            if answer is not None:
                places = _places(inputs, answer)
                same = ((output.argmax(2) == answer) & places).double()
                found['agreement'] = float((same.sum(1) / places.sum(1).clamp_min(1)).sum())
            return found
        assert answer is not None, 'every other task has answers of the original'
        if self.task == 'outputs':
            output, answer = output.reshape(len(output), -1), answer.reshape(len(answer), -1)
            if self.metric == 'r2':  # the squared differences; their sum is put in relation at the end
                return {'r2': float((output.double() - answer.double()).square().sum())}
            return {'similarity': float(F.cosine_similarity(output, answer).double().sum())}
        if self.labelled:
            found['accuracy'] = float((output.argmax(1) == targets).sum())
            if output.shape[1] > 20:
                found['top5'] = float((output.topk(5, 1).indices == targets[:, None]).any(1).sum())
        found['agreement'] = float((output.argmax(1) == answer.argmax(1)).sum())
        return found


def _places(inputs: Any, answer: Tensor) -> Tensor:
    """Return where there is a token, as the mask of a text says; everywhere without one."""
    mask = inputs.get('attention_mask') if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == answer.shape else torch.ones_like(answer).bool()


def _is_the_text(inputs: Any, target: Tensor) -> bool:
    """Whether the targets of tokens are the tokens themselves, but for those that do not count."""
    named = inputs.get('input_ids') if isinstance(inputs, Mapping) else None
    tokens = named if named is not None else next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
    return tokens is not None and tokens.shape == target.shape and bool(((tokens == target) | (target == IGNORED)).all())


def _outputs(
    run: Run | nn.Module, batches: Iterable[tuple[Any, Any]], limit: int | None = None, known: list[Tensor] | None = None
) -> Iterator[tuple[Any, Any, Tensor]]:
    """Yield the inputs and targets of batches with what a model, put into eval mode, gives for them, unless that is known."""
    layout = torch.contiguous_format
    for number, (inputs, targets) in enumerate(islice(batches, limit)):
        if known:
            yield inputs, targets, known[number]
            continue
        if isinstance(run, nn.Module):
            if number == 0:
                run.eval()
                layout = layout_for(run, inputs)
            inputs = laid(inputs, layout)
        with torch.no_grad():
            outputs = call(run, inputs) if isinstance(run, nn.Module) else run(inputs)
        yield inputs, targets, main_output(outputs, inputs).float().cpu()


@dataclass(frozen=True)
class Normed:
    """A copy of a model with the statistics of batch norms that suit it.

    Args:
        model: The copy.
        score: What it scores on the validation samples; None if that did not have to be found out.
        again: Whether the statistics were measured again.
    """

    model: nn.Module
    score: float | None
    again: bool


def with_better_norms(model: nn.Module, batches: Any, judge: Judge) -> Normed:
    """Measure the statistics of a model's batch norms again, and take them if it then scores better on the validation samples.

    Where much was cut they are far off without it; but those that a model was trained with are of many more samples than there
    may be here.

    Args:
        model: The model; it stays as it is.
        batches: Inputs of batches to measure them on.
        judge: What scores it.

    Returns:
        A copy in any case, whether it has the new ones, and its score if that had to be found out.
    """
    kept, again = copy.deepcopy(model), copy.deepcopy(model)
    if not recalibrate(again, as_batches(batches)):
        return Normed(kept, None, False)
    try:
        before = judge.score(kept, 'validation')
    except TrainingError:  # its outputs are not finite as it is
        return Normed(again, None, True)
    after = judge.score(again, 'validation')
    return Normed(again, after, True) if after > before else Normed(kept, before, False)


def _shapes(inputs: Any) -> str:
    return ', '.join(str(tuple(leaf.shape)) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


__all__ = ['Judge', 'Normed', 'Run', 'with_better_norms']
