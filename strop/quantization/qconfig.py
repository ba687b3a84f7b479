"""What is quantized how: bits, scheme and method of a tensor, and of the weight and the input of a layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from strop.errors import ConfigError, near
from strop.quantization.fake_quantize import FakeQuantizer
from strop.registry import MODELS

METHODS = ('int', 'lsq', 'lsq+', 'pact')


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized.

    Args:
        bits: 2 to 8.
        signed: Codes around zero, `-2^(b-1)` to `2^(b-1) - 1`; otherwise 0 to `2^b - 1`.
        symmetric: Zero has the middle code (or code 0, where a learned quantizer sees that no value is below zero).
        per_channel: Each channel has a step of its own.
        narrow: Leave the lowest signed code out, so that the negative of each code is one, too.
        fake_quant: Registered name of the fake quantizer.
        observer: Registered name of its observer.
        options: More arguments of either.

    Raises:
        ConfigError: For any other number of bits.

    >>> spec = QuantSpec(bits=4)
    >>> spec.quant_min, spec.quant_max
    (-8, 7)
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    per_channel: bool = False
    narrow: bool = False
    fake_quant: str = 'FakeQuantize'
    observer: str = 'MovingAverageMinMaxObserver'
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 8:
            raise ConfigError(f'`bits` must be 2 to 8, but got {self.bits!r}: one bit and fewer need methods of their own.')

    @property
    def quant_min(self) -> int:
        """Lowest code."""
        return -(2 ** (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def quant_max(self) -> int:
        """Highest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    def build(self, is_weight: bool = False, ch_axis: int = 0) -> FakeQuantizer:
        """Return the fake quantizer.

        Args:
            is_weight: Whether it is for a parameter.
            ch_axis: The axis of its channels.

        Raises:
            ConfigError: If the name is of no fake quantizer.
        """
        kind = 'channel' if self.per_channel else 'tensor'
        built = MODELS.build(
            dict(
                self.options,
                type=self.fake_quant,
                observer=MODELS.get(self.observer),
                quant_min=self.quant_min,
                quant_max=self.quant_max,
                dtype=torch.qint8 if self.signed else torch.quint8,
                qscheme=getattr(torch, f'per_{kind}_{"symmetric" if self.symmetric else "affine"}'),
                ch_axis=ch_axis,
                is_weight=is_weight,
            )
        )
        if not isinstance(built, FakeQuantizer):
            raise ConfigError(
                f'{self.fake_quant!r} is a {type(built).__name__}, not a fake quantizer (LearnableFakeQuantize, ...).'
            )
        return built


@dataclass(frozen=True)
class QConfig:
    """How the weight and the input of a layer are quantized; None leaves one of them as it is.

    >>> QConfig.of('lsq4').weight.bits
    4
    """

    weight: QuantSpec | None = None
    input: QuantSpec | None = None

    @classmethod
    def of(cls, name: str | QConfig, per_channel: bool = True) -> QConfig:
        """Return what a name stands for: a method (`int`, `lsq`, `lsq+`, `pact`) and the bits of weights and inputs, as in
        `lsq4`.

        `int` takes the range of a weight's channels and the moving average of an input's range; `lsq` and `lsq+` learn the
        steps of both; `pact` learns the level of inputs. `lsq+` begins as published, `lsq` where rounding loses least: the
        beginning of LSQ's paper (`LSQObserver`, for a `QuantSpec`) is up to seven times too wide for few steps of training to
        mend.

        Args:
            name: The name; or a `QConfig`, which is returned.
            per_channel: Whether weights have a step for each output channel, which costs integer kernels nothing. The paper of
                LSQ has one for each weight: False.

        Raises:
            ConfigError: If there is no such method or number of bits.

        >>> QConfig.of('int8').input.observer
        'MovingAverageMinMaxObserver'
        """
        if isinstance(name, QConfig):
            return name
        found = re.fullmatch(r'([a-z]+\+?)(\d+)', str(name))
        if found is None or found[1] not in METHODS:
            raise ConfigError(
                f'{name!r} names no quantization: it is a method ({", ".join(METHODS)}) and a number of bits: int8, lsq4.'
                f'{near(name, [method + bits for method in METHODS for bits in "8432"])}'
            )
        method, bits = found[1], int(found[2])
        # The range of the weight as it is now; a moving average would lag behind what is trained.
        plain = QuantSpec(
            bits,
            per_channel=per_channel,
            narrow=bits == 8,
            observer='MovingAveragePerChannelMinMaxObserver' if per_channel else 'MovingAverageMinMaxObserver',
            options={'averaging_constant': 1.0},
        )
        moving = QuantSpec(bits, signed=False, symmetric=False)
        if method == 'int':
            return cls(plain, moving)
        if method == 'pact':
            return cls(plain, replace(moving, symmetric=True, fake_quant='PACTFakeQuantize'))
        learned = {
            'fake_quant': 'LearnableFakeQuantize',
            'observer': 'LeastErrorObserver' if method == 'lsq' else 'LSQPlusObserver',
        }
        weight = replace(plain, options={}, **learned)  # type: ignore[arg-type]
        if method == 'lsq':
            return cls(weight, replace(moving, symmetric=True, **learned))  # type: ignore[arg-type]
        return cls(weight, replace(moving, options={'zero_point_trainable': True}, **learned))  # type: ignore[arg-type]

    @property
    def bits(self) -> int:
        """The fewer of the two numbers of bits."""
        return min([spec.bits for spec in (self.weight, self.input) if spec is not None], default=32)


