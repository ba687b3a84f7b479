from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from strop import errors
from strop.errors import ConfigError, EstimateError, MissingDependencyError
from strop.estimators.runtimes import Runtime, apart, out_of_place, runtime, runtimes
from tests.scripts import run_script


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    model[1].running_mean.uniform_()
    return model, torch.randn(2, 3, 6, 6)


def needs(name: str) -> None:
    if not runtime(name).available:
        pytest.skip(f'{name} is not installed')


@pytest.mark.parametrize('name', ['eager', 'onnxruntime', 'openvino', pytest.param('compile', marks=pytest.mark.slow)])
def test_every_runtime_computes_the_model(name: str):
    needs(name)
    model, x = small()
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    out = runtime(name).prepare(model, x)()
    result = out if isinstance(out, torch.Tensor) else torch.from_numpy(np.array(out[0]))
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(result, model.eval()(x), rtol=1e-4, atol=1e-5)


class Chain(nn.Sequential):
    """A class that is not PyTorch's own."""

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


@pytest.mark.parametrize('make', [Chain, nn.Sequential])
def test_every_compiled_model_of_a_class_has_a_program_of_its_own(make):
    # Beyond its limit of programs torch.compile would run in eager, and say so in a log only.
    x = torch.rand(4, 8)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for width, batch in ((4, 4), (5, 2)):
            model = make(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))
            torch.testing.assert_close(runtime('compile').prepare(model, x[:batch])(), model(x[:batch]).detach())


def test_a_module_set_apart_has_the_same_state_and_other_code():
    model = Chain(nn.Linear(8, 4), nn.ReLU())
    twins = [apart(model), apart(model)]
    assert len({type(each).forward.__code__ for each in (model, *twins)}) == 3
    x = torch.rand(2, 8)
    for twin in twins:
        assert twin[0].weight is model[0].weight
        assert torch.equal(twin(x), model(x))


def test_pytorch_computes_with_the_threads_that_are_asked_for():
    """Also where the process has others, which it keeps."""

    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return x + 1

    seen: list[int] = []
    before = torch.get_num_threads()
    runtimes()['eager'].prepare(Asking(), torch.ones(1), threads=before + 1)()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_a_compiled_model_is_called_with_the_threads_that_it_was_compiled_for():
    from torch._dynamo.utils import counters

    before = torch.get_num_threads()
    call = runtimes()['compile'].prepare(nn.Linear(2, 2), torch.ones(1, 2), threads=before + 1)
    made = counters['stats']['unique_graphs']
    call()
    assert counters['stats']['unique_graphs'] == made
    assert torch.get_num_threads() == before


def test_eager_in_bf16():
    model, x = small()
    assert runtime('eager').prepare(model, x, precision='bf16')().dtype == torch.bfloat16


CTRL_C = """
import gc, signal, torch
from strop.estimators.runtimes import out_of_place, runtime
calls = [runtime('openvino').prepare(torch.nn.Linear(2, 2), torch.zeros(1, 2)) for _ in range(2)]
while calls:  # the first one first
    calls.pop(0)()
    gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background may have it ignored
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print('interrupted')
"""


def test_ctrl_c_after_openvino_is_an_interrupt(tmp_path: Path):
    """Where several cores come and go, a signal kills the process."""
    needs('openvino')
    done = run_script(CTRL_C, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, 'interrupted\n'), done.stderr


def test_the_table_is_frozen():
    with pytest.raises(TypeError):
        runtimes()['mine'] = runtime('eager')  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        runtime('eager').name = 'other'  # type: ignore[misc]
    assert runtime('eager').version == torch.__version__.partition('+')[0]


