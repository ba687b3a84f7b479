import copy
import gc
import pickle
import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from strop.distill import (
    FunctionInputsRecorder,
    FunctionOutputsRecorder,
    MethodInputsRecorder,
    MethodOutputsRecorder,
    ModuleInputsRecorder,
    ModuleOutputsRecorder,
    ParameterRecorder,
    RecorderManager,
)
from strop.errors import ComponentTypeError, ConfigError, TrainingError

X = torch.arange(6.0).view(2, 3)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def features(self, x, *, scale=1.0):
        return self.fc(x) * scale

    def forward(self, x, bias=0.0):
        return self.features(x, scale=2.0) + bias


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.idle = nn.Linear(3, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = Head()

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x, bias=1.0)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def recorded(recorder, net, *inputs):
    recorder.initialize(net)
    with recorder:
        net(*(inputs or (X,)))
    return recorder


def functions(**names):
    """Return a Python module that can be imported."""
    module = types.ModuleType('functions_to_record')
    exec(names.pop('source', 'def twice(x, factor=2):\n    return x * factor\n'), vars(module))
    sys.modules[module.__name__] = module
    return module


# -- modules -------------------------------------------------------------------------------------


def test_outputs_of_a_module(net):
    recorder = recorded(ModuleOutputsRecorder('stem'), net)
    assert torch.equal(recorder.get_record_data(), net.stem(X))
    assert recorder.get_record_data().grad_fn is not None


def test_inputs_of_a_module_with_keywords_and_defaults(net):
    recorder = recorded(ModuleInputsRecorder('head'), net)
    features, bias = recorder.get_record_data()
    assert features.shape == (2, 4)
    assert bias == 1.0
    assert recorder.get_record_data(data_idx=1) == 1.0


def test_an_empty_source_is_the_model(net):
    recorder = recorded(ModuleInputsRecorder(''), net)
    assert recorder.get_record_data(data_idx=0) is X


def test_calls_in_one_forward_are_kept_apart_by_index():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, shared)
    recorder = recorded(ModuleOutputsRecorder('0'), net)
    assert len(recorder.data_buffer) == 2
    assert torch.equal(recorder.get_record_data(0), shared(X))
    assert torch.equal(recorder.get_record_data(1), net(X))
    assert torch.equal(recorder.get_record_data(-1), net(X))


def test_recording_does_not_change_the_forward(net):
    expected = net(X)
    recorder = RecorderManager(
        dict(
            a=dict(type='ModuleOutputs', source='stem'),
            b=dict(type='ModuleInputs', source='head'),
            c=dict(type='FunctionOutputs', source='torch.nn.functional.relu'),
            d=dict(type='MethodInputs', source='head.features'),
        )
    )
    recorder.initialize(net)
    with recorder:
        output = net(X)
    assert torch.equal(output, expected)


@pytest.mark.parametrize('wrap', [nn.DataParallel, lambda net: torch.compile(net, backend='eager')])
def test_wrappers_may_be_left_out_of_the_path(net, wrap):
    recorder = ModuleOutputsRecorder('head.fc')
    recorder.initialize(wrap(net))
    assert recorder.module is net.head.fc


def test_paths_are_those_of_the_module_that_a_plain_architecture_wraps(net):
    from strop.algorithms import BaseAlgorithm

    algorithm = BaseAlgorithm(net)
    for model in (algorithm, algorithm.architecture):
        for path in ('head.fc', 'module.head.fc'):
            recorder = ModuleOutputsRecorder(path)
            recorder.initialize(model)
            assert recorder.module is net.head.fc
    parameter = ParameterRecorder('head.fc.weight')
    parameter.initialize(algorithm)
    assert parameter.get_record_data() is net.head.fc.weight


def test_nested_entries_go_on_and_the_outermost_ends_it(net):
    recorder = ModuleOutputsRecorder('stem')
    recorder.initialize(net)
    with recorder:
        net(X)
        with recorder:
            net(X)
        assert recorder.recording
        net(X)
    assert not recorder.recording
    assert len(recorder.data_buffer) == 3
    assert not net.stem._forward_hooks
    net(X)
    assert len(recorder.data_buffer) == 3


