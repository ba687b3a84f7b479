from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from strop.errors import GraphError, VerificationError
from strop.graph import channel_units, elementwise_rules, inference, layer_rules, layout_rules, prove, terms, verify
from strop.graph.proof import masked_tensors, random_kept, randomized
from strop.graph.terms import concatenation, product, resolve, split_cat, split_prod, unify

IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).cos().reshape(2, 3, 8, 8)
TOKENS = torch.linspace(-1, 1, 2 * 6 * 12).sin().reshape(2, 6, 12)


class Net(nn.Module):
    """A module of the given parts whose forward is a function of itself and the inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


class Attention(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.stem = nn.Linear(12, dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x):
        x = self.stem(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.head((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).reshape(b, n, c))


def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def residual():
    return Net(
        lambda net, x: net.head(net.a(x) + net.b(x)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1)
    )


def concatenated():
    return Net(
        lambda net, x: net.head(torch.cat([net.a(x), net.b(x)], 1)),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(3, 8, 1),
        head=nn.Conv2d(16, 4, 1),
    )


def parted():
    def run(net, x):
        a, b = net.stem(x).split(net.parts, 1)
        return net.head(a) + net.other(b)

    return Net(run, stem=nn.Conv2d(3, 16, 1), head=nn.Conv2d(8, 4, 1), other=nn.Conv2d(8, 4, 1), parts=(8, 8))


def gated():
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.GLU(1), nn.Conv2d(8, 4, 1))


def grouped():
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=4), nn.ReLU(), nn.Conv2d(16, 4, 1))


def shuffled():
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ChannelShuffle(4), nn.ReLU(), nn.Conv2d(16, 16, 1, groups=4), nn.Conv2d(16, 4, 1)
    )


def repeated():
    return Net(lambda net, x: net.head(net.stem(x).repeat(1, 2, 1, 1)), stem=nn.Conv2d(3, 8, 1), head=nn.Conv2d(16, 4, 1))


def normed():
    return nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 4))


# -- planted faults --------------------------------------------------------------------------------


def no_coupling(call):
    return call.axes(next(tensor for tensor in call.args if isinstance(tensor, torch.Tensor) and tensor.dim() > 1))


def reversed_concatenation(call):
    shapes = [call.axes(tensor) for tensor in call.args[0]]
    result = list(shapes[0])
    result[1] = concatenation([resolve(axes[1]) for axes in shapes[::-1]])
    return result


def reversed_parts(call):
    return layout_rules._split(call)[::-1]


def halves_apart(call):
    axes = list(call.axes(call.args[0]))
    axes[1] = split_cat(axes[1], axes[1].size // 2)[0]
    return axes


def inner_groups(call):
    """Take a group for what is inside of it."""
    image, weight = call.axes(call.args[0]), call.axes(call.args[1])
    groups = call.args[8]
    if groups == 1:
        return layer_rules._convolution(call)
    inner, group = split_prod(image[1], image[1].size // groups)
    unify(inner, weight[1])
    unify(group, split_prod(weight[0], groups)[0])
    return [image[0], weight[0], *layer_rules._pixels(call, image[2:], call.out.shape[2:])]


def straight_shuffle(call):
    return call.axes(call.args[0])


def repeated_inside(call):
    return [
        product([resolve(term), call.fresh(count)]) if count != 1 else term
        for count, term in zip(call.args[1], call.axes(call.args[0]))
    ]


def norm_of_its_own(call):
    axes = call.axes(call.args[0])
    return [list(axes), list(axes[:-1]) + [terms.ONE], list(axes[:-1]) + [terms.ONE]]


FAULTS = {
    'additions do not couple': (residual, IMAGE, elementwise_rules.pointwise, no_coupling),
    'concatenations are reversed': (concatenated, IMAGE, layout_rules._cat, reversed_concatenation),
    'parts are reversed': (parted, IMAGE, layout_rules._split, reversed_parts),
    'halves of a gate do not couple': (gated, IMAGE, layer_rules._glu, halves_apart),
    'groups are taken inside out': (grouped, IMAGE, layer_rules._convolution, inner_groups),
    'a shuffle does nothing': (shuffled, IMAGE, layer_rules._channel_shuffle, straight_shuffle),
    'repeats are interleaved': (repeated, IMAGE, layout_rules._repeat, repeated_inside),
    'a norm does not couple': (normed, TOKENS, layer_rules._layer_norm, norm_of_its_own),
}


@pytest.fixture
def replaced(monkeypatch):
    """Return a function that puts one rule in another's place until the test is over."""

    def replace(old, new):
        changed = {key: new if rule is old else rule for key, rule in inference._rules.items()}
        monkeypatch.setattr(inference, '_rules', changed)
        monkeypatch.setattr(inference, '_found', {})

    return replace


