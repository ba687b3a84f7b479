"""How a model is wired: trace it, find the axes that hang together, cut them."""

from strop.graph.inference import Call, axis_rule, length_rule
from strop.graph.proof import Proof, prove, verify
from strop.graph.slicing import Slicing
from strop.graph.units import ChannelGraph, ChannelUnit, FrozenAxis, Placement, channel_units

__all__ = [
    'Call',
    'ChannelGraph',
    'ChannelUnit',
    'FrozenAxis',
    'Placement',
    'Proof',
    'Slicing',
    'axis_rule',
    'channel_units',
    'length_rule',
    'prove',
    'verify',
]