_QSCHEME_KEYS = ('qdtype', 'bit', 'is_symmetry', 'is_symmetric_range')


def from_mmrazor(config: Mapping[str, Any] | str | QConfig) -> QConfig:
    """Translate the `global_qconfig` of MMRazor, with keys `w_observer`, `a_observer`, `w_fake_quant`, `a_fake_quant`,
    `w_qscheme`, `a_qscheme`.

    A `quint8` scheme that is symmetric keeps zero at the middle code where an observer gives it; learned quantizers take code
    0 where no value is below zero.

    Args:
        config: The mapping; a name such as 'lsq4' and a `QConfig` are taken as `QConfig.of` does.

    Raises:
        ConfigError: If a key is missing or unknown.

    >>> moving, rows = dict(type='MovingAverageMinMaxObserver'), dict(type='mmrazor.PerChannelMinMaxObserver')
    >>> qconfig = from_mmrazor(
    ...     dict(
    ...         w_observer=rows,
    ...         a_observer=moving,
    ...         w_fake_quant=dict(type='mmrazor.FakeQuantize'),
    ...         a_fake_quant=dict(type='mmrazor.FakeQuantize'),
    ...         w_qscheme=dict(qdtype='qint8', bit=8, is_symmetry=True, is_symmetric_range=True),
    ...         a_qscheme=dict(qdtype='quint8', bit=8, is_symmetry=True, averaging_constant=0.1),
    ...     )
    ... )
    >>> qconfig.weight.per_channel, qconfig.weight.quant_min, qconfig.input.options
    (True, -127, {'averaging_constant': 0.1})
    """
    if isinstance(config, (str, QConfig)):
        return QConfig.of(config)
    if not isinstance(config, Mapping):
        raise ConfigError(f'A qconfig is a mapping or a name such as lsq4, but got {type(config).__name__}.')
    keys = [f'{side}_{part}' for side in 'wa' for part in ('observer', 'fake_quant', 'qscheme')]
    unknown = [key for key in config if key not in keys]
    if unknown:
        raise ConfigError(f'A qconfig has no key {unknown[0]!r}.{near(unknown[0], keys)} It has {", ".join(keys)}.')
    return QConfig(_spec_of(config, 'w'), _spec_of(config, 'a'))


def _spec_of(config: Mapping[str, Any], side: str) -> QuantSpec | None:
    parts = {part: config.get(f'{side}_{part}') for part in ('observer', 'fake_quant', 'qscheme')}
    if all(part is None for part in parts.values()):
        return None
    for part, given in parts.items():
        wanted = ('type',) if part != 'qscheme' else ()
        if not isinstance(given, Mapping) or any(key not in given for key in wanted):
            raise ConfigError(
                f'`{side}_{part}` of a qconfig must be a mapping{" with a type" if wanted else ""}, but got {given!r}.'
            )
    scheme = dict(parts['qscheme'] or {})
    dtype = scheme.get('qdtype', 'qint8' if side == 'w' else 'quint8')
    if dtype not in ('qint8', 'quint8'):
        raise ConfigError(
            f"`qdtype` of `{side}_qscheme` must be 'qint8' or 'quint8', but got {dtype!r}.{near(dtype, ['qint8', 'quint8'])}"
        )
    observer, fake_quant = dict(parts['observer'] or {}), dict(parts['fake_quant'] or {})
    name = str(observer.pop('type'))
    options = {key: value for key, value in scheme.items() if key not in _QSCHEME_KEYS}
    known = str(fake_quant.pop('type'))
    return QuantSpec(
        bits=scheme.get('bit', 8),
        signed=dtype == 'qint8',
        symmetric=bool(scheme.get('is_symmetry', True)),
        per_channel='PerChannel' in name,
        narrow=bool(scheme.get('is_symmetric_range', False)) and dtype == 'qint8',
        fake_quant=known,
        observer=name,
        options={**options, **observer, **fake_quant},
    )