def caught(prove_it):
    try:
        return not prove_it().holds
    except VerificationError:
        return True


class TestPlantedFaults:
    @pytest.mark.parametrize('fault', FAULTS)
    def test_the_true_rule_is_proved(self, fault):
        make, inputs, _, _ = FAULTS[fault]
        assert prove(make(), inputs).holds

    @pytest.mark.parametrize('fault', FAULTS)
    def test_the_wrong_one_is_not(self, fault, replaced):
        make, inputs, old, new = FAULTS[fault]
        torch.manual_seed(0)
        model = make()
        replaced(old, new)
        assert caught(lambda: prove(model, inputs))

    @pytest.mark.parametrize('fault', FAULTS)
    def test_a_cut_by_a_wrong_rule_is_not_verified(self, fault, replaced):
        make, inputs, old, new = FAULTS[fault]
        torch.manual_seed(0)
        model = randomized(make(), dtype=torch.float32)
        replaced(old, new)
        graph = channel_units(model, inputs)
        chosen = graph.slicing(random_kept(graph, 0.5))
        with pytest.raises(VerificationError, match=r'cut Sequential|cut Net|Sequential cannot run|Net cannot run'):
            verify(model, chosen.apply(model), chosen, inputs)

    @pytest.mark.parametrize('function', [torch.Tensor.reshape, torch.Tensor.view])
    def test_a_dropped_tie(self, monkeypatch, function):
        """Without the equation between heads and channels the model does not run, or its heads are other ones."""
        torch.manual_seed(0)
        model = Attention()
        monkeypatch.setattr(inference, '_length_rules', {})
        assert caught(lambda: prove(model, TOKENS))

    def test_an_attribute_that_is_not_mended(self, monkeypatch):
        model = Attention()
        graph = channel_units(model, TOKENS)
        chosen = graph.slicing(random_kept(graph, 0.5))
        monkeypatch.setattr(type(chosen), 'mend', lambda self, slim: None)
        with pytest.raises(VerificationError, match='Attention cannot run after it was cut'):
            verify(model, chosen.apply(model), chosen, TOKENS)

    def test_other_indices_than_were_said(self):
        model = plain()
        graph = channel_units(model, IMAGE)
        slim = graph.shrink(model, {'0': [0, 1, 2]})
        with pytest.raises(VerificationError, match='relative error'):
            verify(model, slim, graph.slicing({'0': [1, 2, 3]}), IMAGE)

    def test_one_swapped_channel(self):
        model = plain().eval()
        graph = channel_units(model, IMAGE)
        chosen = graph.slicing({'0': [0, 1, 2]})
        slim = chosen.apply(model)
        with torch.no_grad():
            slim[0].weight[[0, 1]] = slim[0].weight[[1, 0]]
        with pytest.raises(VerificationError, match='relative error'):
            verify(model, slim, chosen, IMAGE)


