import copy

import pytest
import torch

from strop.errors import ConfigError, TrainingError
from strop.quantization import FakeQuantize, FakeQuantizer, LearnableFakeQuantize, QConfig
from strop.quantization.fake_quantize import TORCHAO_OBSERVERS
from strop.registry import MODELS
from tests.engine.forked import in_group

pt2e = pytest.importorskip('torchao.quantization.pt2e')
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
KINDS = [
    ('MovingAverageMinMaxObserver', torch.per_tensor_affine, torch.quint8, 0, 255),
    ('MinMaxObserver', torch.per_tensor_symmetric, torch.qint8, -8, 7),
    ('PerChannelMinMaxObserver', torch.per_channel_symmetric, torch.qint8, -127, 127),
    ('MovingAveragePerChannelMinMaxObserver', torch.per_channel_affine, torch.quint8, 0, 15),
]


@pytest.mark.parametrize(('observer', 'scheme', 'dtype', 'low', 'high'), KINDS)
def test_output_and_gradient_are_those_of_torchao_bit_for_bit(observer, scheme, dtype, low, high):
    options = dict(qscheme=scheme, dtype=dtype, **({'ch_axis': 0} if 'PerChannel' in observer else {}))
    ours = FakeQuantize(observer, low, high, **options)
    theirs = pt2e.FakeQuantize(getattr(pt2e, observer), low, high, **options)
    for step in range(3):
        a, b = ((X * (step + 1)).requires_grad_() for _ in range(2))
        first, second = ours(a), theirs(b)
        assert torch.equal(first, second)
        (first * X).sum().backward()
        (second * X).sum().backward()
        assert torch.equal(a.grad, b.grad)
    for first, second in zip(ours.calculate_qparams(), theirs.calculate_qparams(), strict=True):
        assert torch.equal(first, second.to(first.dtype))


def test_it_observes_only_in_training():
    quantizer = FakeQuantize('MinMaxObserver', 0, 255)
    quantizer(torch.tensor([0.0, 1.0]))
    before = quantizer.scale.clone()
    quantizer.eval()(torch.tensor([0.0, 100.0]))
    assert torch.equal(quantizer.scale, before)
    quantizer.train()(torch.tensor([0.0, 100.0]))
    assert quantizer.scale > before


def test_without_data_it_says_that_it_has_no_steps():
    with pytest.raises(TrainingError, match='has seen no data'):
        FakeQuantize('MinMaxObserver').eval()(X)


@pytest.mark.parametrize('name', ['int8', 'lsq8', 'lsq+8', 'pact8'])
def test_data_that_are_not_finite_are_refused_and_change_no_step_of_the_quantizer(name):
    quantizer = QConfig.of(name).input.build()
    for value in ('nan', 'inf'):
        before = {key: kept.clone() for key, kept in quantizer.state_dict().items()}
        with pytest.raises(TrainingError, match=r'NaN or infinity.*keeps those that it had; layers before it have seen'):
            quantizer(torch.tensor([1.0, float(value)]))
        assert all(torch.equal(kept, before[key]) for key, kept in quantizer.state_dict().items())


@pytest.mark.parametrize('name', ['int8', 'lsq8', 'lsq+8', 'pact8'])
@pytest.mark.parametrize('shape', [(0, 6), (0,), (4, 0)])
def test_an_empty_tensor_is_passed_on_and_not_observed(name, shape):
    quantizer, plain = (QConfig.of(name).input.build() for _ in range(2))
    empty = torch.empty(shape, requires_grad=True)
    assert quantizer(empty).shape == shape
    assert quantizer.eval()(empty).shape == shape
    assert not quantizer.observed
    with pytest.raises(TrainingError, match='has seen no data'):
        quantizer(X)
    quantizer.train()
    out = quantizer(X)
    assert torch.equal(out, plain(X))
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    found = quantizer(empty)
    found.sum().backward()
    assert found.shape == shape
    assert empty.grad.shape == shape
    assert all(parameter.grad == 0 for parameter in quantizer.parameters())
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    assert torch.equal(quantizer(2 * X), plain(2 * X))


def observe_unevenly(rank, out):
    torch.distributed.init_process_group('gloo')
    steps = []
    for name in ('int8', 'lsq8', 'pact8'):
        quantizer = QConfig.of(name).input.build()
        for x in (X[: 2 * rank], X * (rank + 1), X[2 * rank :]):
            quantizer(x)
            steps.append((int(quantizer.observed), quantizer.scale.item()))
    torch.save(steps, f'{out}/{rank}.pt')