def test_what_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    absent = Runtime('absent', 'no-such-package', ('no_such_module',), 'onnx', ('f32',), 'not there', lambda *_: lambda: None)
    assert not absent.available
    assert absent.version is None
    model, x = small()
    with pytest.raises(MissingDependencyError, match=r"pip install 'strop\[onnx\]'"):
        absent.prepare(model, x)
    monkeypatch.setattr(errors.importlib, 'import_module', lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(MissingDependencyError, match=r"pip install 'strop\[openvino\]'"):
        runtime('openvino').prepare(model, x)


def test_wrong_input():
    model, x = small()
    with pytest.raises(ConfigError, match="Did you mean 'openvino'"):
        runtime('openvin')
    with pytest.raises(ConfigError, match="onnxruntime computes in 'f32'"):
        runtime('onnxruntime').prepare(model, x, precision='bf16')
    with pytest.raises(ConfigError, match='`threads`'):
        runtime('eager').prepare(model, x, threads=0)


def test_what_cannot_be_prepared_is_named():
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    needs('openvino')
    with pytest.raises(EstimateError, match='Looks could not be prepared for openvino'):
        runtime('openvino').prepare(Looks(), torch.zeros(2))


class Overwriting(nn.Module):
    """In-place operators, two of them on views."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        """Return sums in which an overwritten value counts as often as it is read."""
        y = nn.functional.hardtanh(self.first(x), 0.0, 6.0, inplace=True)
        z = self.second(y)
        z.mul_(2)
        rows = z[:, 0]
        rows.add_(1)  # changes z
        w = (z + 1).clamp_(-1, 1)
        return z + w + y[:, :, 2:, 2:].sigmoid_()


def test_operators_write_beside_their_input_only_where_nothing_else_reads_it():
    torch.manual_seed(0)
    net, x = Overwriting().eval(), torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = net(x)
        program = torch.export.export(net, (x,))
        before = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
        after = [str(node.target) for node in out_of_place(program).graph.nodes if node.op == 'call_function']
        assert {'aten.hardtanh_.default', 'aten.clamp_.default', 'aten.mul_.Tensor', 'aten.add_.Tensor'} <= set(before)
        assert {'aten.hardtanh.default', 'aten.clamp.default', 'aten.mul.Tensor'} <= set(after)
        assert {'aten.add_.Tensor', 'aten.sigmoid_.default'} <= set(after)  # of views
        torch.testing.assert_close(program.module()(x), expected)
        torch.testing.assert_close(program.run_decompositions({}).module()(x), expected)


def test_a_model_that_gives_its_cache_out_is_told_how_to_leave_it_out():
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('openvino')
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model, ids = transformers.GPT2LMHeadModel(config).eval(), torch.zeros(1, 8, dtype=torch.long)
    with pytest.raises(EstimateError, match=r'`model\.config\.use_cache = False` leaves it out'):
        runtime('openvino').prepare(model, ids)
    model.config.use_cache = False
    with torch.no_grad():
        np.testing.assert_allclose(runtime('openvino').prepare(model, ids)()[0], model(ids).logits, atol=1e-4)


def test_inputs_stay_what_they_are():
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sub_(1).relu_()

    x = torch.full((2, 3), 0.5, requires_grad=True)
    call = runtime('eager').prepare(Centred(), x)
    call()
    assert x.tolist() == [[0.5] * 3] * 2
    assert runtime('eager').prepare(nn.Identity(), (x,))().tolist() == x.tolist()


def test_models_that_keep_computed_tensors_are_measured():
    layer = torch.nn.utils.weight_norm(nn.Linear(4, 4))  # its weight is computed, which copy.deepcopy refuses
    x = torch.randn(2, 4)
    torch.testing.assert_close(runtime('eager').prepare(layer, x)(), layer(x))


def test_what_cannot_be_copied_is_named():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(EstimateError, match='Locked could not be prepared for eager'):
        runtime('eager').prepare(Locked(), torch.zeros(2))


def test_f32_is_what_it_says():
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.autocast('cpu', torch.bfloat16):
        assert runtime('eager').prepare(model, x)().dtype == torch.float32
        assert runtime('eager').prepare(model, x, precision='bf16')().dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"computes in 'float64', but precision='f32'"):
        runtime('eager').prepare(model.double(), x.double(), precision='f32')
    assert runtime('eager').prepare(model, x.double())().dtype == torch.float64
