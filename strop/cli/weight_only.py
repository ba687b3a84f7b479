"""The part of `strop quantize` that rounds only weights: `--weight-only int4`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strop.cli.models import Target

#: Options of `strop quantize` for integers that a runtime computes with.
NOT_FOR_WEIGHTS = (
    'backend', 'activation', 'weight', 'per_channel', 'symmetric', 'percentile', 'reduce_range', 'bias_correction',
    'smooth_alpha', 'calibrate_norms', 'measure', 'threads', 'sensitivity',
)  # fmt: skip
#: Options of `--weight-only` alone.
FOR_WEIGHTS = ('method', 'group_size', 'context', 'score')


def bits_of(name: str) -> int:
    """Return the bits of a name such as `int4`.

    Raises:
        ConfigError: If it is none, or has other bits than 2 to 8.

    >>> bits_of('int4')
    4
    """
    from strop.errors import ConfigError

    found = re.fullmatch(r'(?:int)?([2-8])', name)
    if found is None:
        raise ConfigError(f'--weight-only is int2 to int8, such as int4, but got {name!r}.')
    return int(found[1])


def round_weights(
    found: Target,
    bits: int,
    method: str,
    group_size: int | None,
    data: str | None,
    score: str | None,
    batches: int,
    batch_size: int,
    context: int,
    ignored: tuple[str, ...],
) -> tuple[Any, dict[str, float]]:
    """Return the model with rounded weights and its record, and perplexities before and after if they were asked for.

    Raises:
        ConfigError: If GPTQ has no data, or a text has no tokenizer.
        DataError: If a text is too short.
    """
    from strop.cli.quantizing import calibration_data
    from strop.errors import ConfigError
    from strop.quantization import perplexity, quantize_weights, token_windows

    given = None
    if method == 'gptq':
        if data is None:
            raise ConfigError(
                'GPTQ looks at data: give --data, a text such as wiki.txt for a language model. --method rtn needs none.'
            )
        given = (
            token_windows(tokens(found, data), context, batches)
            if _is_text(data)
            else calibration_data(found, data, batches, batch_size)
        )
    elif data is not None:
        raise ConfigError('Rounding to nearest looks at no data: leave --data out, or take --method gptq.')
    figures = {}
    ids = None if score is None else tokens(found, score)
    if ids is not None:
        figures['before'] = perplexity(found.model, ids, context)
    result = quantize_weights(
        found.model,
        bits,
        group_size or None,
        method=method,
        data=given,
        ignored=list(ignored) if ignored else None,
        inplace=True,
    )
    if ids is not None:
        figures['after'] = perplexity(result.model, ids, context)
    return result, figures


def _is_text(path: str) -> bool:
    return path.endswith(('.txt', '.txt.gz', '.md'))


def tokens(found: Target, path: str) -> Any:
    """Return the ids of a text, by the tokenizer in the folder of a transformers model.

    Raises:
        ConfigError: If there is no such file, or no tokenizer.
        DataError: If the file cannot be read as text.
    """
    import gzip
    import zlib
    from pathlib import Path

    from strop.errors import ConfigError, DataError, try_import

    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f'There is no file {path!r} with text.')
    kind, _, folder = found.name.partition(':')
    if kind != 'transformers':
        raise ConfigError(
            f'Text is for models of transformers:FOLDER, whose tokenizer lies in the folder, but this is {found.name}.'
        )
    try:
        text = gzip.decompress(file.read_bytes()).decode() if file.suffix == '.gz' else file.read_text(encoding='utf-8')
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f'{path} cannot be read as text: {error}') from error
    transformers = try_import('transformers', 'transformers')
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(Path(folder).expanduser()), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f'{folder} has no tokenizer to read text with: {str(error).strip().splitlines()[0]}') from error
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def run(target: str, found: Target, name: str, out: str | None, as_json: bool, layers: bool, options: dict[str, Any]) -> None:
    """Round the weights of a model, print what that did, and write the packed weights with the record beside them."""
    from pathlib import Path

    from strop.cli.console import note, show, show_json
    from strop.errors import ConfigError
    from strop.quantization import save_packed

    bits = bits_of(name)
    if out is not None and Path(out).suffix != '.safetensors':
        raise ConfigError(f"Packed weights are a '.safetensors' file, but --out is {out!r}.")
    result, figures = round_weights(found, bits, **options)
    record, files = result.record, {}
    if out is not None:
        save_packed(result.model, out)
        beside = Path(out).with_suffix('.json')
        record.save(beside)
        files = {'model': out, 'record': str(beside)}
    if as_json:
        show_json({'target': target, 'record': record.to_dict(), 'perplexity': figures or None, 'files': files})
        return
    if layers:
        show(record.table())
    before, after = (f'{number / 1e6:.1f} MB' for number in record.bytes)
    show(f'{target}: {len(record.layers)} layers in {record.grid}, by {record.method}; {before} before, {after} packed.')
    show(*(f'{layer} stays as it is: {reason}.' for layer, reason in record.left.items()), *record.notes)
    if figures:
        show(f'Perplexity {figures["before"]:.2f} before, {figures["after"]:.2f} after.')
    show(*files.values())
    if out is None:
        note('nothing is saved; --out FILE.safetensors writes the packed weights, which strop.quantization.load_packed reads.')
