"""The quantizers of MMRazor's configs: which layers of an architecture are quantized, and how.

They are translated to `prepare_qat`. What they needed for rewriting traced graphs (tracers, lists of redundant fake
quantizers) has nothing to do here, since nothing is traced; names of modules to be left alone are honoured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from torch import nn

from strop.errors import ConfigError, near
from strop.quantization.qat import prepare_qat, quantizable
from strop.quantization.qconfig import QConfig, from_mmrazor
from strop.registry import MODELS, TASK_UTILS


@TASK_UTILS.register_module()
class CustomTracer:
    """Modules that stay in float, under the name that MMRazor's configs give them by.

    Args:
        skipped_methods: Not used: methods need no protection from being traced.
        skipped_module_names: Patterns (`fnmatch`) of names of modules left in float.
        skipped_module_classes: Classes of modules left in float, or their names.

    >>> CustomTracer(skipped_module_names=['head']).skipped_module_names
    ['head']
    """

    def __init__(
        self,
        skipped_methods: str | Sequence[str] = (),
        skipped_module_names: str | Sequence[str] = (),
        skipped_module_classes: Any = (),
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.skipped_methods = _several(skipped_methods)
        self.skipped_module_names = _several(skipped_module_names)
        self.skipped_module_classes = _several(skipped_module_classes)
        if self.skipped_methods:
            print_log('CustomTracer: `skipped_methods` is not needed, since nothing is traced.', logger='current')


def _several(given: Any) -> list[Any]:
    return [given] if isinstance(given, (str, type)) else list(given or ())


def _of_class(model: nn.Module, classes: Iterable[Any]) -> list[str]:
    """Return the names of the layers to quantize that are modules of some classes, or inside of one.

    Others of a class, such as activations, have nothing that would be quantized.

    Args:
        model: The model.
        classes: The classes themselves, their names or dotted names.
    """
    layers = {id(layer): name for name, layer in quantizable(model).items()}
    found: list[str] = []
    for wanted in classes:
        last = wanted if isinstance(wanted, type) else str(wanted).rpartition('.')[2]
        modules = []
        for name, module in model.named_modules():
            kinds = type(module).__mro__
            if name and (last in kinds or last in [kind.__name__ for kind in kinds]):
                modules.append(module)
        if not modules:
            names = sorted({type(module).__name__ for name, module in model.named_modules() if name})
            shown = getattr(last, '__name__', last)
            print_log(f'No module is a {shown}.{near(shown, names)}', logger='current', level=logging.WARNING)
        inside = {id(child) for module in modules for child in module.modules()}
        found += [name for key, name in layers.items() if key in inside]
    return found


class BaseQuantizer:
    """What quantizers share: the global qconfig, and what is left in float.

    Args:
        global_qconfig: MMRazor's mapping (see `from_mmrazor`), a name such as 'lsq4' or a `QConfig`.
        tracer: A `CustomTracer` or its config; modules that it skips stay in float.
        first_last: As for `prepare_qat`. By default a qconfig that is a name gives 8 bits to the first and the last layer
            where others have fewer; a mapping holds for all.

    Raises:
        ConfigError: If the qconfig is wrong, or the quantizer's backend cannot run it.
    """

    #: The backend that the scheme is for; None for any.
    backend: str | None = None

    def __init__(
        self, global_qconfig: Any, tracer: Any = None, first_last: str | QConfig | Mapping[str, Any] | None = 'default'
    ) -> None:
        self.qconfig = from_mmrazor(global_qconfig)
        built = TASK_UTILS.build(dict(tracer)) if isinstance(tracer, Mapping) else tracer
        self.tracer = CustomTracer() if built is None else built
        if first_last == 'default':
            first_last = 'auto' if isinstance(global_qconfig, str) else None
        auto = first_last is None or first_last == 'auto'
        self.first_last: Any = first_last if auto else from_mmrazor(first_last)  # type: ignore[arg-type]
        # The name, so that 8 bits are those of the same method.
        self._given = global_qconfig if isinstance(global_qconfig, str) else self.qconfig
        self.check(self.qconfig)

    def check(self, qconfig: QConfig) -> None:
        """Raise a `ConfigError` if the backend cannot run a qconfig."""

    def overrides(self, model: nn.Module) -> dict[str, Any]:
        """Return pattern -> qconfig of layers that differ."""
        return {}

    def ignored(self, model: nn.Module) -> list[str]:
        """Return the names of modules left in float."""
        names = getattr(self.tracer, 'skipped_module_names', [])
        return [*names, *_of_class(model, getattr(self.tracer, 'skipped_module_classes', []))]

    def prepare(self, model: nn.Module) -> nn.Module:
        """Put fake quantizers on the model itself, and return it.

        Raises:
            ConfigError: If a name matches no layer, or there is nothing to quantize.
        """
        return prepare_qat(
            model,
            self._given,
            overrides=self.overrides(model),
            ignored=self.ignored(model),
            first_last=self.first_last,
            inplace=True,
        )


@MODELS.register_module()
class TorchNativeQuantizer(BaseQuantizer):
    """One qconfig for all layers.

    Args:
        global_qconfig: MMRazor's mapping (see `from_mmrazor`), a name such as 'lsq4' or a `QConfig`.
        no_observer_modules: Classes (or their dotted names) of modules left in float.
        tracer: A `CustomTracer` or its config; modules that it skips stay in float.
        extra_redundant_fakequants: Not used: fake quantizers stand only where a layer reads its input and weight.
        first_last: See `BaseQuantizer`.

    Raises:
        ConfigError: If the qconfig is wrong, or the quantizer's backend cannot run it.

    >>> quantizer = TorchNativeQuantizer('lsq8', tracer=CustomTracer(skipped_module_names=['1']))
    >>> model = quantizer.prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    >>> [name for name, module in model.named_modules() if hasattr(module, 'weight_fake_quant')]
    ['0']
    """

    def __init__(
        self,
        global_qconfig: Any,
        no_observer_modules: Any = None,
        tracer: Any = None,
        extra_redundant_fakequants: Mapping[str, Any] | None = None,
        first_last: str | QConfig | Mapping[str, Any] | None = 'default',
    ) -> None:
        super().__init__(global_qconfig, tracer, first_last)
        self.no_observer_modules = _several(no_observer_modules)
        if any((extra_redundant_fakequants or {}).values()):
            print_log(
                f'{type(self).__name__}: `extra_redundant_fakequants` is not needed, since fake quantizers stand only on the '
                'inputs and weights of layers.',
                logger='current',
            )

    def ignored(self, model: nn.Module) -> list[str]:
        """Return the names of modules left in float."""
        return [*super().ignored(model), *_of_class(model, self.no_observer_modules)]


@MODELS.register_module()
class OpenVINOQuantizer(TorchNativeQuantizer):
    """`TorchNativeQuantizer` for schemes that OpenVINO's integer kernels run: 8 bits, weights symmetric.

    >>> OpenVINOQuantizer('lsq4')
    Traceback (most recent call last):
    strop.errors.ConfigError: OpenVINO runs 8 bits, but the weight has 4. AcademicQuantizer takes any number of bits.
    """

    backend = 'openvino'

    def check(self, qconfig: QConfig) -> None:
        """Raise a `ConfigError` if OpenVINO cannot run a qconfig."""
        _check_eight_bits('OpenVINO', qconfig)
        if qconfig.weight is not None and not (qconfig.weight.symmetric and qconfig.weight.signed):
            raise ConfigError('OpenVINO runs symmetric signed weights. Set is_symmetry=True and qdtype="qint8" in `w_qscheme`.')


@MODELS.register_module()
class TensorRTQuantizer(TorchNativeQuantizer):
    """`TorchNativeQuantizer` for schemes that TensorRT's integer kernels run: 8 bits, all symmetric around zero.

    >>> TensorRTQuantizer('lsq8')
    Traceback (most recent call last):
    strop.errors.ConfigError: TensorRT runs codes around zero only. Set qdtype="qint8" and is_symmetry=True in `a_qscheme`.
    """

    backend = 'tensorrt'

    def check(self, qconfig: QConfig) -> None:
        """Raise a `ConfigError` if TensorRT cannot run a qconfig."""
        _check_eight_bits('TensorRT', qconfig)
        for key, spec in (('w_qscheme', qconfig.weight), ('a_qscheme', qconfig.input)):
            if spec is not None and not (spec.symmetric and spec.signed):
                raise ConfigError(f'TensorRT runs codes around zero only. Set qdtype="qint8" and is_symmetry=True in `{key}`.')


def _check_eight_bits(backend: str, qconfig: QConfig) -> None:
    for what, spec in (('weight', qconfig.weight), ('input', qconfig.input)):
        if spec is not None and spec.bits != 8:
            raise ConfigError(
                f'{backend} runs 8 bits, but the {what} has {spec.bits}. AcademicQuantizer takes any number of bits.'
            )


@MODELS.register_module()
class AcademicQuantizer(BaseQuantizer):
    """Any bits, by class and by name of layers.

    Args:
        qconfig_mapping: Keys `_global_` (a qconfig for all layers), `object_type` (class or its dotted name -> qconfig) and
            `module_name` (pattern -> qconfig), the latter two as mappings or lists of pairs. A qconfig is MMRazor's mapping, a
            name such as 'lsq4', or None for float. A name counts more than a class.
        tracer: A `CustomTracer` or its config; modules that it skips stay in float.
        prepare_custom_config: `non_traceable_module_name` and `non_traceable_module_class` stay in float; other keys of
            MMRazor's play no part.
        first_last: See `BaseQuantizer`.

    Raises:
        ConfigError: If a key is unknown, or a qconfig is wrong.

    >>> quantizer = AcademicQuantizer(dict(_global_='lsq4', module_name={'0': 'lsq2'}), first_last=None)
    >>> model = quantizer.prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    >>> model[0].weight_fake_quant.quant_max, model[1].weight_fake_quant.quant_max
    (1, 7)
    """

    def __init__(
        self,
        qconfig_mapping: Mapping[str, Any],
        tracer: Any = None,
        prepare_custom_config: Mapping[str, Any] | None = None,
        first_last: str | QConfig | Mapping[str, Any] | None = 'default',
    ) -> None:
        keys = ('_global_', 'object_type', 'module_name')
        if not isinstance(qconfig_mapping, Mapping) or '_global_' not in qconfig_mapping:
            raise ConfigError(f"`qconfig_mapping` must be a mapping with the key '_global_', but got {qconfig_mapping!r}.")
        for key in qconfig_mapping:
            if key not in keys:
                raise ConfigError(f'`qconfig_mapping` has no key {key!r}.{near(key, keys)} It has {", ".join(keys)}.')
        chosen = qconfig_mapping['_global_']
        super().__init__(QConfig() if chosen is None else chosen, tracer, first_last)
        self._by_name = self._pairs(qconfig_mapping, 'module_name')
        self._by_class = self._pairs(qconfig_mapping, 'object_type')
        custom = dict(prepare_custom_config or {})
        self._skipped_names = _several(custom.pop('non_traceable_module_name', ()))
        self._skipped_classes = _several(custom.pop('non_traceable_module_class', ()))
        if custom:
            print_log(f'AcademicQuantizer: {", ".join(custom)} of `prepare_custom_config` play no part.', logger='current')

    @staticmethod
    def _pairs(mapping: Mapping[str, Any], key: str) -> list[tuple[Any, QConfig | None]]:
        given = mapping.get(key) or []
        pairs = list(given.items()) if isinstance(given, Mapping) else list(given)
        if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in pairs):
            raise ConfigError(f'`{key}` of `qconfig_mapping` must be a mapping or a list of pairs, but got {given!r}.')
        return [(pattern, None if qconfig is None else from_mmrazor(qconfig)) for pattern, qconfig in pairs]

    def overrides(self, model: nn.Module) -> dict[str, Any]:
        """Return pattern -> qconfig of layers that differ, names first."""
        found: dict[str, Any] = dict(self._by_name)
        for wanted, qconfig in self._by_class:
            for name in _of_class(model, [wanted]):
                found.setdefault(name, qconfig)
        return found

    def ignored(self, model: nn.Module) -> list[str]:
        """Return the names of modules left in float."""
        return [*super().ignored(model), *self._skipped_names, *_of_class(model, self._skipped_classes)]