def test_the_next_block_begins_with_nothing(net):
    recorder = recorded(ModuleOutputsRecorder('stem'), net)
    with recorder:
        net(X + 1)
    assert len(recorder.data_buffer) == 1
    assert torch.equal(recorder.get_record_data(), net.stem(X + 1))


def test_an_error_leaves_no_hook_and_no_data(net):
    manager = RecorderManager(
        dict(a=dict(type='ModuleOutputs', source='stem'), b=dict(type='FunctionInputs', source='torch.nn.functional.relu'))
    )
    manager.initialize(net)
    original = F.relu
    with pytest.raises(RuntimeError), manager:
        net(torch.zeros(2, 5))
    assert not net.stem._forward_hooks
    assert F.relu is original
    assert not manager.get_recorder('b').data_buffer


def test_records_of_another_thread_are_left_out(net):
    recorder = ModuleOutputsRecorder('stem')
    function = FunctionOutputsRecorder('torch.nn.functional.relu')
    recorder.initialize(net)
    function.initialize()
    with recorder, function:
        thread = threading.Thread(target=net, args=(X,))
        thread.start()
        thread.join()
        assert not recorder.data_buffer
        assert not function.data_buffer
        net(X)
    assert len(recorder.data_buffer) == 1
    assert len(function.data_buffer) == 2


# -- functions -----------------------------------------------------------------------------------


def test_outputs_of_a_function_in_order(net):
    recorder = recorded(FunctionOutputsRecorder('torch.nn.functional.relu'), net)
    first, second = recorder.data_buffer
    assert torch.equal(first, F.relu(net.layers[0](net.stem(X))))
    assert torch.equal(second, F.relu(net.layers[1](first)))


def test_inputs_of_a_function_are_in_the_order_of_its_signature():
    functions()
    import functions_to_record as module

    recorder = FunctionInputsRecorder('functions_to_record.twice')
    recorder.initialize()
    with recorder:
        module.twice(factor=5, x=3)
        module.twice(4)
    assert recorder.data_buffer == [(3, 5), (4, 2)]


def test_a_function_imported_by_name_elsewhere_is_recorded_too():
    module = functions()
    user = types.ModuleType('user_of_functions')
    user.double = module.twice
    sys.modules[user.__name__] = user
    everywhere = FunctionOutputsRecorder('functions_to_record.twice')
    there = FunctionOutputsRecorder('user_of_functions.double')
    for recorder in (everywhere, there):
        recorder.initialize()
    original = module.twice
    with everywhere, there:
        module.twice(1)
        user.double(2)
        late = types.ModuleType('late_user_of_functions')
        late.twice = original
        sys.modules[late.__name__] = late
    assert everywhere.data_buffer == [2, 4]
    assert there.data_buffer == [4]
    assert module.twice is original
    assert user.double is original
    with everywhere:
        late.twice(3)
    assert everywhere.data_buffer == [6], 'modules that were loaded later are found'
    for name in ('user_of_functions', 'late_user_of_functions'):
        del sys.modules[name]


def test_only_calls_by_that_name_are_seen_and_the_message_says_so():
    functions()
    user = types.ModuleType('user_of_functions')
    user.double = sys.modules['functions_to_record'].twice
    user.double.__module__ = 'functions_to_record'
    sys.modules[user.__name__] = user
    recorder = FunctionOutputsRecorder('user_of_functions.double')
    recorder.initialize()
    with recorder:
        sys.modules['functions_to_record'].twice(2)
    with pytest.raises(TrainingError, match=r'Only calls as user_of_functions\.double are seen'):
        recorder.get_record_data()
    del sys.modules['user_of_functions']


