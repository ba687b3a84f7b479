"""Text for calibration, and perplexity."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from strop.errors import ConfigError, DataError
from strop.graph.forward import training_mode_kept
from strop.randomness import counter_rng


def token_windows(tokens: Any, length: int, number: int, seed: int = 0) -> list[Tensor]:
    """Return `number` windows of a text that don't overlap, chosen at random, as batches of one for a language model.

    Args:
        tokens: The ids of the tokenized text: a list, a tensor `(n,)` or `(1, n)`, or what a tokenizer returns.
        length: Tokens in a window; the context that the model will be used with.
        number: How many windows.
        seed: Chooses among them.

    Raises:
        DataError: If the text is too short.
        ConfigError: If a size is not positive, or the text is not tokenized.

    >>> [window.tolist() for window in token_windows(range(10), length=3, number=2, seed=1)]
    [[[0, 1, 2]], [[3, 4, 5]]]
    """
    ids = _ids(tokens)
    for name, value in (('length', length), ('number', number)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f'`{name}` is a positive number, but got {value!r}.')
    if len(ids) < length * number:
        raise DataError(
            f'{number} windows of {length} tokens need {number * length} tokens, but the text has {len(ids)}. '
            f'Take {"a shorter `length`" if len(ids) < length else f"at most {len(ids) // length} windows"}, or more text.'
        )
    starts = sorted(counter_rng(seed, 'token_windows').permutation(len(ids) // length)[:number].tolist())
    return [ids[None, start * length : (start + 1) * length] for start in starts]


def perplexity(model: nn.Module, tokens: Any, context: int = 512, limit: int | None = None) -> float:
    r"""Return :math:`\exp` of the mean negative log-likelihood of each token given those before it in its window.

    The text is cut into windows of `context` tokens without overlap; the first token of each is not scored.

    Args:
        model: A causal language model: called with ids `(1, context)`, gives logits `(1, context, vocabulary)`, bare or as
            `logits` of what it returns.
        tokens: See `token_windows`.
        context: Tokens in a window.
        limit: Score the first `limit` tokens only.

    Raises:
        DataError: If the text has fewer than two tokens, or the model gives NaN.

    >>> uniform = nn.Embedding.from_pretrained(torch.zeros(7, 7))
    >>> round(perplexity(uniform, [1, 2, 3, 4, 5, 6], context=3), 4)
    7.0
    """
    ids = _ids(tokens)[:limit]
    if not isinstance(context, int) or context < 2:
        raise ConfigError(f'`context` is at least 2 tokens, but got {context!r}.')
    if len(ids) < 2:
        raise DataError(f'Perplexity needs at least two tokens, but the text has {len(ids)}.')
    device = next((parameter.device for parameter in model.parameters()), torch.device('cpu'))
    total, scored = 0.0, 0
    with torch.no_grad(), training_mode_kept(model):
        model.eval()
        for window in ids.split(context):
            if len(window) < 2:
                continue
            output = model(window[None].to(device))
            logits = output if isinstance(output, Tensor) else output.logits
            loss = F.cross_entropy(logits[0, :-1].float(), window[1:].to(logits.device), reduction='sum')
            total, scored = total + float(loss), scored + len(window) - 1
    if math.isnan(total):
        raise DataError('The model gives NaN on this text.')
    return math.exp(total / scored) if total / scored < 700 else math.inf


def _ids(tokens: Any) -> Tensor:
    tokens = getattr(tokens, 'input_ids', tokens)
    if isinstance(tokens, str):
        raise ConfigError('Text is tokenized before it is cut: give `tokenizer(text).input_ids`.')
    try:
        ids = tokens.detach() if isinstance(tokens, Tensor) else torch.tensor(list(tokens))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f'`tokens` are the ids of a text, one list of integers, but got {type(tokens).__name__}.') from error
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.numel() and (ids.dim() != 1 or ids.is_floating_point()):
        raise ConfigError(f'`tokens` are the ids of one text, `(n,)` integers, but got {tuple(ids.shape)} of {ids.dtype}.')
    return ids.long().reshape(-1)
