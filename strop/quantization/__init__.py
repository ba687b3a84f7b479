"""Quantization: calibration, learned steps, weight-only formats, and the backends that run them."""

from strop.quantization.fake_quantize import FakeQuantize, FakeQuantizer
from strop.quantization.learned_step import LearnableFakeQuantize, LSQObserver, LSQPerChannelObserver, LSQPlusObserver
from strop.quantization.pact import PACTFakeQuantize
from strop.quantization.qat import (
    apply_schedule,
    calibrate,
    calibrating,
    fake_quantizers,
    float_again,
    freeze_batch_norms,
    prepare_qat,
    quantizable,
)
from strop.quantization.qat_convert import QuantizedLayer, convert
from strop.quantization.qconfig import QConfig, QuantSpec
from strop.quantization.rounding import fake_quantize, learned_clip, learned_step

__all__ = [
    'FakeQuantize',
    'FakeQuantizer',
    'LSQObserver',
    'LSQPerChannelObserver',
    'LSQPlusObserver',
    'LearnableFakeQuantize',
    'PACTFakeQuantize',
    'QConfig',
    'QuantSpec',
    'QuantizedLayer',
    'apply_schedule',
    'calibrate',
    'calibrating',
    'convert',
    'fake_quantize',
    'fake_quantizers',
    'float_again',
    'freeze_batch_norms',
    'learned_clip',
    'learned_step',
    'prepare_qat',
    'quantizable',
]