@pytest.mark.parametrize('first_out', [0, 1])
def test_the_original_is_put_back_in_whatever_order_they_leave(first_out):
    module = functions()
    user = types.ModuleType('user_of_functions')
    user.double = module.twice
    sys.modules[user.__name__] = user
    original = module.twice
    for sources in (['functions_to_record.twice'] * 2, ['functions_to_record.twice', 'user_of_functions.double']):
        recorders = [FunctionOutputsRecorder(source) for source in sources]
        for recorder in recorders:
            recorder.initialize()
            recorder.__enter__()
        user.double(1)
        recorders[first_out].__exit__(None, None, None)
        user.double(2)
        recorders[1 - first_out].__exit__(None, None, None)
        assert module.twice is original
        assert user.double is original
        assert recorders[first_out].data_buffer == [2]
        assert recorders[1 - first_out].data_buffer == [2, 4]
    del sys.modules['user_of_functions']


def test_what_someone_else_put_there_meanwhile_stays():
    module = functions()
    recorder = FunctionOutputsRecorder('functions_to_record.twice')
    recorder.initialize()
    with recorder:
        module.twice = mine = lambda x: 0
    assert module.twice is mine


# -- methods -------------------------------------------------------------------------------------


def test_methods_of_one_module_by_its_path(net):
    other = Net()
    outputs, inputs = MethodOutputsRecorder('head.features'), MethodInputsRecorder('head.features')
    for recorder in (outputs, inputs):
        recorder.initialize(net)
    with outputs, inputs:
        net(X)
        other(X)
    assert len(outputs.data_buffer) == 1
    assert torch.equal(outputs.get_record_data() + 1, net(X))
    features, scale = inputs.get_record_data()
    assert scale == 2.0
    assert torch.equal(net.head(features), net(X) - 1)
    assert 'features' not in vars(net.head)


def test_methods_of_a_class_are_those_of_all_its_objects(net):
    recorder = MethodInputsRecorder(f'{__name__}.Head.features')
    recorder.initialize()
    original = Head.features
    with recorder:
        net(X)
        Net()(X)
    assert [len(entry) for entry in recorder.data_buffer] == [2, 2]
    assert Head.features is original


class Kinds:
    @staticmethod
    def still(x):
        return x + 1

    @classmethod
    def of_class(cls, x):
        return cls, x

    @property
    def number(self):
        return 1


class Heir(Kinds):
    pass


def test_static_class_and_inherited_methods():
    recorders = {name: MethodInputsRecorder(f'{__name__}.Heir.{name}') for name in ('still', 'of_class')}
    before = dict(vars(Heir))
    for recorder in recorders.values():
        recorder.initialize()
    with recorders['still'], recorders['of_class']:
        assert Heir.still(1) == 2
        assert Heir().of_class(2) == (Heir, 2)
        Kinds.still(5)
    assert [recorder.data_buffer for recorder in recorders.values()] == [[(1,)], [(2,)]]
    assert dict(vars(Heir)) == before


# -- parameters ----------------------------------------------------------------------------------


def test_a_parameter_is_given_as_it_is_now(net):
    recorder = ParameterRecorder('head.fc.weight')
    recorder.initialize(net)
    assert recorder.get_record_data() is net.head.fc.weight
    net.head.fc.weight = nn.Parameter(torch.zeros(2, 4))
    assert recorder.get_record_data() is net.head.fc.weight
    assert recorder.data_buffer == [net.head.fc.weight]
    buffers = ParameterRecorder('1.running_mean')
    buffers.initialize(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    assert buffers.get_record_data().tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match='one tensor'):
        buffers.get_record_data(data_idx=0)


# -- what is given back --------------------------------------------------------------------------


def test_parts_of_what_was_recorded():
    recorder = ModuleOutputsRecorder('0')

    class Parts(nn.Module):
        def forward(self, x):
            return self.give

    net = nn.Sequential(Parts())
    recorder.initialize(net)

    def give(value):
        net[0].give = value
        with recorder:
            net(X)

    give((1, 2))
    assert recorder.get_record_data(data_idx=1) == 2
    assert recorder.get_record_data() == (1, 2)
    with pytest.raises(ConfigError, match='tuple of 2, which has no part 2'):
        recorder.get_record_data(data_idx=2)
    give({'logits': 3, 'loss': 4})
    assert recorder.get_record_data(data_idx='logits') == 3
    with pytest.raises(ConfigError, match=r"no 'logit'\. Did you mean 'logits'"):
        recorder.get_record_data(data_idx='logit')
    give(X)
    with pytest.raises(ConfigError, match=r'a tensor of shape \(2, 3\)'):
        recorder.get_record_data(data_idx=0)


