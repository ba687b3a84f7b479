"""Quantization: calibration, learned steps, weight-only formats, and the backends that run them."""

from strop.quantization.backends import Backend, backend, backend_table, backends
from strop.quantization.batches import Batches
from strop.quantization.deploying import deploy
from strop.quantization.fake_quantize import FakeQuantize, FakeQuantizer
from strop.quantization.gptq import gptq_round
from strop.quantization.grouping import Grid, Rounded, round_weight
from strop.quantization.language import perplexity, token_windows
from strop.quantization.layers import LayerRecord
from strop.quantization.learned_step import (
    LearnableFakeQuantize,
    LeastErrorObserver,
    LSQObserver,
    LSQPerChannelObserver,
    LSQPlusObserver,
    learned_spec,
)
from strop.quantization.observers import OBSERVERS
from strop.quantization.packed import PackedLinear, load_packed, packed_layers, save_packed, unpacked
from strop.quantization.pact import PACTFakeQuantize
from strop.quantization.qat import (
    apply_schedule,
    calibrate,
    calibrating,
    fake_quantizers,
    float_again,
    freeze_batch_norms,
    parameter_groups,
    prepare_qat,
    quantizable,
)
from strop.quantization.qat_convert import QuantizedLayer, convert
from strop.quantization.qconfig import QConfig, QuantSpec
from strop.quantization.quantizers import (
    AcademicQuantizer,
    BaseQuantizer,
    CustomTracer,
    OpenVINOQuantizer,
    TensorRTQuantizer,
    TorchNativeQuantizer,
)
from strop.quantization.quantizing import Quantized, quantize
from strop.quantization.record import Check, QuantizationRecord
from strop.quantization.rounding import fake_quantize, learned_clip, learned_step
from strop.quantization.scheme import Scheme
from strop.quantization.sensitivity import Cost, Sensitivity
from strop.quantization.weight_only import quantize_weights
from strop.quantization.weight_record import QuantizedWeights, WeightRecord

__all__ = [
    'OBSERVERS',
    'AcademicQuantizer',
    'Backend',
    'Batches',
    'Check',
    'Cost',
    'LayerRecord',
    'QuantizationRecord',
    'Quantized',
    'Scheme',
    'Sensitivity',
    'BaseQuantizer',
    'CustomTracer',
    'FakeQuantize',
    'FakeQuantizer',
    'Grid',
    'LSQObserver',
    'LSQPerChannelObserver',
    'LSQPlusObserver',
    'LearnableFakeQuantize',
    'LeastErrorObserver',
    'OpenVINOQuantizer',
    'PACTFakeQuantize',
    'PackedLinear',
    'QConfig',
    'QuantSpec',
    'QuantizedLayer',
    'QuantizedWeights',
    'Rounded',
    'WeightRecord',
    'TensorRTQuantizer',
    'TorchNativeQuantizer',
    'apply_schedule',
    'backend',
    'backend_table',
    'backends',
    'calibrate',
    'calibrating',
    'convert',
    'deploy',
    'fake_quantize',
    'fake_quantizers',
    'float_again',
    'freeze_batch_norms',
    'gptq_round',
    'learned_clip',
    'learned_spec',
    'learned_step',
    'load_packed',
    'packed_layers',
    'parameter_groups',
    'perplexity',
    'prepare_qat',
    'quantizable',
    'quantize',
    'quantize_weights',
    'round_weight',
    'save_packed',
    'token_windows',
    'unpacked',
]
