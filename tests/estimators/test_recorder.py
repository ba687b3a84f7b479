from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from strop.errors import EstimateError
from strop.estimators.recorder import record, untouched

KB = 4 * 16  # a tensor of (1, 4, 2, 2) floats


class Net(nn.Module):
    """A residual block that also counts, caches and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.calls = 0
        self.cache: torch.Tensor | None = None
        self.caches: dict[str, torch.Tensor] = {}
        self.log = ['made']
        self.register_buffer('steps', torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.steps += 1
        out = self.norm(self.conv(x)).relu() + x
        self.cache = self.caches['out'] = out
        self.log.append('called')
        return out + torch.rand_like(out)


@pytest.mark.parametrize('real', [False, True])
def test_the_model_is_untouched(real: bool):
    model = Net()
    model.norm.eval()
    parameters = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    buffers = {name: (id(b), b.clone()) for name, b in model.named_buffers()}
    state = torch.random.get_rng_state()
    record(model, (torch.zeros(1, 4, 2, 2),), real=real)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: kept[0] for name, kept in parameters.items()}
    assert {name: id(b) for name, b in model.named_buffers()} == {name: kept[0] for name, kept in buffers.items()}
    assert all(torch.equal(p, parameters[name][1]) for name, p in model.named_parameters())
    assert all(torch.equal(b, buffers[name][1]) for name, b in model.named_buffers())
    assert model.calls == 0
    assert model.cache is None
    assert model.caches == {}
    assert model.log == ['made']
    assert model.training
    assert model.conv.training
    assert not model.norm.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks
    assert all(p.grad is None for p in model.parameters())


def test_the_input_is_untouched():
    x = torch.ones(1, 4, 2, 2)
    record(nn.ReLU(inplace=True), (x.neg_(),), real=True)
    assert torch.equal(x, -torch.ones(1, 4, 2, 2))


def test_it_counts_in_eval_mode_and_without_gradients():
    class Probe(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    seen: list[tuple[bool, bool]] = []
    record(Probe().train(), (torch.zeros(1),))
    assert seen == [(False, False)]


def peak(model: nn.Module, *shapes: tuple[int, ...]) -> int:
    inputs = tuple(torch.zeros(shape) for shape in shapes)
    fake, real = record(model, inputs).peak_bytes(), record(model, inputs, real=True).peak_bytes()
    assert fake == real
    return fake


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def test_activation_memory_by_hand():
    conv = nn.Conv2d(4, 4, 1)
    assert peak(nn.Identity(), (1, 4, 2, 2)) == KB
    assert peak(conv, (1, 4, 2, 2)) == 2 * KB
    assert peak(nn.Sequential(conv, conv, conv), (1, 4, 2, 2)) == 2 * KB
    assert peak(nn.Sequential(conv, nn.ReLU()), (1, 4, 2, 2)) == 2 * KB
    assert peak(nn.Sequential(conv, nn.ReLU(inplace=True)), (1, 4, 2, 2)) == 2 * KB
    # x, the two convolutions' outputs; then x, the second, the sum
    assert peak(Residual(nn.Sequential(conv, conv)), (1, 4, 2, 2)) == 3 * KB
    # x lives through the wide middle: x + 8 channels in + 8 channels out
    wide = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    assert peak(wide, (1, 4, 2, 2)) == 4 * KB
    assert peak(Residual(wide), (1, 4, 2, 2)) == 5 * KB


def test_views_share_and_prolong_a_storage():
    class Views(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half = x[:, :2]
            y = x.relu().relu()
            return y[:, :2] + half

    # x (through its view), relu, relu; at the end x, relu and half of the size
    assert peak(Views(), (1, 4, 2, 2)) == 3 * KB

    class OnlyViews(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).view(2, 8).t()

    assert peak(OnlyViews(), (1, 4, 2, 2)) == KB


def test_every_output_lives_to_the_end():
    class Many(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
            outputs = []
            for _ in range(3):
                x = x.relu()
                outputs.append(x)
            return {'features': outputs}

    assert peak(Many(), (1, 4, 2, 2)) == 3 * KB  # the input is dead by the time the third is made
    assert record(Many(), (torch.zeros(1, 4, 2, 2),)).outputs == (1, 2, 3)


def test_tensors_kept_by_a_module_are_no_activations():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = torch.zeros(1000, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.grid[:1]

    assert peak(Table(), (1, 4)) == 2 * 16


def test_paths_and_shared_modules():
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    trace = record(nn.Sequential(block, block), (torch.zeros(1, 4),))
    assert [op.path for op in trace.ops if op.macs] == ['0.0', '0.0']


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum().item() >= 0:
            x = self.linear(x)
        return x[x[:, 0] < 1e9]


def test_control_flow_on_values_is_run_once_for_real():
    model = LooksAtValues()
    trace = record(model, (torch.zeros(2, 4),))
    assert trace.macs == 2 * 16
    assert 'DataDependentOutputException' in (trace.note or '')
    assert model.training
    with pytest.raises(DataDependentOutputException):
        record(model, (torch.zeros(2, 4),), real=False)


def test_errors_are_named():
    with pytest.raises(EstimateError, match=r'The forward of Linear failed on inputs of shape \(\(2, 5\),\): RuntimeError'):
        record(nn.Linear(4, 3), (torch.zeros(2, 5),))
    with pytest.raises(EstimateError, match='meta device'):
        record(LooksAtValues().to('meta'), (torch.zeros(2, 4, device='meta'),))
    model = Net()
    with pytest.raises(EstimateError):
        record(model, (torch.zeros(1, 3, 2, 2),))
    assert model.training
    assert model.calls == 0
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_model_on_the_meta_device_is_counted_there():
    assert record(nn.Linear(4, 3, device='meta'), (torch.zeros(2, 4, device='meta'),)).macs == 24


def test_untouched_restores_after_an_error():
    model = nn.Sequential(nn.ReLU())

    def leave_traces() -> None:
        with untouched(model):
            model[0].training = False
            model[0].forward = None  # type: ignore[assignment, method-assign]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave_traces()
    assert model[0].training
    assert 'forward' not in vars(model[0])


def test_inference_mode_inside_a_forward_hides_nothing():
    class Inference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        @torch.inference_mode()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    assert record(Inference(), (torch.zeros(1, 4),)).macs == 16


@pytest.mark.filterwarnings('ignore:`torch.jit.script` is deprecated')
def test_a_scripted_model_is_run_for_real_and_left_alone():
    model = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace = record(model, (torch.ones(1, 4, 2, 2),))
    assert trace.macs == 64
    assert trace.note is not None
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
