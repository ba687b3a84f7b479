import pytest
from torch import nn

from strop.errors import ConfigError
from strop.quantization import AcademicQuantizer, TorchNativeQuantizer, fake_quantizers
from strop.registry import MODELS, TASK_UTILS

LSQ = dict(
    w_observer=dict(type='mmrazor.LSQPerChannelObserver'),
    a_observer=dict(type='mmrazor.LSQObserver'),
    w_fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
    a_fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
    w_qscheme=dict(qdtype='qint8', bit=8, is_symmetry=True, is_symmetric_range=True),
    a_qscheme=dict(qdtype='quint8', bit=8, is_symmetry=True),
)
FOUR = {**LSQ, 'w_qscheme': dict(qdtype='qint8', bit=4), 'a_qscheme': dict(qdtype='quint8', bit=4)}
SIGNED = {**LSQ, 'a_qscheme': dict(qdtype='qint8', bit=8, is_symmetry=True)}


class Head(nn.Module):
    """A module that configs name by its class."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x)


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4), Head())


def weights(model):
    return {
        name.split('.weight')[0]: quantizer.quant_max for name, quantizer in fake_quantizers(model).items() if 'weight' in name
    }


@pytest.mark.parametrize('kind', ['TorchNativeQuantizer', 'OpenVINOQuantizer', 'TensorRTQuantizer'])
def test_old_names_prepare_all_layers(kind):
    quantizer = MODELS.build(dict(type=f'mmrazor.{kind}', global_qconfig=SIGNED if 'RT' in kind else LSQ))
    assert weights(quantizer.prepare(net())) == {'0': 127, '1': 127, '2': 127, '3.fc': 127}


@pytest.mark.parametrize(
    'options',
    [
        dict(no_observer_modules='some.where.Head'),
        dict(no_observer_modules=[Head]),
        dict(tracer=dict(type='mmrazor.CustomTracer', skipped_module_names=['3'])),
        dict(tracer=dict(type='CustomTracer', skipped_module_classes=[Head], skipped_methods=['some.method'])),
    ],
)
def test_modules_that_configs_leave_out_stay_in_float(options):
    quantizer = TorchNativeQuantizer(LSQ, **options, extra_redundant_fakequants=dict(extra_op_prev_wo_fakequant=('output',)))
    assert set(weights(quantizer.prepare(net()))) == {'0', '1', '2'}


def test_names_count_more_than_classes_and_classes_more_than_the_rest():
    mapping = dict(
        _global_=LSQ, object_type={'torch.nn.Linear': FOUR, 'Conv1d': None}, module_name=[('2', 'lsq2'), ('3.*', LSQ)]
    )
    quantizer = AcademicQuantizer(mapping, prepare_custom_config=dict(preserved_attributes=['x']))
    assert weights(quantizer.prepare(net())) == {'0': 7, '2': 1, '3.fc': 127}
    skipping = dict(non_traceable_module_name=['0'], non_traceable_module_class=[Head])
    quantizer = AcademicQuantizer(dict(_global_=LSQ), prepare_custom_config=skipping)
    assert set(weights(quantizer.prepare(net()))) == {'1', '2'}


class Mixed(nn.Module):
    """Attention and an activation, which have no layer to quantize, beside two linear layers."""

    def __init__(self):
        super().__init__()
        self.attention, self.act = nn.MultiheadAttention(4, 2, batch_first=True), nn.ReLU()
        self.first, self.head = nn.Linear(4, 4), Head()

    def forward(self, x):
        x = self.act(self.first(x))
        return self.head(self.attention(x, x, x)[0])


NOTHING = 'torch.nn.ReLU', 'torch.nn.MultiheadAttention'


@pytest.mark.parametrize(
    'quantizer',
    [
        AcademicQuantizer(dict(_global_=LSQ, object_type=dict.fromkeys(NOTHING))),
        AcademicQuantizer(dict(_global_=LSQ), prepare_custom_config=dict(non_traceable_module_class=NOTHING)),
        AcademicQuantizer(dict(_global_=LSQ), tracer=dict(type='CustomTracer', skipped_module_classes=NOTHING)),
        TorchNativeQuantizer(LSQ, no_observer_modules=NOTHING),
    ],
)
def test_classes_without_layers_leave_nothing_out(quantizer, monkeypatch):
    said = []
    monkeypatch.setattr('strop.quantization.quantizers.print_log', lambda text, **options: said.append(text))
    assert weights(quantizer.prepare(Mixed())) == {'first': 127, 'head.fc': 127}
    assert said == []


def test_a_class_of_some_modules_with_layers_and_some_without_counts_for_the_former():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU()), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4))
    quantizer = AcademicQuantizer(dict(_global_=LSQ, object_type={'torch.nn.Sequential': FOUR}))
    assert weights(quantizer.prepare(model)) == {'0': 127, '2.0': 7, '3': 127}


def test_a_layer_of_several_names_is_found_by_the_class_around_any():
    head = Head()
    model = nn.Sequential(nn.Linear(4, 4), head.fc, head)
    assert set(weights(TorchNativeQuantizer(LSQ, no_observer_modules=[Head]).prepare(model))) == {'0'}


@pytest.mark.parametrize(
    'quantizer',
    [
        AcademicQuantizer(dict(_global_=LSQ, module_name={'act': None})),
        AcademicQuantizer(dict(_global_=LSQ), prepare_custom_config=dict(non_traceable_module_name=['act'])),
        TorchNativeQuantizer(LSQ, tracer=dict(type='CustomTracer', skipped_module_names=['act'])),
    ],
)
def test_a_name_without_layers_is_refused(quantizer):
    with pytest.raises(ConfigError, match="No layer to quantize matches 'act'"):
        quantizer.prepare(Mixed())


def test_only_the_named_layers_are_quantized_where_nothing_holds_for_all():
    quantizer = AcademicQuantizer(dict(_global_=None, module_name={'head': 'lsq4'}))
    assert weights(quantizer.prepare(Mixed())) == {'head.fc': 7}
    with pytest.raises(ConfigError, match='Nothing is left to quantize'):
        AcademicQuantizer(dict(_global_=None)).prepare(Mixed())


def test_a_mapping_holds_for_all_layers_and_a_name_spares_the_first_and_last():
    assert set(weights(AcademicQuantizer(dict(_global_=FOUR)).prepare(net())).values()) == {7}
    assert weights(AcademicQuantizer(dict(_global_='lsq4')).prepare(net())) == {'0': 127, '1': 7, '2': 7, '3.fc': 127}
    spared = AcademicQuantizer(dict(_global_=FOUR), first_last=LSQ).prepare(net())
    assert weights(spared) == {'0': 127, '1': 7, '2': 7, '3.fc': 127}


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='OpenVINOQuantizer', global_qconfig=FOUR), 'OpenVINO runs 8 bits, but the weight has 4'),
        (dict(type='TensorRTQuantizer', global_qconfig=LSQ), 'codes around zero only'),
        (dict(type='AcademicQuantizer', qconfig_mapping=LSQ), "with the key '_global_'"),
        (dict(type='AcademicQuantizer', qconfig_mapping=dict(_global_=LSQ, module_nam={})), "Did you mean 'module_name'"),
        (dict(type='AcademicQuantizer', qconfig_mapping=dict(_global_=LSQ, module_name=['a'])), 'list of pairs'),
        (dict(type='TorchNativeQuantizer', global_qconfig='lsq1'), '2 to 8'),
        (dict(type='TorchNativeQuantizer', global_qconfig=8), 'mapping or a name'),
    ],
)
def test_a_wrong_quantizer_says_what_is_wrong(config, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build(config)


def test_the_tracer_has_its_old_name():
    assert TASK_UTILS.build(dict(type='mmrazor.CustomTracer', skipped_module_names='a')).skipped_module_names == ['a']


def test_an_unknown_option_of_a_scheme_is_refused_with_the_observer_that_does_not_take_it():
    wrong = {**LSQ, 'w_observer': dict(type='mmrazor.MinMaxObserver'), 'w_qscheme': dict(bit=8, is_symetry=True)}
    with pytest.raises(ConfigError, match=r"MinMaxObserver does not take these arguments, .*'is_symetry'"):
        TorchNativeQuantizer(wrong).prepare(nn.Sequential(nn.Linear(2, 2)))


def test_a_class_that_no_module_has_is_said(monkeypatch):
    said = []
    monkeypatch.setattr('strop.quantization.quantizers.print_log', lambda text, **options: said.append(text))
    TorchNativeQuantizer(LSQ, no_observer_modules=['torch.nn.Linnear']).prepare(nn.Sequential(nn.Linear(2, 2)))
    assert said == ["No module is a Linnear. Did you mean 'Linear'?"]