def test_too_many_calls_asked_for(net):
    recorder = recorded(ModuleOutputsRecorder('stem'), net)
    with pytest.raises(TrainingError, match=r'recorded 1 call, so `record_idx` must be within 0\.\.0, not 1'):
        recorder.get_record_data(1)


def test_a_module_that_is_not_run_says_so(net):
    recorder = recorded(ModuleOutputsRecorder('idle'), net)
    with pytest.raises(TrainingError, match=r"'idle'\) recorded nothing: it was not called while recording"):
        recorder.get_record_data()


def test_an_uninitialized_recorder_says_so():
    for recorder in (ModuleOutputsRecorder('stem'), ParameterRecorder('stem.weight'), FunctionOutputsRecorder('torch.relu')):
        with pytest.raises(TrainingError, match='not initialized'):
            recorder.get_record_data()
        with pytest.raises(TrainingError, match='not initialized'):
            recorder.__enter__()


def test_changes_in_place_are_said_and_a_clone_is_safe(monkeypatch):
    said = []
    monkeypatch.setattr('strop.distill.recorders.print_log', lambda text, **_: said.append(text))
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    recorder, cloned = ModuleOutputsRecorder('0'), ModuleOutputsRecorder('0', clone=True)
    for each in (recorder, cloned):
        recorded(each, net)
    assert torch.equal(cloned.get_record_data(), net[0](X))
    assert not said
    recorder.get_record_data()
    recorder.get_record_data()
    assert len(said) == 1
    assert 'changed in place' in said[0]


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('recorder', 'words'),
    [
        (ModuleOutputsRecorder('hed.fc'), "no module 'hed.fc'. Did you mean 'head.fc'"),
        (ModuleOutputsRecorder('head.convolution'), r"In 'head' \(Head\) there is 'fc'"),
        (ModuleOutputsRecorder('layers'), r"ModuleList, which is never called itself.*'layers.0', 'layers.1'"),
        (ParameterRecorder('head.fc.wieght'), "Did you mean 'head.fc.weight'"),
        (FunctionOutputsRecorder('torch.nn.functional.rellu'), "has no 'rellu'. Did you mean 'relu'"),
        (FunctionOutputsRecorder('torhc.relu'), "no package 'torhc'. Did you mean 'torch'"),
        (FunctionOutputsRecorder('relu'), 'import path'),
        (FunctionOutputsRecorder('torch.nn.Linear'), 'is no function, but a type'),
        (FunctionOutputsRecorder('torch.nn.Linear.forward'), 'Take MethodOutputs'),
        (MethodOutputsRecorder('torch.nn.functional.relu'), 'Take FunctionOutputs'),
        (MethodOutputsRecorder('head.fetures'), 'Nor does Net have such a method'),
        (MethodOutputsRecorder('head.fc'), 'Take ModuleOutputs'),
        (MethodOutputsRecorder('head.fc.weight'), 'is no method, but a Parameter'),
        (MethodOutputsRecorder(f'{__name__}.Kinds.number'), 'is no method, but a property'),
    ],
)
def test_wrong_sources(net, recorder, words):
    with pytest.raises(ConfigError, match=words):
        recorder.initialize(net)


