from __future__ import annotations

import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from strop.errors import ConfigError, ExportError, MissingDependencyError
from strop.export import export_onnx, export_program, programs
from strop.mutables import LayerChoice, apply_subnet, extract

from .conftest import MOBILENET, draw, supernet

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

BOTH = pytest.mark.parametrize(('export', 'suffix'), [(export_program, '.pt2'), (export_onnx, '.onnx')], ids=['pt2', 'onnx'])


def run_onnx(path, **feed):
    session = ort.InferenceSession(os.fspath(path), providers=['CPUExecutionProvider'])
    return session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})


# -- searchable architectures -----------------------------------------------------------------------------


def test_a_random_subnet_in_both_formats(tmp_path, images):
    model = supernet(MOBILENET, 5)
    plain = extract(model, draw(model, 5)).eval()
    example = images[:1]  # a batch of one is a good example too
    program = export_program(plain, example, tmp_path / 'a.pt2')
    converted = export_onnx(plain, example, tmp_path / 'a.onnx')
    assert program.batches == converted.batches == (1, 3)
    assert program.max_rel_error <= 1e-6
    assert converted.max_rel_error <= 1e-5
    assert converted.opset >= 18
    assert program.inputs == converted.inputs
    assert list(program.inputs.values()) == [['batch', 3, 32, 32]]
    assert program.size_bytes == (tmp_path / 'a.pt2').stat().st_size
    assert converted.size_bytes == (tmp_path / 'a.onnx').stat().st_size
    loaded = torch.export.load(tmp_path / 'a.pt2').module()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            wanted, found = plain(x), loaded(x)
        for a, b, c in zip(wanted, found, run_onnx(tmp_path / 'a.onnx', **{next(iter(converted.inputs)): x}), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(torch.from_numpy(c), a, rtol=1e-4, atol=1e-5)
    graph = onnx.load(tmp_path / 'a.onnx').graph
    onnx.checker.check_model(onnx.load(tmp_path / 'a.onnx'))
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == 'batch'
    assert [node.name for node in graph.output] == list(converted.outputs)
    assert converted.outputs == ('output_0', 'output_1')


# -- differences are caught -------------------------------------------------------------------------------


class OneIsSpecial(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] == 1 else x * 3


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class AlwaysDropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class OtherWhenTraced(nn.Module):
    def forward(self, x):
        return {'good': x, 'bad': x * 1.001 if torch.compiler.is_exporting() else x}


class NanWhenTraced(nn.Module):
    def forward(self, x):
        return x * float('nan') if torch.compiler.is_exporting() else x


class OtherDtype(nn.Module):
    def forward(self, x):
        return (x > 0.5) if torch.compiler.is_exporting() else x


class OtherLabels(nn.Module):
    def forward(self, x):
        return x.argmin(1) if torch.compiler.is_exporting() else x.argmax(1)


PLANTED = [
    (OneIsSpecial, r'at batch 1, output differs by \S+ \(0\.5 of its largest magnitude'),
    (OtherWhenTraced, r"at batch 1, output\['bad'\] differs by \S+ \((0\.001|0\.00099\d*|0\.0010\d*) of"),
    (Counting, r'gives different outputs for equal inputs .*keeps state from call to call'),
    (AlwaysDropping, 'gives different outputs for equal inputs'),
    (NanWhenTraced, 'output is not finite at other places'),
    (OtherDtype, r'output is \(1, 6\) of torch\.bool instead of \(1, 6\) of torch\.float32'),
    (OtherLabels, 'output differs in 1 of 1 elements'),
]


@pytest.mark.parametrize(('model', 'message'), PLANTED, ids=lambda value: getattr(value, '__name__', ''))
def test_planted_differences_leave_no_program(model, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_program(model(), torch.randn(2, 6), tmp_path / 'a.pt2')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('model', 'message'), PLANTED[:3], ids=lambda value: getattr(value, '__name__', ''))
def test_planted_differences_leave_no_onnx_model(model, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_onnx(model(), torch.randn(2, 6), tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())


def test_tolerances_are_the_callers_and_the_check_can_be_left_out(tmp_path):
    export, path = export_program, tmp_path / 'a.pt2'
    path.write_bytes(b'before')
    with pytest.raises(ExportError, match='is not written'):
        export(OtherWhenTraced(), torch.ones(2, 3), path)
    assert path.read_bytes() == b'before'
    loose = export(OtherWhenTraced(), torch.ones(2, 3), path, rtol=0.01)
    assert loose.max_rel_error == pytest.approx(0.001, rel=0.05)
    unchecked = export(OtherWhenTraced(), torch.ones(2, 3), path, check=False)
    assert unchecked.max_abs_error is None
    assert unchecked.batches == ()
    assert 'not compared' in str(unchecked)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# -- batches ----------------------------------------------------------------------------------------------


def test_a_fixed_batch(tmp_path):
    export, suffix = export_program, '.pt2'
    model = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (2, 3)), nn.Linear(3, 2))
    x = torch.randn(2, 3)
    with pytest.raises(ExportError, match=r'fails on|dynamic_batch=False'):
        export(model, x, tmp_path / f'a{suffix}')
    result = export(model, x, tmp_path / f'a{suffix}', dynamic_batch=False)
    assert list(result.inputs.values()) == [[2, 3]]
    assert result.batches == (2,)


