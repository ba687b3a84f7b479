"""Numbers as a reader of a report sees them: three digits, a unit, a change."""

from __future__ import annotations

import math

RUNTIMES = {
    'eager': 'PyTorch eager',
    'compile': 'torch.compile',
    'onnxruntime': 'ONNX Runtime',
    'openvino': 'OpenVINO',
    'executorch': 'ExecuTorch',
}

#: Metrics that are parts of one, shown in percent.
SHARES = ('accuracy', 'agreement', 'top1', 'top5', 'precision', 'recall', 'f1', 'map', 'iou')

NOTHING = '–'

_MICRO = 0.1  # milliseconds below which a time is written in microseconds


def digits(value: float, most: int = 3) -> str:
    """Return a number with three digits that matter.

    >>> digits(1234.5), digits(12.345), digits(0.0012345), digits(0)
    ('1,234', '12.3', '0.00123', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f'{value:g}'
    behind = most - 1 - math.floor(math.log10(abs(value)))
    return f'{value:,.{min(max(behind, 0), 9)}f}'


def counted(value: float | None) -> str:
    """Return a number of things with a prefix.

    >>> counted(1_814_073_344), counted(512), counted(None)
    ('1.81 G', '512', '–')
    """
    if value is None:
        return NOTHING
    for size, name in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= size:
            return f'{digits(value / size)} {name}'
    return f'{value:g}'


def round_count(value: float) -> str:
    """Return a round number of things, as axes have them.

    >>> round_count(40_000), round_count(2_500_000), round_count(0)
    ('40 k', '2.5 M', '0')
    """
    number, _, prefix = counted(value).partition(' ')
    return (number.rstrip('0').rstrip('.') if '.' in number else number) + (f' {prefix}' if prefix else '')


def milliseconds(value: float | None) -> str:
    """Return a time that is given in milliseconds.

    >>> milliseconds(1234.0), milliseconds(0.52), milliseconds(0.0421)
    ('1,234 ms', '0.520 ms', '42.1 µs')
    """
    if value is None:
        return NOTHING
    return f'{digits(1e3 * value)} µs' if 0 < value < _MICRO else f'{digits(value)} ms'


def spread(low: float, high: float, median: float) -> str:
    """Return the ends of an interval around a time, in the unit that the time is written in.

    >>> spread(0.04, 0.051, 0.0421), spread(0.5, 0.6, 0.52)
    ('40.0 to 51.0 µs', '0.500 to 0.600 ms')
    """
    scale, unit = (1e3, 'µs') if 0 < median < _MICRO else (1.0, 'ms')
    return f'{digits(scale * low)} to {digits(scale * high)} {unit}'


def megabytes(value: float | None) -> str:
    """Return a size; the argument is in units of 10^6 bytes.

    >>> megabytes(44.7), megabytes(0.0794)
    ('44.7 MB', '79.4 kB')
    """
    if value is None:
        return NOTHING
    return f'{digits(1e3 * value)} kB' if value < 1 else f'{digits(value)} MB'


def duration(seconds: float) -> str:
    """Return how long something took.

    >>> duration(3.21), duration(75), duration(7300)
    ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s'


def is_share(metric: str, value: float) -> bool:
    """Whether a score is a part of one."""
    return 0 <= value <= 1 and any(word in metric.lower().replace('-', '').replace('_', '') for word in SHARES)


def score(metric: str, value: float | None) -> str:
    """Return a score: shares in percent, others as they are.

    >>> score('accuracy', 0.9047), score('perplexity', -21.5), score('accuracy', None)
    ('90.47 %', '-21.5', '–')
    """
    if value is None:
        return NOTHING
    return f'{100 * value:.2f} %' if is_share(metric, value) else f'{value:.4g}'


def score_change(metric: str, before: float | None, after: float | None) -> str:
    """Return how a score changed: shares in points.

    >>> score_change('accuracy', 0.9, 0.8925), score_change('psnr', 30.0, 31.5)
    ('−0.75 points', '+1.5')
    """
    if before is None or after is None:
        return ''
    if is_share(metric, before) and is_share(metric, after):
        return f'{signed(100 * (after - before), ".2f")} points'
    return signed(after - before, '.3g')


def change(before: float | None, after: float | None) -> str:
    """Return how an amount changed, in percent.

    >>> change(200, 50), change(100, 110), change(5, 5), change(0, 1)
    ('−75 %', '+10 %', '±0 %', '')
    """
    if not before or after is None:
        return ''
    percent = 100 * (after / before - 1)
    return f'{signed(percent, ".0f")} %' if abs(percent) >= 1 or percent == 0 else f'{signed(percent, ".1f")} %'


def signed(value: float, form: str) -> str:
    """Return a number with its sign, the minus as printers set it; zero has both.

    >>> signed(-0.25, '.1f'), signed(0.001, '.1f')
    ('−0.2', '±0.0')
    """
    text = format(abs(value), form)
    return ('±' if not float(text) else '+' if value > 0 else '−') + text


def times(value: float) -> str:
    """Return a factor.

    >>> times(2.345), times(0.98), times(35.2)
    ('2.35 ×', '0.98 ×', '35.2 ×')
    """
    return f'{value:.2f} ×' if value < 10 else f'{digits(value)} ×'


def shape(sizes: list[int] | None) -> str:
    """Return a shape.

    >>> shape([64, 3, 7, 7])
    '64×3×7×7'
    """
    return '' if not sizes else '×'.join(map(str, sizes))


def runtime(name: str) -> str:
    """Return what a reader calls a runtime.

    >>> runtime('onnxruntime'), runtime('mine')
    ('ONNX Runtime', 'mine')
    """
    return RUNTIMES.get(name, name)


__all__ = [
    'NOTHING', 'change', 'counted', 'digits', 'duration', 'is_share', 'megabytes', 'milliseconds', 'round_count', 'runtime',
    'score', 'score_change', 'shape', 'signed', 'spread', 'times',
]  # fmt: skip