class TestProve:
    def test_tells(self):
        model = plain()
        proof = prove(model, IMAGE, ratio=0.5, seed=1)
        assert proof.holds
        assert proof.error < 1e-12
        assert proof.difference > 1e-2
        assert proof.note is None
        assert 2 <= proof.lengths['0'] <= 4
        assert proof.pruned[0].out_channels == proof.lengths['0']

    def test_the_model_is_not_changed(self):
        model = plain()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        dtype, random = torch.get_default_dtype(), torch.get_rng_state()
        prove(model, IMAGE)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert model.training
        assert torch.get_default_dtype() == dtype
        assert torch.equal(torch.get_rng_state(), random)

    def test_given_indices(self):
        assert prove(plain(), IMAGE, {'0': [6, 2, 4]}).lengths == {'0': 3}

    def test_same_seed_same_cut(self):
        one, two, other = (prove(plain(), IMAGE, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(one.pruned[0].weight[:, 0, 0, 0] * 0, two.pruned[0].weight[:, 0, 0, 0] * 0)
        assert one.lengths == two.lengths
        assert other.holds

    def test_nothing_to_cut_proves_nothing(self):
        proof = prove(nn.Linear(12, 4), TOKENS)
        assert (proof.error, proof.difference) == (0.0, 0.0)
        assert not proof.holds

    def test_a_branch_without_influence_proves_nothing(self):
        model = Net(lambda net, x: net.b(x) + 0 * net.c(net.a(x)), a=nn.Linear(12, 8), b=nn.Linear(12, 4), c=nn.Linear(8, 4))
        assert not prove(model, TOKENS).holds

    def test_in_single_precision(self):
        proof = prove(plain(), IMAGE, dtype=torch.float32)
        assert proof.holds
        assert proof.tolerance == 1e-3
        assert proof.pruned[0].weight.dtype == torch.float32

    def test_tensors_made_in_the_forward_are_wide(self):
        model = Net(lambda net, x: net.head(net.stem(x) + torch.zeros(2, 6, 1)), stem=nn.Linear(12, 8), head=nn.Linear(8, 4))
        proof = prove(model, TOKENS)
        assert proof.error < 1e-12
        assert proof.holds

    def test_scales_computed_from_lengths_follow_the_cut_model(self):
        model = Net(
            lambda net, x: net.head((h := net.stem(x)) * h.shape[-1] ** -0.5 + 1 / math.sqrt(h.size(-1))),
            stem=nn.Linear(12, 8),
            head=nn.Linear(8, 4),
        )
        proof = prove(model, TOKENS)
        assert proof.holds

    def test_computed_weights(self):
        """The older weight norm keeps a tensor that cannot be copied."""
        with pytest.warns(FutureWarning, match='weight_norm'):
            layer = nn.utils.weight_norm(nn.Linear(12, 8))
        assert prove(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 4)), TOKENS).holds

    def test_both_kinds_of_arguments_are_refused(self):
        with pytest.raises(GraphError, match='Example inputs'):
            prove(plain(), None)

    def test_masks_are_zeros(self):
        model = plain()
        masked = masked_tensors(model, channel_units(model, IMAGE).slicing({'0': [0, 3]}))
        assert masked.keys() == {'0.weight', '0.bias', '1.weight', '1.bias', '3.weight'}
        assert masked['0.bias'][[1, 2, 4, 5, 6, 7]].abs().sum() == 0
        assert torch.equal(masked['3.weight'][:, [0, 3]], model[3].weight[:, [0, 3]])

    def test_randomized_statistics(self):
        model = randomized(plain())
        assert model[1].running_mean.std() > 0
        assert model[1].weight.std() > 0
        assert model[1].running_var.min() >= 0.5
        assert not model.training