def test_what_is_empty_in_one_process_is_observed_in_none(tmp_path):
    in_group(observe_unevenly, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    assert first == second
    assert [observed for observed, _ in first] == [0, 1, 1] * 3


def observe_other_ranges(rank, out):
    torch.distributed.init_process_group('gloo')
    quantizer = FakeQuantize('HistogramObserver', 0, 255, qscheme=torch.per_tensor_affine)
    steps = []
    for _ in range(3):
        quantizer(torch.linspace(-1, 1, 1001) * (1 + 9 * rank))
        steps.append((quantizer.scale.item(), quantizer.zero_point.item(), quantizer.activation_post_process.histogram.sum()))
    torch.save(steps, f'{out}/{rank}.pt')


def test_histograms_of_two_processes_give_one_range_and_stay_what_they_are(tmp_path):
    """One sees -1 to 1 and the other -10 to 10: both take the middle of what each would take, which is about -5.5 to 5.5."""
    in_group(observe_other_ranges, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    assert [steps[:2] for steps in first] == [steps[:2] for steps in second]
    alone = []
    for width in (1, 10):
        quantizer = FakeQuantize('HistogramObserver', 0, 255, qscheme=torch.per_tensor_affine)
        for _ in range(3):
            quantizer(torch.linspace(-1, 1, 1001) * width)
        alone.append(quantizer.scale.item())
    assert first[-1][0] == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert [float(steps[2]) for steps in first] == [1001, 2002, 3003]


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (-1, 0), (0, 0)])
def test_one_bit_and_less_are_refused(low, high):
    for kind in ('FakeQuantize', 'LearnableFakeQuantize', 'PACTFakeQuantize'):
        with pytest.raises(ConfigError, match='1 bit or less is not supported'):
            MODELS.build(dict(type=kind, observer=MODELS.get('LSQObserver'), quant_min=low, quant_max=high))


def test_codes_that_do_not_fit_their_type_are_refused():
    with pytest.raises(ConfigError, match='do not fit'):
        FakeQuantize('MinMaxObserver', 0, 255, dtype=torch.qint8)
    with pytest.raises(ConfigError, match='static'):
        FakeQuantize('MinMaxObserver', 0, 255, is_dynamic=True)


def test_observers_of_torchao_have_their_old_names():
    for name in TORCHAO_OBSERVERS:
        assert name in MODELS
    built = MODELS.build(dict(type='mmrazor.PerChannelMinMaxObserver', ch_axis=0))
    assert type(built) is pt2e.PerChannelMinMaxObserver


@pytest.mark.parametrize('kind', ['FakeQuantize', 'LearnableFakeQuantize'])
def test_state_survives_a_checkpoint_and_a_copy(kind):
    def make():
        return MODELS.build(dict(type=kind, observer='LSQPerChannelObserver', quant_min=-8, quant_max=7, **options))

    options = dict(qscheme=torch.per_channel_symmetric, dtype=torch.qint8, ch_axis=1, is_weight=True)
    quantizer = make()
    out = quantizer(X)
    other = make()
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.eval()(X), out)
    assert torch.equal(copy.deepcopy(quantizer).eval()(X), out)
    assert quantizer.scale.shape == (6,)


def test_codes_stand_for_what_it_gives():
    quantizer = LearnableFakeQuantize(
        'LSQPerChannelObserver', -8, 7, qscheme=torch.per_channel_symmetric, dtype=torch.qint8, is_weight=True
    )
    out = quantizer(X)
    codes = quantizer.codes(X)
    assert codes.dtype == torch.int8
    assert int(codes.min()) >= -8
    assert torch.equal(codes * quantizer.scale[:, None], out)


def test_switches():
    quantizer = FakeQuantize('MinMaxObserver', 0, 3)
    quantizer.disable_fake_quant()
    assert torch.equal(quantizer(X), X)
    quantizer.enable_fake_quant()
    assert not torch.equal(quantizer(X), X)
    quantizer.disable_observer()
    before = quantizer.scale.clone()
    quantizer(100 * X)
    assert torch.equal(quantizer.scale, before)
    assert isinstance(quantizer, FakeQuantizer)
