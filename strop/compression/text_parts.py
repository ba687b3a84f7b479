"""A text as parts of a data set: its lines, or windows of tokens."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from strop.compression.parts import NO_LABEL, DataParts, Pairs
from strop.errors import DataError, try_import
from strop.randomness import counter_rng

if TYPE_CHECKING:
    from strop.compression.data_source import DataSource


def text_parts(source: DataSource, seed: int, own: str | None, windows: bool) -> DataParts:
    """Return the parts of a text, each cut in one piece: neighbouring pieces of a text are alike.

    Args:
        source: What the recipe says.
        seed: Of the choice of calibration samples.
        own: Folder of the model's tokenizer.
        windows: Whether the model gives a prediction for each token.

    Raises:
        DataError: If it cannot be read, there is no tokenizer, or it is too short.
    """
    path = Path(source.source).expanduser()
    folder = source.tokenizer or own
    if folder is None:
        raise DataError(f'To read {path} a tokenizer is needed: give `tokenizer`, the folder of one.')
    transformers = try_import('transformers', 'transformers')
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f'There is no tokenizer in {folder}: {str(error).strip().splitlines()[0]}') from error
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if path.suffix == '.gz' else raw).decode('utf-8')
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f'{path} cannot be read as text in UTF-8: {error}') from error
    by_window = source.chunk == 'windows' or (source.chunk is None and windows)
    samples = _windows(text, tokenizer, source) if by_window else _lines(text, tokenizer, source)
    if len(samples) < 8:
        raise DataError(f'{path} gives {len(samples)} samples; at least 8 are needed. Give more text, or a smaller `length`.')
    count = len(samples)
    held, chosen = max(1, round(source.test * count)), max(1, round(source.val * count))
    if held + chosen >= count:
        raise DataError(
            f'{path} gives {count} samples, of which `val` ({source.val:g}) and `test` ({source.test:g}) leave none to learn '
            'from. Give more text, or smaller shares.'
        )
    learned, validation, test = samples[: count - held - chosen], samples[count - held - chosen : count - held], samples[-held:]
    picked = np.sort(counter_rng(seed, 'calibration').permutation(len(learned))[: source.calibration])
    return DataParts(
        name=path.name,
        train=Pairs(learned),
        calibration=Pairs([learned[index] for index in picked]),
        validation=Pairs(validation),
        test=Pairs(test),
        labels=by_window and source.labels,
        batch_size=source.batch_size,
        tokens=True,
    )


def _windows(text: str, tokenizer: Any, source: DataSource) -> list[tuple[dict[str, Tensor], Tensor]]:
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)['input_ids'])
    count = len(ids) // source.length
    count = count if source.limit is None else min(count, source.limit)
    return [
        ({'input_ids': ids[i * source.length : (i + 1) * source.length]}, ids[i * source.length : (i + 1) * source.length])
        for i in range(count)
    ]


def _lines(text: str, tokenizer: Any, source: DataSource) -> list[tuple[dict[str, Tensor], int]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = lines if source.limit is None else lines[: source.limit]
    if not lines:
        return []
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = tokenizer(lines, padding='max_length', truncation=True, max_length=source.length, return_tensors='pt')
    names = [name for name in ('input_ids', 'attention_mask') if name in found]
    return [({name: found[name][index] for name in names}, NO_LABEL) for index in range(len(lines))]


__all__ = ['text_parts']