def test_wrong_configs():
    with pytest.raises(ConfigError, match=r"'ModuleOutput'.* Did you mean 'ModuleOutputs'"):
        RecorderManager(dict(a=dict(type='ModuleOutput', source='fc')))
    with pytest.raises(ConfigError, match=r"'a' \(ModuleOutputsRecorder\).*sorce"):
        RecorderManager(dict(a=dict(type='ModuleOutputs', sorce='fc')))
    with pytest.raises(ConfigError, match="key 'type'"):
        RecorderManager(dict(a=dict(source='fc')))
    with pytest.raises(ConfigError, match='mapping'):
        RecorderManager(['fc'])
    with pytest.raises(ConfigError, match='dotted name'):
        ModuleOutputsRecorder(3)
    with pytest.raises(ConfigError, match=r"'fc'.*needs the model"):
        RecorderManager(dict(fc=dict(type='ModuleOutputs', source='fc'))).initialize()
    with pytest.raises(ConfigError, match=r"Recorder 'fc'.*'stemm'"):
        RecorderManager(dict(fc=dict(type='ModuleOutputs', source='stemm'))).initialize(Net())
    with pytest.raises(ComponentTypeError, match='must be a BaseRecorder'):
        RecorderManager(dict(a=dict(type=dict)))
    with pytest.raises(ConfigError, match="no recorder 'b'"):
        RecorderManager(dict(a=dict(type='Parameter', source='fc'))).get_recorder('b')


@pytest.mark.parametrize('name', ['ModuleOutputs', 'mmrazor.ModuleOutputs', 'strop.ModuleOutputsRecorder'])
def test_types_are_written_with_or_without_ending_and_scope(name):
    manager = RecorderManager(dict(a=dict(_scope_='mmrazor', type=name, source='fc')))
    assert type(manager.get_recorder('a')) is ModuleOutputsRecorder


# -- memory and copies ---------------------------------------------------------------------------


def test_a_copy_records_its_own_model(net):
    holder = nn.ModuleDict(dict(net=net))
    holder.recorders = RecorderManager(
        dict(a=dict(type='ModuleOutputs', source='stem'), b=dict(type='FunctionOutputs', source='torch.nn.functional.relu'))
    )
    holder.recorders.initialize(net)
    with holder.recorders:
        net(X)
    for copied in (copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))):
        assert not copied.recorders.get_recorder('a').data_buffer
        with copied.recorders:
            copied['net'](X + 1)
        assert copied.recorders.get_recorder('a').module is copied['net'].stem
        assert len(copied.recorders.get_recorder('a').data_buffer) == 1
        assert len(copied.recorders.get_recorder('b').data_buffer) == 2
    assert len(holder.recorders.get_recorder('a').data_buffer) == 1


def test_live_tensors_do_not_grow_over_a_thousand_steps(net):
    manager = RecorderManager(
        dict(a=dict(type='ModuleOutputs', source='stem'), b=dict(type='FunctionInputs', source='torch.nn.functional.relu'))
    )
    manager.initialize(net)

    def steps(count):
        for _ in range(count):
            with manager:
                net(X).sum().backward()
            manager.get_recorder('a').get_record_data()
            manager.clear()
        gc.collect()
        return sum(isinstance(item, torch.Tensor) for item in gc.get_objects())

    assert steps(5) == steps(1000)
    assert not net.stem._forward_hooks


# -- torch.compile -------------------------------------------------------------------------------


def test_a_compiled_model_records_from_its_first_call(net):
    torch.compiler.reset()
    compiled = torch.compile(net, backend='eager')
    recorder = ModuleOutputsRecorder('stem')
    recorder.initialize(compiled)
    for step in range(12):
        with recorder:
            compiled(X + step)
        assert len(recorder.data_buffer) == 1
        torch.testing.assert_close(recorder.get_record_data(), net.stem(X + step))


@pytest.mark.parametrize('in_place', [False, True])
def test_a_model_that_was_compiled_and_called_before_says_so(net, in_place):
    torch.compiler.reset()
    net.compile(backend='eager')
    compiled = net if in_place else torch.compile(Net(), backend='eager')
    compiled(X)
    recorder = recorded(ModuleOutputsRecorder('stem'), compiled)
    with pytest.raises(TrainingError, match=r'torch\.compile'):
        recorder.get_record_data()