class Reshaping(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1).sum(1) if x.shape[0] == 2 else x.sum(1)


def test_a_batch_that_the_code_fixes_is_said(tmp_path):
    with pytest.raises(ExportError, match='dynamic_batch=False'):
        export_program(Reshaping(), torch.randn(2, 6), tmp_path / 'a.pt2')


def test_chosen_batches(tmp_path):
    result = export_program(nn.Linear(3, 1), torch.randn(2, 3), tmp_path / 'a.pt2', batches=(5, 1, 5))
    assert result.batches == (1, 5)
    for batches, message in [((), 'positive batch sizes'), ((0,), 'positive batch sizes')]:
        with pytest.raises(ConfigError, match=message):
            export_program(nn.Linear(3, 1), torch.randn(2, 3), tmp_path / 'b.pt2', batches=batches)
    with pytest.raises(ConfigError, match='the only batch size is 2'):
        export_program(nn.Linear(3, 1), torch.randn(2, 3), tmp_path / 'b.pt2', batches=(1,), dynamic_batch=False)
    with pytest.raises(ConfigError, match='no batch axis'):
        export_program(nn.Identity(), torch.tensor(1.0), tmp_path / 'b.pt2')


# -- kinds of inputs and outputs --------------------------------------------------------------------------


class Mixed(nn.Module):
    """Keyword arguments, nesting, indices, a mask, an argument that is left out, and an input that is given back."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, tokens, *, scale, extra=None, mask):
        x = self.table(tokens['ids']) * scale + tokens['shift'][0][:, :, None]
        x = x.masked_fill(mask[..., None], 0.0)
        return {'sum': x.sum(1), 'all': [x, mask]}


@BOTH
def test_nested_keyword_inputs(export, suffix, tmp_path):
    inputs = {
        'mask': torch.rand(2, 5) > 0.5,
        'scale': torch.tensor(0.5),
        'tokens': {'ids': torch.randint(10, (2, 5)), 'shift': [torch.randn(2, 5)]},
    }
    result = export(Mixed(), inputs, tmp_path / f'a{suffix}')
    assert result.batches == (1, 2, 3)
    assert result.outputs == ('output_sum', 'output_all_0', 'output_all_1')
    assert dict(result.inputs) == {
        'tokens_ids': ['batch', 5], 'tokens_shift_0': ['batch', 5], 'scale': [], 'mask': ['batch', 5],
    }  # fmt: skip
    if suffix == '.onnx':
        session = ort.InferenceSession(tmp_path / 'a.onnx')
        assert {node.name for node in session.get_inputs()} == set(result.inputs)


class TwoInputs(nn.Module):
    def forward(self, left, right, unused=None):
        return left - 2 * right


def test_positional_inputs_keep_their_order(tmp_path):
    result = export_onnx(TwoInputs(), (torch.randn(4, 3), torch.randn(4, 3), torch.randn(4)), tmp_path / 'a.onnx')
    assert list(result.inputs) == ['left', 'right', 'unused']
    left, right = torch.randn(5, 3), torch.randn(5, 3)
    session = ort.InferenceSession(tmp_path / 'a.onnx')
    feed = {'left': left.numpy(), 'right': right.numpy(), 'unused': np.zeros(5, np.float32)}
    found = session.run(None, {node.name: feed[node.name] for node in session.get_inputs()})
    np.testing.assert_allclose(found[0], (left - 2 * right).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        ((torch.zeros(2, 3),) * 4, 'do not fit the forward of TwoInputs: too many positional arguments'),
        ({'left': torch.zeros(2), 'rihgt': torch.zeros(2)}, "missing a required argument: 'right'"),
        ('image', 'Example inputs are a tensor'),
        ((), 'Example inputs are a tensor'),
    ],
)
def test_inputs_that_do_not_fit(inputs, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export_program(TwoInputs(), inputs, tmp_path / 'a.pt2')


def test_a_forward_that_fails(tmp_path):
    with pytest.raises(ExportError, match=r'Linear fails on input \(2, 4\) float32: RuntimeError'):
        export_program(nn.Linear(3, 1), torch.zeros(2, 4), tmp_path / 'a.pt2')


class Numbers(nn.Module):
    def forward(self, x):
        return x + 1, 3


def test_outputs_that_are_no_tensors(tmp_path):
    assert export_program(Numbers(), torch.zeros(2), tmp_path / 'a.pt2').max_abs_error == 0.0
    with pytest.raises(ExportError, match=r'ONNX outputs are tensors, but output\[1\] is a int'):
        export_onnx(Numbers(), torch.zeros(2), tmp_path / 'a.onnx')


def test_double_and_half(tmp_path):
    result = export_onnx(nn.Linear(3, 2).double(), torch.randn(2, 3).double(), tmp_path / 'a.onnx')
    assert result.max_rel_error < 1e-12
    export_program(nn.Linear(3, 2).half(), torch.randn(2, 3).half(), tmp_path / 'a.pt2')


# -- models -----------------------------------------------------------------------------------------------


def test_supernets_are_reduced_to_what_they_decided(tmp_path):
    model = nn.Sequential(LayerChoice([nn.Linear(3, 2), nn.Linear(3, 5)]))
    with pytest.raises(ExportError, match=r"Sequential still has decisions to make \('0'\).*extract\(model, subnet\)"):
        export_program(model, torch.randn(2, 3), tmp_path / 'a.pt2')
    assert not list(tmp_path.iterdir())
    apply_subnet(model, {'0': 1})
    export_program(model, torch.randn(2, 3), tmp_path / 'a.pt2')
    assert torch.export.load(tmp_path / 'a.pt2').module()(torch.randn(4, 3)).shape == (4, 5)


@BOTH
def test_the_model_is_left_as_it_was(export, suffix, tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model(torch.randn(4, 3)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    export(model, torch.randn(2, 3), tmp_path / f'a{suffix}')
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)


@BOTH
@pytest.mark.parametrize('first', [nn.SiLU, nn.ReLU])
def test_the_inputs_are_left_as_they_were(first, export, suffix, tmp_path):
    x = torch.randn(2, 3)
    before = x.clone()
    export(nn.Sequential(first(inplace=True), nn.Linear(3, 1)), x, tmp_path / f'a{suffix}')
    assert torch.equal(x, before)


def test_models_with_computed_weights(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    prune.l1_unstructured(model[0], 'weight', 0.5)
    assert export_program(model, torch.randn(2, 8), tmp_path / 'a.pt2').max_abs_error < 1e-6


def test_compiled_models_are_unwrapped(tmp_path):
    model = torch.compile(nn.Linear(3, 1), backend='eager')
    assert export_program(model, torch.randn(2, 3), tmp_path / 'a.pt2').max_abs_error < 1e-6


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError('holds a socket')


def test_models_that_cannot_be_copied(tmp_path):
    with pytest.raises(ExportError, match=r'Uncopyable cannot be copied .*holds a socket'):
        export_program(Uncopyable(3, 1), torch.randn(2, 3), tmp_path / 'a.pt2')


class Branching(nn.Module):
    def forward(self, x):
        return x if bool((x.sum() > 0).item()) else -x


def test_models_that_cannot_be_traced(tmp_path):
    with pytest.raises(ExportError, match=r'cannot be traced by torch\.export'):
        export_program(Branching(), torch.randn(2, 3), tmp_path / 'a.pt2')
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@BOTH
def test_models_on_a_gpu_stay_there(export, suffix, tmp_path):
    model = nn.Linear(3, 1).cuda()
    export(model, torch.randn(2, 3, device='cuda'), tmp_path / f'a{suffix}')
    assert model.weight.is_cuda


# -- files and packages -----------------------------------------------------------------------------------


def test_paths(tmp_path):
    for export, path, message in [
        (export_program, tmp_path / 'a.pt', "must end in '.pt2'"),
        (export_onnx, tmp_path / 'a', "must end in '.onnx'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            export(nn.Linear(3, 1), torch.randn(2, 3), path)
    (tmp_path / 'b.pt2').mkdir()
    with pytest.raises(ConfigError, match='is a folder'):
        export_program(nn.Linear(3, 1), torch.randn(2, 3), tmp_path / 'b.pt2')
    export_program(nn.Linear(3, 1), torch.randn(2, 3), tmp_path / 'new' / 'folder' / 'a.pt2')


def test_operator_sets(tmp_path):
    result = export_onnx(nn.Linear(3, 1), torch.randn(2, 3), tmp_path / 'a.onnx', opset=18, dynamic_batch=False)
    assert result.opset == 18
    assert run_onnx(tmp_path / 'a.onnx', input=torch.randn(2, 3))[0].shape == (2, 1)
    with pytest.raises(Exception, match='Got invalid dimensions'):
        run_onnx(tmp_path / 'a.onnx', input=torch.randn(3, 3))
    assert onnx.load(tmp_path / 'a.onnx').opset_import[0].version == 18
    with pytest.raises(ConfigError, match='at least 18'):
        export_onnx(nn.Linear(3, 1), torch.randn(2, 3), tmp_path / 'a.onnx', opset=9)


def test_large_weights_go_into_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, 'ONNX_LIMIT', 1000)
    model = nn.Linear(300, 100)
    result = export_onnx(model, torch.randn(2, 300), tmp_path / 'a.onnx')
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.onnx', 'a.onnx.data']
    assert result.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    x = torch.randn(3, 300)
    np.testing.assert_allclose(run_onnx(tmp_path / 'a.onnx', input=x)[0], model(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
def test_missing_packages_are_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf'`{package}` is needed.*strop\[onnx\]'):
        export_onnx(nn.Linear(3, 1), torch.randn(2, 3), tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())


@BOTH
def test_a_kill_leaves_no_half_file(export, suffix, tmp_path):
    def dies(path):
        torch.set_num_threads(1)
        os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        export(nn.Linear(3, 1), torch.randn(2, 3), path)

    path = tmp_path / f'a{suffix}'
    path.write_bytes(b'before')
    process = multiprocessing.get_context('fork').Process(target=dies, args=(path,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b'before'
