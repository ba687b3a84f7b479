from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.library import custom_op

from strop.errors import GraphError
from strop.graph import axis_rule, channel_units, inference, prove

IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
TOKENS = torch.linspace(-1, 1, 2 * 6 * 12).sin().reshape(2, 6, 12)
IDS = torch.tensor([[1, 4, 2, 7, 3], [5, 6, 0, 2, 1]])


class Net(nn.Module):
    """A module of the given parts whose forward is a function of itself and the inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def conv(inputs, outputs, kernel=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, **options)


def units_of(graph):
    return {unit.name: (unit.size, unit.role) for unit in graph}


CASES = {}


def case(inputs=TOKENS, **units):
    """Register a function that makes a model; `units` are the sizes of its units in order, or (size, role)."""

    def register(make):
        CASES[make.__name__] = (make, inputs, units['units'])
        return make

    return register


# -- convolutions ------------------------------------------------------------------------------


@case(IMAGE, units=[8, 6])
def plain():
    return nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.SiLU(), conv(6, 4))


@case(IMAGE, units=[8])
def residual():
    return Net(
        lambda net, x: net.head((h := net.stem(x)) + net.block(h)),
        stem=conv(3, 8),
        block=nn.Sequential(nn.ReLU(), conv(8, 8, 3, padding=1)),
        head=conv(8, 4),
    )


@case(IMAGE, units=[8])
def residual_in_place():
    def run(net, x):
        x = net.stem(x)
        x += net.block(x)
        return net.head(x)

    return Net(run, stem=conv(3, 8), block=conv(8, 8), head=conv(8, 4))


@case(IMAGE, units=[(8, 'channels')])
def depthwise():
    return nn.Sequential(conv(3, 8), conv(8, 8, 3, groups=8), nn.BatchNorm2d(8), conv(8, 4))


@case(IMAGE, units=[8, 2])
def depthwise_multiplier():
    return nn.Sequential(conv(3, 8), conv(8, 16, 3, groups=8), conv(16, 4))


@case(IMAGE, units=[(2, 'channels'), (4, 'groups'), (3, 'channels')])
def grouped():
    return nn.Sequential(conv(3, 8), conv(8, 12, 3, groups=4), conv(12, 4))


@case(IMAGE, units=[8, 6, (2, 'groups'), 3, 2])
def transposed():
    return nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2, stride=2),
        nn.ConvTranspose2d(8, 6, 3),
        nn.ReLU(),
        conv(6, 6),
        nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2),
        conv(4, 3),
    )


@case(torch.randn(2, 3, 20), units=[8, 6])
def one_dimension():
    return nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3), nn.ELU(), nn.Conv1d(6, 4, 1)
    )


@case(torch.randn(2, 3, 4, 6, 6), units=[8])
def three_dimensions():
    return nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.AvgPool3d((1, 2, 2)), nn.Conv3d(8, 4, 1))


@case(IMAGE[0], units=[8])
def without_batch():
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))


@case(IMAGE, units=[4, 6])
def concatenated():
    return Net(
        lambda net, x: net.head(net.norm(torch.cat([net.a(x), net.b(x)], 1))),
        a=conv(3, 4),
        b=conv(3, 6),
        norm=nn.BatchNorm2d(10),
        head=conv(10, 4),
    )


@case(IMAGE, units=[4, 6])
def concatenated_by_flattening():
    return Net(
        lambda net, x: net.head(torch.cat([net.a(x).flatten(1), net.b(x).flatten(1)], 1)),
        a=conv(3, 4, 4),
        b=conv(3, 6, 8),
        head=nn.Linear(4 * 25 + 6, 4),
    )


@case(IMAGE, units=[5, 7, 6])
def dense():
    def run(net, x):
        x = torch.cat([x, net.a(x)], 1)
        x = torch.cat([x, net.b(x)], 1)
        return net.head(net.c(x))

    return Net(run, a=conv(3, 5), b=conv(8, 7), c=conv(15, 6), head=conv(6, 4))


@case(IMAGE, units=[4])
def chunked():
    def run(net, x):
        a, b = net.stem(x).chunk(2, 1)
        return net.head(a * b.sigmoid())

    return Net(run, stem=conv(3, 8), head=conv(4, 4))


@case(IMAGE, units=[6, 2])
def split_in_uneven_parts():
    def run(net, x):
        a, b = net.stem(x).split(net.parts, 1)
        return net.head(a) + net.other(b)

    return Net(run, stem=conv(3, 8), head=conv(6, 4), other=conv(2, 4), parts=[6, 2])


@case(IMAGE, units=[3, 5, 3])
def partly_convolved():
    """A slice is processed, the rest is passed on."""

    def run(net, x):
        x = net.stem(x)
        return net.head(torch.cat([net.part(x[:, : net.share]), x[:, net.share :]], 1))

    return Net(run, stem=conv(3, 8), part=conv(3, 3, 3, padding=1), head=conv(8, 4), share=3)


@case(IMAGE, units=[3, 5])
def written_in_place():
    def run(net, x):
        x = net.stem(x)
        x[:, : net.share] = net.part(x[:, : net.share])
        return net.head(x)

    return Net(run, stem=conv(3, 8), part=conv(3, 3), head=conv(8, 4), share=3)


@case(IMAGE, units=[2, 2, (2, 'groups'), 4])
def shuffled():
    return nn.Sequential(conv(3, 8), nn.ChannelShuffle(2), conv(8, 8, groups=2), conv(8, 4))


@case(IMAGE, units=[2, 4])
def shuffled_by_views():
    def run(net, x):
        x = net.stem(x)
        b, c, h, w = x.shape
        x = x.view(b, net.groups, c // net.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return net.head(x)

    return Net(run, stem=conv(3, 8), head=conv(8, 4), groups=2)


@case(IMAGE, units=[8, 4])
def squeeze_and_excite():
    def run(net, x):
        x = net.stem(x)
        return net.head(x * net.up(net.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid())

    return Net(run, stem=conv(3, 8), down=conv(8, 4), up=conv(4, 8), head=conv(8, 4))


@case(IMAGE, units=[4])
def pixels_from_channels():
    return nn.Sequential(conv(3, 16), nn.PixelShuffle(2), conv(4, 4))


@case(IMAGE, units=[8])
def channels_from_pixels():
    return nn.Sequential(conv(3, 8), nn.PixelUnshuffle(2), conv(32, 4))


@case(IMAGE, units=[8, 6, 2, 2])
def shortcut_padded_with_zeros():
    """Option A of residual networks: the number of added channels is a variable of a closure."""
    planes, inputs = 12, 8
    net = Net(
        lambda net, x: net.head(net.block(h := net.stem(x)) + net.shortcut(h)),
        stem=conv(3, inputs),
        block=nn.Sequential(conv(inputs, 6), nn.ReLU(), conv(6, planes, 3, stride=2, padding=1)),
        head=conv(planes, 4),
    )
    net.shortcut = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, (planes - inputs) // 2, (planes - inputs) // 2))
    return net


@case(IMAGE, units=[8])
def unfolded():
    def run(net, x):
        x = net.stem(x)
        patches = F.unfold(x, 2, stride=2)
        return net.head(F.fold(patches, (8, 8), 2, stride=2)) + net.other(patches.transpose(1, 2)).mean(1)[:, :, None, None]

    return Net(run, stem=conv(3, 8), head=conv(8, 4), other=nn.Linear(32, 4))


@case(IMAGE, units=[8, 6])
def activations():
    return nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 6), nn.PReLU(), nn.Hardswish(), nn.Mish(), conv(6, 4))


@case(IMAGE, units=[(2, 'groups'), (4, 'channels'), 6])
def group_norm():
    return Net(
        lambda net, x: net.head(net.late(net.mid(net.norm(net.stem(x))))),
        stem=conv(3, 8),
        norm=nn.GroupNorm(2, 8),
        mid=conv(8, 6),
        late=nn.GroupNorm(1, 6),
        head=conv(6, 4),
    )


@case(IMAGE, units=[8, 6])
def instance_norm():
    return nn.Sequential(conv(3, 8), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), conv(8, 6), nn.InstanceNorm2d(6), conv(6, 4))


@case(IMAGE, units=[8])
def local_response():
    return nn.Sequential(conv(3, 8), nn.Dropout2d(), nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2), conv(8, 4))


@case(IMAGE, units=[8, 6])
def standardised_weights():
    """Weights are normed before use: over all axes but the first."""

    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight
            mean = weight.mean((1, 2, 3), keepdim=True)
            spread = weight.std((1, 2, 3), keepdim=True) + 1e-5
            return F.conv2d(x, (weight - mean) / spread, self.bias)

    return nn.Sequential(conv(3, 8), nn.ReLU(), Standardised(8, 6, 1), nn.ReLU(), Standardised(6, 4, 1))


@case(IMAGE, units=[8, 6])
def weight_norm():
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(conv(3, 8)), nn.ReLU(), norm(conv(8, 6)), nn.ReLU(), norm(conv(6, 4)))


@case(IMAGE, units=[8])
def spectral_norm():
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(conv(3, 8)), nn.ReLU(), conv(8, 4))


@case(IMAGE, units=[8])
def two_heads():
    return Net(
        lambda net, x: {'a': net.a(h := net.stem(x)), 'b': [net.b(h.mean((2, 3))), None, 3]},
        stem=conv(3, 8),
        a=conv(8, 4),
        b=nn.Linear(8, 5),
    )


@case(IMAGE, units=[8])
def shared_twice():
    return Net(
        lambda net, x: net.head(net.block(net.block(net.stem(x)).relu())), stem=conv(3, 8), block=conv(8, 8), head=conv(8, 4)
    )


@case((IMAGE, IMAGE[:, :1]), units=[4, 8])
def two_inputs():
    return Net(lambda net, x, y: net.head(torch.cat([net.a(x), net.b(y)], 1)), a=conv(3, 4), b=conv(1, 8), head=conv(12, 4))


@case({'right': IMAGE, 'left': IMAGE}, units=[8])
def named_inputs():
    return Net(
        lambda net, left, right, scale=2.0: net.head(net.stem(left) * scale - net.stem(right)), stem=conv(3, 8), head=conv(8, 4)
    )


@case(IMAGE, units=[8, 8])
def gated():
    return nn.Sequential(conv(3, 16), nn.GLU(1), conv(8, 16), nn.GLU(1), conv(8, 4))


@case(IMAGE, units=[8])
def normalised():
    return Net(lambda net, x: net.head(F.normalize(net.stem(x), dim=1)), stem=conv(3, 8), head=conv(8, 4))


@case(IMAGE, units=[8, 6])
def matrix_of_correlations():
    return Net(
        lambda net, x: net.head((net.a(x).flatten(2) @ net.b(x).flatten(2).transpose(1, 2)).flatten(1)),
        a=conv(3, 8),
        b=conv(3, 6),
        head=nn.Linear(48, 4),
    )


# -- sequences -----------------------------------------------------------------------------------


@case(units=[8, 16])
def perceptron():
    return nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


@case(units=[8])
def root_mean_square_norm():
    return nn.Sequential(nn.Linear(12, 8), nn.RMSNorm(8), nn.Linear(8, 4))


@case(units=[8])
def own_layer_norm():
    def run(net, x):
        x = net.stem(x)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return net.head(x * net.scale)

    return Net(run, stem=nn.Linear(12, 8), scale=nn.Parameter(torch.rand(8)), head=nn.Linear(8, 4))


class Attention(nn.Module):
    def __init__(self, dim=16, heads=4, fused=True, scaled=True):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.stem = nn.Linear(12, dim)
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, 4)
        self.fused, self.scaled = fused, scaled

    def forward(self, x):
        x = self.stem(x)
        b, n = x.shape[:2]
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            h = F.scaled_dot_product_attention(q, k, v, scale=self.scale if self.scaled else None)
        else:
            h = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(x + self.proj(h.transpose(1, 2).reshape(b, n, self.heads * self.head_dim)))


ATTENTION = [(16, 'channels'), (4, 'heads'), (4, 'head_dim')]


@case(units=ATTENTION)
def attention():
    return Attention()


@case(units=ATTENTION)
def attention_with_a_scale_of_its_own():
    return Attention(scaled=False)


@case(units=ATTENTION)
def attention_by_products():
    return Attention(fused=False)


@case(units=[16, (4, 'head_dim'), (2, 'heads'), (2, 'heads'), (4, 'head_dim'), 16])
def grouped_query_attention():
    def run(net, x):
        x = net.stem(x)
        b, n, _ = x.shape
        q = net.q(x).view(b, n, -1, net.head_dim).transpose(1, 2)
        k = net.k(x).view(b, n, -1, net.head_dim).transpose(1, 2)
        v = net.v(x).view(b, n, -1, net.head_dim).transpose(1, 2)
        k, v = (
            t[:, :, None].expand(b, net.kv, net.groups, n, net.head_dim).reshape(b, net.kv * net.groups, n, net.head_dim)
            for t in (k, v)
        )
        return net.head(net.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)))

    return Net(
        run,
        stem=nn.Linear(12, 16),
        q=nn.Linear(16, 16),
        k=nn.Linear(16, 8),
        v=nn.Linear(16, 8),
        o=nn.Linear(16, 16),
        head=nn.Linear(16, 4),
        kv=2,
        groups=2,
        head_dim=4,
    )


@case(units=[(16, 'channels'), (4, 'heads'), (4, 'head_dim'), (16, 'channels')])
def multihead_attention():
    return Net(
        lambda net, x: net.head(net.attention(*[net.stem(x)] * 3, need_weights=False)[0]),
        stem=nn.Linear(12, 16),
        attention=nn.MultiheadAttention(16, 4, batch_first=True),
        head=nn.Linear(16, 4),
    )


@case(units=[16, 10, 4, 4, 4, 16])
def multihead_attention_with_other_keys():
    return Net(
        lambda net, x: net.head(net.attention(net.stem(x), k := net.other(x), k)[0]),
        stem=nn.Linear(12, 16),
        other=nn.Linear(12, 10),
        attention=nn.MultiheadAttention(16, 4, batch_first=True, kdim=10, vdim=10, add_bias_kv=True, add_zero_attn=True),
        head=nn.Linear(16, 4),
    )


@case(units=[16, 4, 4, 32, 4, 4, 32])
def encoder():
    return nn.Sequential(
        nn.Linear(12, 16),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2),
        nn.Linear(16, 4),
    )


@case(units=[16, 4, 4, 4, 4, 32])
def decoder():
    return Net(
        lambda net, x: net.head(net.decoder(h := net.stem(x), h)),
        stem=nn.Linear(12, 16),
        decoder=nn.TransformerDecoderLayer(16, 4, 32, norm_first=True),
        head=nn.Linear(16, 4),
    )


@case(units=[8])
def class_token():
    def run(net, x):
        x = net.stem(x)
        x = torch.cat([net.token.expand(x.shape[0], -1, -1), x], 1) + net.positions
        return net.head(net.norm(x)[:, 0])

    return Net(
        run,
        stem=nn.Linear(12, 8),
        token=nn.Parameter(torch.randn(1, 1, 8)),
        positions=nn.Parameter(torch.randn(1, 7, 8)),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 4),
    )


@case(IMAGE, units=[16, (4, 'heads'), (4, 'head_dim'), 16])
def windows_with_relative_positions():
    def run(net, x):
        x = net.stem(x)
        b, c, h, w = x.shape
        s = net.window
        x = x.view(b, c, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1).reshape(-1, s * s, c)
        q, k, v = net.qkv(x).view(x.shape[0], s * s, 3, net.heads, -1).permute(2, 0, 3, 1, 4)
        bias = net.table[net.index.view(-1)].view(s * s, s * s, -1).permute(2, 0, 1)
        x = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        x = net.proj(x.transpose(1, 2).flatten(2))
        x = x.view(b, h // s, w // s, s, s, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h, w)
        return net.head(x)

    net = Net(
        run,
        stem=conv(3, 16),
        qkv=nn.Linear(16, 48),
        table=nn.Parameter(torch.randn(49, 4)),
        proj=nn.Linear(16, 16),
        head=conv(16, 4),
        window=4,
        heads=4,
    )
    net.register_buffer('index', torch.arange(256).reshape(16, 16) % 49)
    return net


@case(units=[8])
def rows_put_at_positions():
    def run(net, x):
        h = net.fc(x)
        out = h.new_zeros(h.shape[1], h.shape[0], h.shape[2])
        out[torch.arange(6).flip(0)] = h.transpose(0, 1)
        out[:, torch.tensor([1])] = 0.5 * h.transpose(0, 1)[:, :1]
        return net.head(out)

    return Net(run, fc=nn.Linear(12, 8), head=nn.Linear(8, 4))


@case(units=[8])
def rows_put_by_a_mask():
    def run(net, x):
        h = net.fc(x)
        out = torch.zeros_like(h)
        chosen = torch.arange(12).reshape(2, 6) % 3 == 0
        out[chosen] = h[chosen]
        out[~chosen] = 0.25
        return net.head(out)

    return Net(run, fc=nn.Linear(12, 8), head=nn.Linear(8, 4))


@case(units=[8])
def values_put_between_axes():
    def run(net, x):
        h = net.fc(x)
        out = h.new_zeros(2, h.shape[2], 6)
        out[torch.arange(2)[:, None], :, torch.arange(6)] = h
        return net.head(out.transpose(1, 2))

    return Net(run, fc=nn.Linear(12, 8), head=nn.Linear(8, 4))


@case(IDS, units=[8])
def tied_embedding():
    net = Net(
        lambda net, x: net.head(net.norm(net.embed(x))), embed=nn.Embedding(9, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 9)
    )
    net.head.weight = net.embed.weight
    return net


@case(IDS, units=[8])
def bag():
    return nn.Sequential(nn.EmbeddingBag(9, 8), nn.ReLU(), nn.Linear(8, 4))


@case(units=[8, 4, 3])
def einsum():
    return Net(
        lambda net, x: net.head(torch.einsum('bnc,cdh->bnhd', net.stem(x), net.mix).flatten(2)),
        stem=nn.Linear(12, 8),
        mix=nn.Parameter(torch.randn(8, 4, 3)),
        head=nn.Linear(12, 4),
    )


@case(units=[(10, 'channels'), (8, 'channels')])
def lstm():
    return Net(
        lambda net, x: net.head(net.rnn(net.stem(x).relu())[0]),
        stem=nn.Linear(12, 10),
        rnn=nn.LSTM(10, 8, batch_first=True),
        head=nn.Linear(8, 4),
    )


@case(units=[10, 8])
def bidirectional_gru():
    return Net(
        lambda net, x: net.head(net.rnn(net.stem(x))[0][-1]),
        stem=nn.Linear(12, 10),
        rnn=nn.GRU(10, 8, num_layers=2, bidirectional=True),
        head=nn.Linear(16, 4),
    )


@case(units=[10, 8, 4])
def lstm_with_projections():
    return Net(
        lambda net, x: net.head(net.rnn(net.stem(x))[1][0].sum(0)),
        stem=nn.Linear(12, 10),
        rnn=nn.LSTM(10, 8, proj_size=4, bias=False),
        head=nn.Linear(4, 4),
    )


@case(units=[8])
def recurrent():
    return Net(lambda net, x: net.head(net.rnn(x)[1][0]), rnn=nn.RNN(12, 8, batch_first=True), head=nn.Linear(8, 4))


@case(units=[8])
def cell():
    def run(net, x):
        h = x.new_zeros(x.shape[0], net.cell.hidden_size)
        for token in x.unbind(1):
            h = net.cell(token, h)
        return net.head(h)

    return Net(run, cell=nn.GRUCell(12, 8), head=nn.Linear(8, 4))


@case(units=[8])
def lstm_cell():
    def run(net, x):
        state = None
        for token in x.unbind(1):
            state = net.cell(token, state)
        return net.head(state[0])

    return Net(run, cell=nn.LSTMCell(12, 8), head=nn.Linear(8, 4))


@case(units=[16])
def kept_tensors():
    """Tensors that are neither parameters nor buffers, alone and in containers."""

    def run(net, x):
        return net.head(net.stem(x) * net.scale + net.tables[0] - net.tables[1]['b'])

    return Net(
        run, stem=nn.Linear(12, 16), head=nn.Linear(16, 4), scale=torch.rand(16), tables=[torch.rand(16), {'b': torch.rand(16)}]
    )


@case(units=[16])
def compared_lengths():
    """The code takes another path for narrow inputs: the path stays."""

    def run(net, x):
        h = net.stem(x)
        return net.head(h * 2 if h.shape[-1] > 8 else h)

    return Net(run, stem=nn.Linear(12, 16), head=nn.Linear(16, 4))


@case(units=[8])
def values_looked_at():
    def run(net, x):
        h = net.stem(x)
        return net.head(h.relu() if h.sum().item() < 1e9 else h)

    return Net(run, stem=nn.Linear(12, 8), head=nn.Linear(8, 4))


@case((TOKENS, torch.tensor([[0, 1, 2, 3, 0, 1]] * 2)), units=[8])
def loss():
    return Net(
        lambda net, x, y: F.cross_entropy(net.head(net.stem(x).relu()).flatten(0, 1), y.flatten()),
        stem=nn.Linear(12, 8),
        head=nn.Linear(8, 4),
    )


@case(units=[6, 8])
def distances():
    return Net(
        lambda net, x: net.head(torch.cdist(net.stem(x), net.centres)),
        stem=nn.Linear(12, 8),
        centres=nn.Parameter(torch.randn(6, 8)),
        head=nn.Linear(6, 4),
    )


@case(units=[8])
def distances_in_every_channel():
    """Channels are an axis of the batch."""
    return Net(
        lambda net, x: net.head(torch.cdist(h := net.stem(x).transpose(1, 2)[..., None], h).mean((2, 3))),
        stem=nn.Linear(12, 8),
        head=nn.Linear(8, 4),
    )


@case(units=[8])
def spectrum():
    return Net(
        lambda net, x: net.head(torch.fft.irfft(torch.fft.rfft(net.stem(x), dim=1) * net.filter, n=6, dim=1)),
        stem=nn.Linear(12, 8),
        filter=nn.Parameter(torch.randn(4, 8)),
        head=nn.Linear(8, 4),
    )


@case(units=[4])
def rotary():
    """Halves of a head are swapped: pairs of positions stay together."""

    def run(net, x):
        h = net.stem(x)
        a, b = h.chunk(2, -1)
        angles = torch.outer(torch.arange(h.shape[1], dtype=h.dtype), net.periods)
        return net.head(torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1))

    net = Net(run, stem=nn.Linear(12, 8), head=nn.Linear(8, 4))
    net.register_buffer('periods', 1 / 10.0 ** torch.linspace(0, 1, 4))
    return net


@case(units=[8])
def repeated():
    return Net(lambda net, x: net.head(net.stem(x).repeat(1, 1, 2)), stem=nn.Linear(12, 8), head=nn.Linear(16, 4))


@case(units=[8])
def interleaved():
    return Net(lambda net, x: net.head(net.stem(x).repeat_interleave(2, -1)), stem=nn.Linear(12, 8), head=nn.Linear(16, 4))


@case(units=[8])
def stacked():
    return Net(
        lambda net, x: net.head(torch.stack([net.a(x), net.b(x)], 2).flatten(2)),
        a=nn.Linear(12, 8),
        b=nn.Linear(12, 8),
        head=nn.Linear(16, 4),
    )


@case(units=[3, 5])
def maxout():
    return Net(
        lambda net, x: net.head(net.stem(x).unflatten(-1, net.shape).amax(-1)),
        stem=nn.Linear(12, 15),
        head=nn.Linear(3, 4),
        shape=(3, 5),
    )


@case(units=[8])
def standard_deviation_over_tokens():
    return Net(
        lambda net, x: net.head(torch.cat([(h := net.stem(x)).mean(1), h.std(1), h.amax(1), h.logsumexp(1)], 1)),
        stem=nn.Linear(12, 8),
        head=nn.Linear(32, 4),
    )


@case(units=[8, 5])
def product_of_weights():
    """Two weights are multiplied before use."""
    return Net(
        lambda net, x: net.head(F.linear(x, net.a @ net.b)),
        a=nn.Parameter(torch.randn(8, 5)),
        b=nn.Parameter(torch.randn(5, 12)),
        head=nn.Linear(8, 4),
    )


# -- what papers do --------------------------------------------------------------------------------


@case(IMAGE, units=[8])
def global_response_norm():
    def run(net, x):
        x = net.stem(x)
        norms = x.norm(p=2, dim=(2, 3), keepdim=True)
        return net.head(x * (norms / (norms.mean(1, keepdim=True) + 1e-6)) * net.scale + x)

    return Net(run, stem=conv(3, 8), scale=nn.Parameter(torch.randn(1, 8, 1, 1)), head=conv(8, 4))


@case(units=[8, 10, 8, 10, 10])
def mixture_of_experts():
    def run(net, x):
        x = net.stem(x)
        shares = net.router(x).softmax(-1)
        return net.head(sum(shares[..., number : number + 1] * expert(x) for number, expert in enumerate(net.experts)))

    experts = [nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8, bias=False)) for _ in range(3)]
    return Net(run, stem=nn.Linear(12, 8), router=nn.Linear(8, 3), experts=nn.ModuleList(experts), head=nn.Linear(8, 4))


@case(IMAGE, units=[4, 6, 8])
def dynamic_convolution():
    """A mixture of kernels for every image, run as groups of one convolution."""

    def run(net, x):
        x = net.stem(x)
        b, c, h, w = x.shape
        kernels = net.kernels
        mixed = (net.router(x.mean((2, 3))).softmax(1) @ kernels.view(kernels.shape[0], -1)).view(b * kernels.shape[1], c, 1, 1)
        return net.head(F.conv2d(x.reshape(1, b * c, h, w), mixed, groups=b).view(b, -1, h, w))

    return Net(run, stem=conv(3, 8), router=nn.Linear(8, 4), kernels=nn.Parameter(torch.randn(4, 6, 8, 1, 1)), head=conv(6, 4))


@case(IMAGE, units=[8])
def second_order_pooling():
    """Every channel meets every other: an axis of 8 x 8 of one unit."""

    def run(net, x):
        x = net.stem(x).flatten(2)
        return net.head((x @ x.transpose(1, 2)).flatten(1))

    return Net(run, stem=conv(3, 8), head=nn.Linear(64, 4))


@case(IMAGE, units=[8])
def attention_over_channels():
    def run(net, x):
        x = net.stem(x).flatten(2)
        return net.head(((x @ x.transpose(1, 2)).softmax(-1) @ x).view(x.shape[0], -1, 8, 8))

    return Net(run, stem=conv(3, 8), head=conv(8, 4))


@case(IMAGE, units=[4, 6])
def written_into_zeros():
    def run(net, x):
        a, b = net.a(x), net.b(x)
        out = x.new_zeros(x.shape[0], a.shape[1] + b.shape[1], *x.shape[2:])
        out[:, : a.shape[1]] = a
        out[:, a.shape[1] :] = b
        return net.head(out)

    return Net(run, a=conv(3, 4), b=conv(3, 6), head=conv(10, 4))


@case(IMAGE, units=[4])
def written_to_out():
    def run(net, x):
        out = torch.empty_like(a := net.a(x))
        torch.add(a, net.b(x), out=out)
        return net.head(out)

    return Net(run, a=conv(3, 4), b=conv(3, 4), head=conv(4, 4))


@case(IMAGE, units=[8])
def blurred_by_a_buffer():
    def run(net, x):
        x = net.stem(x)
        return net.head(F.conv2d(x, net.kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]))

    net = Net(run, stem=conv(3, 8), head=conv(8, 4))
    net.register_buffer('kernel', torch.rand(1, 1, 3, 3))
    return net


@case(IMAGE, units=[8, 2])
def one_kernel_for_every_channel():
    """Channels go into the batch and come back."""

    def run(net, x):
        x = net.stem(x)
        b, c, h, w = x.shape
        return net.head(net.kernel(x.reshape(b * c, 1, h, w)).view(b, c * 2, h, w))

    return Net(run, stem=conv(3, 8), kernel=conv(1, 2, 3, padding=1), head=conv(16, 4))


@case(IMAGE, units=[4, 4, 4, 4])
def scales_in_a_row():
    """Res2Net: every part is convolved together with the result of the one before."""

    def run(net, x):
        first, *parts = net.stem(x).split(net.width, 1)
        done = [first]
        for part, layer in zip(parts, net.layers):
            done.append(layer(part if len(done) == 1 else part + done[-1]))
        return net.head(torch.cat(done, 1))

    return Net(
        run,
        stem=conv(3, 12),
        layers=nn.ModuleList(conv(4, 4, 3, padding=1) for _ in range(2)),
        head=conv(12, 4),
        width=4,
    )


@case(IMAGE, units=[8])
def selective_kernels():
    def run(net, x):
        a, b = net.a(x), net.b(x)
        pooled = (a + b).mean((2, 3))
        shares = torch.stack([net.c(pooled), net.d(pooled)], 1).softmax(1)[..., None, None]
        return net.head((torch.stack([a, b], 1) * shares).sum(1))

    return Net(run, a=conv(3, 8), b=conv(3, 8), c=nn.Linear(8, 8), d=nn.Linear(8, 8), head=conv(8, 4))


@case(units=[8])
def nearest_of_a_codebook():
    def run(net, x):
        x = net.stem(x)
        found = net.codes(torch.cdist(x, net.codes.weight).argmin(-1))
        return net.head(x + (found - x).detach())

    return Net(run, stem=nn.Linear(12, 8), codes=nn.Embedding(7, 8), head=nn.Linear(8, 4))


@case(units=[8, 6])
def linear_attention():
    """What is left of a masked channel is one, not zero: `elu(0) + 1`."""

    def run(net, x):
        q, k, v = F.elu(net.q(x)) + 1, F.elu(net.k(x)) + 1, net.v(x)
        share = 1 / (q @ k.sum(1).unsqueeze(-1))
        return net.head(torch.einsum('bnd,bde->bne', q, torch.einsum('bnd,bne->bde', k, v)) * share)

    return Net(run, q=nn.Linear(12, 8), k=nn.Linear(12, 8), v=nn.Linear(12, 6), head=nn.Linear(6, 4))


@case(units=[6, 8, 8])
def latent_queries():
    def run(net, x):
        k, v = net.kv(x).chunk(2, -1)
        q = net.q(net.latents).expand(x.shape[0], -1, -1)
        return net.head((q @ k.transpose(1, 2)).softmax(-1) @ v)

    return Net(run, latents=nn.Parameter(torch.randn(1, 3, 6)), q=nn.Linear(6, 8), kv=nn.Linear(12, 16), head=nn.Linear(8, 4))


@case(units=[4, 4, 4, 4])
def groups_in_a_loop():
    def run(net, x):
        x = net.stem(x)
        size = x.shape[-1] // net.groups
        parts = [x[..., number * size : (number + 1) * size].softmax(-1) for number in range(net.groups)]
        return net.head(torch.cat(parts, -1))

    return Net(run, stem=nn.Linear(12, 16), head=nn.Linear(16, 4), groups=4)


@case(units=[8])
def swapped_halves():
    def run(net, x):
        x = net.stem(x)
        half = x.shape[-1] // 2
        return net.head(torch.cat([x[..., half:], x[..., :half]], -1) + x)

    return Net(run, stem=nn.Linear(12, 16), head=nn.Linear(16, 4))


@case(units=[4, 6])
def sums_of_pairs():
    def run(net, x):
        return net.head((net.a(x)[..., :, None] + net.b(x)[..., None, :]).relu().flatten(-2))

    return Net(run, a=nn.Linear(12, 4), b=nn.Linear(12, 6), head=nn.Linear(24, 4))


@case(units=[8])
def weights_of_unit_length():
    """Rows of zeros would be divided by zero."""
    return Net(
        lambda net, x: net.head(F.linear(x, net.rows / net.rows.norm(dim=1, keepdim=True))),
        rows=nn.Parameter(torch.randn(8, 12)),
        head=nn.Linear(8, 4),
    )


@case(units=[10])
def decoded_by_the_transposed_weight():
    def run(net, x):
        return net.head(F.linear(F.relu(F.linear(net.stem(x), net.code)), net.code.t()))

    return Net(run, stem=nn.Linear(12, 10), code=nn.Parameter(torch.randn(8, 10)), head=nn.Linear(10, 4))


@case(units=[4, 4, 2])
def chunks_of_different_lengths():
    def run(net, x):
        a, b, c = net.stem(x).chunk(3, -1)
        return net.a(a) + net.b(b) + net.c(c)

    return Net(run, stem=nn.Linear(12, 10), a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(2, 4))


@case(IMAGE, units=[8])
def cropped_channels():
    return Net(lambda net, x: net.head(F.pad(net.stem(x), (0, 0, 0, 0, -2, -1))), stem=conv(3, 11), head=conv(8, 4))


@case(IMAGE, units=[8])
def unpooled():
    def run(net, x):
        pooled, places = F.max_pool2d(net.stem(x), 2, return_indices=True)
        return net.head(F.max_unpool2d(pooled, places, 2))

    return Net(run, stem=conv(3, 8), head=conv(8, 4))


@case(IMAGE, units=[8])
def sampled_where_it_says():
    def run(net, x):
        x = net.stem(x)
        return net.head(F.grid_sample(x, net.where(x).permute(0, 2, 3, 1).tanh(), align_corners=False))

    return Net(run, stem=conv(3, 8), where=conv(8, 2), head=conv(8, 4))


@case(IMAGE, units=[8])
def normed_over_channels_and_pixels():
    return nn.Sequential(conv(3, 8), nn.LayerNorm([8, 8, 8]), conv(8, 4))


@case(units=[8])
def norm_of_flattened_tokens():
    return Net(
        lambda net, x: net.head(net.norm((h := net.stem(x)).flatten(0, 1)).reshape_as(h)),
        stem=nn.Linear(12, 8),
        norm=nn.BatchNorm1d(8),
        head=nn.Linear(8, 4),
    )


@case(units=[4, 2, 2, 3])
def kronecker_product():
    return Net(
        lambda net, x: net.head(F.linear(net.stem(x), torch.kron(net.a, net.b))),
        stem=nn.Linear(12, 6),
        a=nn.Parameter(torch.randn(4, 2)),
        b=nn.Parameter(torch.randn(2, 3)),
        head=nn.Linear(8, 4),
    )


@case(units=[6, 8])
def tensordot():
    return Net(
        lambda net, x: net.head(torch.tensordot(net.stem(x), net.weight, dims=([2], [1]))),
        stem=nn.Linear(12, 8),
        weight=nn.Parameter(torch.randn(6, 8)),
        head=nn.Linear(6, 4),
    )


@case(units=[4])
def pairs_are_rotated():
    """Neighbours are swapped, as some rotary embeddings do: each pair stays together."""

    def run(net, x):
        x = net.stem(x)
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return net.head(x * net.scale + turned)

    return Net(run, stem=nn.Linear(12, 8), scale=nn.Parameter(torch.rand(8)), head=nn.Linear(8, 4))


@case(units=[16, 10])
def checkpointed():
    def run(net, x):
        return net.head(torch.utils.checkpoint.checkpoint(net.body, x, use_reentrant=False))

    body = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    return Net(run, body=body, head=nn.Linear(10, 4))


@case(units=[8])
def sizes_of_numpy():
    """A number that is no int of Python is a number in the code."""

    def run(net, x):
        x = net.stem(x)
        return net.head(x.view(x.shape[0], x.shape[1], net.heads, -1).softmax(-1).flatten(2))

    return Net(run, stem=nn.Linear(12, 32), head=nn.Linear(32, 4), heads=np.int64(4))


@pytest.mark.parametrize('name', CASES)
def test_a_cut_model_is_the_masked_original(name):
    make, inputs, units = CASES[name]
    torch.manual_seed(0)
    model = make()
    proof = prove(model, inputs)
    found = list(units_of(proof.graph).values())
    assert [pair if isinstance(want, tuple) else pair[0] for pair, want in zip(found, units)] == units, str(proof.graph)
    assert len(found) == len(units), str(proof.graph)
    assert proof.error < 1e-12
    assert proof.holds


def frozen_kinds(graph, tensor, axis=0):
    return {frozen.kind for frozen in graph.frozen if (frozen.tensor, frozen.axis) == (tensor, axis)}


def on_tokens(run, width=8, outputs=8, **parts):
    """Return a model that puts `run` between two linear layers."""
    return Net(lambda net, x: net.head(run(net.stem(x))), stem=nn.Linear(12, width), head=nn.Linear(outputs, 4), **parts)


class TestFrozen:
    """What depends on the positions of an axis keeps it."""

    @pytest.mark.parametrize(
        ('run', 'kind'),
        [
            (lambda h: h[..., 0:1].expand(-1, -1, 8) + h, 'literal'),
            (lambda h: h[..., 3, None] * h, 'index'),
            (lambda h: h.flip(-1), 'position'),
            (lambda h: h.roll(1, -1), 'position'),
            (lambda h: h.cumsum(-1), 'position'),
            (lambda h: h.sort(-1)[0], 'index'),
            (lambda h: h.topk(8, -1)[0], 'index'),
            (lambda h: h[..., torch.arange(8).flip(0)], 'index'),
            (lambda h: h.index_select(-1, torch.arange(8)), 'index'),
            (lambda h: h * h.argmax(-1, keepdim=True), 'index'),
            (lambda h: h + torch.arange(8), 'constant'),
            (lambda h: h * torch.eye(8)[0], 'constant'),
            (lambda h: F.avg_pool1d(h, 3, 1, 1), 'position'),
            (lambda h: h.gather(-1, torch.zeros(2, 6, 8, dtype=torch.long)), 'index'),
            (lambda h: torch.fft.fft(h).real, 'position'),
            (lambda h: h.tril() if h.dim() == 2 else h.transpose(1, 2).tril().transpose(1, 2), 'position'),
            (lambda h: h.unfold(-1, 8, 1).squeeze(2), 'position'),
        ],
    )
    def test_by_an_operator(self, run, kind):
        model = on_tokens(run)
        graph = channel_units(model, TOKENS)
        assert frozen_kinds(graph, 'stem.weight') == {kind}
        assert not graph.units

    def test_the_output_and_the_kernel(self):
        graph = channel_units(conv(3, 8, 3), IMAGE)
        assert frozen_kinds(graph, 'weight') == {'output'}
        assert frozen_kinds(graph, 'weight', 1) == {'input'}
        assert frozen_kinds(graph, 'weight', 2) == {'kernel'}

    def test_rows_of_an_embedding(self):
        graph = channel_units(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4)), IDS)
        assert frozen_kinds(graph, '0.weight') == {'index'}
        assert list(graph.units) == ['0.weight[1]'] or units_of(graph)

    def test_classes_of_a_loss(self):
        model = Net(lambda net, x, y: F.cross_entropy(net.head(x).flatten(0, 1), y), head=nn.Linear(12, 4))
        graph = channel_units(model, (TOKENS, torch.zeros(12, dtype=torch.long)))
        assert frozen_kinds(graph, 'head.weight') == {'index'}
        assert graph.locked_share() == 0

    def test_layers_that_no_rule_knows(self):
        model = Net(lambda net, x: net.head(net.pair(x, x)), pair=nn.Bilinear(12, 12, 8), head=nn.Linear(8, 4))
        graph = channel_units(model, TOKENS)
        (axis,) = [axis for axis in graph.frozen if (axis.tensor, axis.axis) == ('pair.weight', 0)]
        assert str(axis) == "pair.weight[0] (8): no axis rule for _trilinear in 'pair'"
        assert graph.locked_share() > 0


@custom_op('strop_tests::mix', mutates_args=())
def mix(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


@mix.register_fake
def _(x):
    return torch.empty_like(x)


class TestCustomOperators:
    def test_without_a_rule_its_axes_are_frozen_under_its_name(self):
        graph = channel_units(on_tokens(mix), TOKENS)
        assert not graph.units
        (axis,) = [axis for axis in graph.frozen if (axis.tensor, axis.axis) == ('stem.weight', 0)]
        assert 'strop_tests.mix' in str(axis)
        assert axis.kind == 'rule'

    def test_with_a_rule_they_are_cut(self, monkeypatch):
        register(monkeypatch, lambda call: call.axes(call.args[0]))
        proof = prove(on_tokens(mix), TOKENS)
        assert list(proof.graph.units) == ['stem']
        assert proof.holds

    def test_a_rule_that_gives_other_axes_is_named(self, monkeypatch):
        register(monkeypatch, lambda call: call.axes(call.args[0])[::-1])
        with pytest.raises(GraphError, match=r'The axis rule of strop_tests.mix gave axes .* shape \(2, 6, 8\)'):
            channel_units(on_tokens(mix), TOKENS)


def register(monkeypatch, rule):
    """Register a rule for the custom operator until the test is over."""
    for name in ('_rules', '_found'):
        monkeypatch.setattr(inference, name, dict(getattr(inference, name)))
    axis_rule(torch.ops.strop_tests.mix)(rule)