class TestVerify:
    def test_returns_the_error(self):
        model = plain()
        graph = channel_units(model, IMAGE)
        chosen = graph.slicing({'0': [0, 3, 4]})
        assert verify(model, chosen.apply(model), chosen, IMAGE) < 1e-5

    def test_batch_norm_statistics_and_modes_stay(self):
        model = plain().train()
        graph = channel_units(model, IMAGE)
        chosen = graph.slicing({'0': [0, 3, 4]})
        slim = chosen.apply(model)
        verify(model, slim, chosen, IMAGE)
        assert model.training
        assert slim.training
        assert model[1].num_batches_tracked == slim[1].num_batches_tracked == 0

    def test_a_tolerance_of_zero_names_the_error(self):
        model = randomized(plain(), dtype=torch.float32)
        graph = channel_units(model, IMAGE)
        chosen = graph.slicing({'0': [0, 3, 4]})
        slim = chosen.apply(model)
        with torch.no_grad():
            slim[3].bias += 1
        with pytest.raises(VerificationError, match=r'relative error .*, allowed 0'):
            verify(model, slim, chosen, IMAGE, tolerance=0.0)

    # -- random networks ---------------------------------------------------------------------------------

    def test_a_model_that_finds_nothing_is_not_verified(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        model.append(Net(lambda net, x: x[x > 100]))
        slicing = channel_units(model, torch.ones(3, 4)).prefix({'0': 4})
        with pytest.raises(VerificationError, match=r'no numbers to compare on inputs \(\(3, 4\),\)'):
            verify(model, slicing.apply(model), slicing, torch.ones(3, 4))


class Program(nn.Module):
    """A network of random steps; each makes one or two tensors of the ones before."""

    def __init__(self, steps, outputs):
        super().__init__()
        self.layers = nn.ModuleList(layer if isinstance(layer, nn.Module) else nn.Identity() for _, layer, _ in steps)
        self.steps = [(kind, taken) for kind, _, taken in steps]
        self.parts = [layer if isinstance(layer, list) else None for _, layer, _ in steps]
        self.outputs = outputs
        self.head = nn.Linear(sum(outputs.values()), 3)

    def forward(self, x):
        values = [x]
        for number, (kind, taken) in enumerate(self.steps):
            got = [values[place] for place in taken]
            if kind == 'layer':
                values.append(self.layers[number](got[0]))
            elif kind == 'add':
                values.append(got[0] + got[1])
            elif kind == 'times':
                values.append(got[0] * got[1].mean((2, 3), keepdim=True).sigmoid())
            elif kind == 'cat':
                values.append(torch.cat(got, 1))
            elif kind == 'split':
                values.extend(got[0].split(self.parts[number], 1))
            elif kind == 'chunk':
                values.extend(got[0].chunk(2, 1))
        return self.head(torch.cat([values[place] for place in self.outputs], 1).mean((2, 3)))


KINDS = ['conv', 'conv', 'norm', 'act', 'group', 'depthwise', 'shuffle', 'add', 'times', 'cat', 'split', 'chunk']


@st.composite
def programs(draw, most=9):
    width = st.sampled_from([4, 6, 8, 12])
    steps, channels = [], [3]
    first = draw(width)
    steps.append(('layer', nn.Conv2d(3, first, 1), [0]))
    channels.append(first)
    used = {0}
    for _ in range(draw(st.integers(2, most))):
        place = draw(st.integers(1, len(channels) - 1))
        size = channels[place]
        kind = draw(
            st.sampled_from(
                ['conv', 'conv', 'norm', 'act', 'group', 'depthwise', 'shuffle', 'add', 'times', 'cat', 'split', 'chunk']
            )
        )
        if kind in ('add', 'times'):
            others = [other for other in range(1, len(channels)) if channels[other] == size]
            other = draw(st.sampled_from(others))
            steps.append((kind, None, [place, other]))
            channels.append(size)
            used |= {place, other}
        elif kind == 'cat':
            other = draw(st.integers(1, len(channels) - 1))
            if size + channels[other] > 40:
                continue
            steps.append((kind, None, [place, other]))
            channels.append(size + channels[other])
            used |= {place, other}
        elif kind == 'split':
            if size < 4:
                continue
            left = draw(st.integers(2, size - 2))
            steps.append((kind, [left, size - left], [place]))
            channels += [left, size - left]
            used.add(place)
        elif kind == 'chunk':
            if size < 4 or size % 2:
                continue
            steps.append((kind, None, [place]))
            channels += [size // 2, size // 2]
            used.add(place)
        else:
            out = size
            if kind == 'conv':
                out = draw(width)
                layer = nn.Conv2d(size, out, draw(st.sampled_from([1, 3])), padding='same')
            elif kind == 'group':
                if size % 2:
                    continue
                out = draw(width)
                layer = nn.Conv2d(size, out, 1, groups=2)
            elif kind == 'depthwise':
                layer = nn.Conv2d(size, size, 3, padding=1, groups=size)
            elif kind == 'shuffle':
                if size % 2:
                    continue
                layer = nn.ChannelShuffle(2)
            elif kind == 'norm':
                layer = draw(st.sampled_from([nn.BatchNorm2d, lambda n: nn.GroupNorm(1, n), nn.InstanceNorm2d]))(size)
            else:
                layer = draw(st.sampled_from([nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Dropout]))()
            steps.append(('layer', layer, [place]))
            channels.append(out)
            used.add(place)
    outputs = {place: size for place, size in enumerate(channels) if place not in used}
    return steps, outputs


def check(program):
    steps, outputs = program
    torch.manual_seed(0)
    model = Program(steps, outputs)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    proof = prove(model, IMAGE)
    assert proof.error < 1e-9, f'{proof.error}\n{model.steps}\n{model}\n{proof.graph}'
    if any(length < proof.graph.units[name].size for name, length in proof.lengths.items()):
        assert proof.difference > 0


class TestRandomNetworks:
    @given(programs())
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def test_are_proved(self, program):
        check(program)

    @pytest.mark.slow
    @given(programs(most=20))
    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    def test_many_are_proved(self, program):
        check(program)


# -- real models -------------------------------------------------------------------------------------


def proved(model, inputs, units=None):
    torch.manual_seed(0)
    proof = prove(model, inputs)
    if units is not None:
        assert len(proof.graph.units) == units
    assert proof.error < 1e-7
    assert proof.holds
    assert proof.graph.locked_share() < 0.01
    return proof


class TestRealModels:
    @pytest.mark.parametrize(
        ('name', 'size', 'units'),
        [
            ('resnet18', 64, 12),
            ('mobilenetv2_100', 32, 25),
            ('vit_tiny_patch16_224', 64, 37),
        ],
    )
    def test_timm(self, name, size, units):
        timm = pytest.importorskip('timm')
        options = {'img_size': size} if name.startswith('vit') else {}
        proved(timm.create_model(name, **options), torch.rand(2, 3, size, size), units)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        'name',
        [
            *('densenet121', 'regnetx_002', 'ghostnet_100', 'convnext_atto', 'res2net50_26w_4s', 'hrnet_w18_small', 'dla34'),
            *('mixer_s32_224', 'swin_tiny_patch4_window7_224', 'levit_128s', 'xcit_nano_12_p16_224', 'coatnet_nano_rw_224'),
        ],
    )
    def test_more_of_timm(self, name):
        timm = pytest.importorskip('timm')
        proved(timm.create_model(name), torch.rand(2, 3, 224, 224))

    def test_bert(self):
        transformers = pytest.importorskip('transformers')
        config = transformers.BertConfig(
            hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=2, vocab_size=60
        )
        ids = torch.arange(16).reshape(2, 8)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        proved(transformers.BertForSequenceClassification(config), {'input_ids': ids, 'attention_mask': mask})

    def test_llama_with_grouped_queries(self):
        transformers = pytest.importorskip('transformers')
        config = transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=60,
        )
        ids = torch.arange(16).reshape(2, 8)
        proved(transformers.LlamaForCausalLM(config), {'input_ids': ids, 'use_cache': False})

    def test_t5(self):
        transformers = pytest.importorskip('transformers')
        config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=60)
        ids = torch.arange(16).reshape(2, 8)
        proved(
            transformers.T5ForConditionalGeneration(config),
            {'input_ids': ids, 'decoder_input_ids': ids[:, :5], 'use_cache': False},
        )

    @pytest.mark.slow
    def test_a_detector(self):
        torchvision = pytest.importorskip('torchvision')
        model = torchvision.models.detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=96
        )
        proof = prove(model, ([torch.rand(3, 96, 96)],), dtype=torch.float32)
        assert proof.error < 1e-3
        assert len(proof.graph.units) > 30


def test_random_statistics_are_the_same_on_every_device():
    assert randomized(nn.BatchNorm2d(3, affine=False, device='meta')).running_mean.is_meta
    generator = torch.Generator().manual_seed(0)
    expected = torch.empty(3, dtype=torch.float64).normal_(0.0, 0.3, generator=generator)
    assert torch.equal(randomized(nn.BatchNorm2d(3, affine=False)).running_mean, expected)
