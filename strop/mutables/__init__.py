"""What can vary in a model: domains, the space they form, subnets, and the modules that carry a decision."""

from strop.mutables.binding import Binding, apply_subnet, bind, intercept, mutables_of, space_of
from strop.mutables.channel import (
    Attachment,
    L1MutableChannelUnit,
    MutableChannelUnit,
    OneShotMutableChannelUnit,
    SequentialMutableChannelUnit,
    SlimmableChannelUnit,
    Widths,
    attachments,
    round_width,
)
from strop.mutables.choice import InputChoice, LayerChoice
from strop.mutables.differentiable_op import (
    DiffChoiceRoute,
    DiffMutableOP,
    GumbelChoiceRoute,
    OneHotMutableOP,
    gumbel_weights,
    one_hot,
)
from strop.mutables.domain import AnyOf, Choice, Domain, KOf, Label, OneOf, Ordered, Picks, Weights, domain_from_dict
from strop.mutables.extract import current_subnet, extract, fix
from strop.mutables.mutable import Keyed, Mutable, MutableScope
from strop.mutables.mutable_op import OneShotMutableOP, OneShotProbMutableOP
from strop.mutables.numeric import LAWS, Numeric
from strop.mutables.search_space_file import SearchSpaceFile
from strop.mutables.space import Condition, Guard, Space, chosen
from strop.mutables.subnet import Subnet
from strop.mutables.subnet_file import choices_of, dump_subnet, load_subnet, read_document, subnet_schema
from strop.mutables.value import Expression, MutableValue, OneShotMutableValue, Repeat, ValueChoice, concat, maximum, minimum

__all__ = [
    'AnyOf', 'Attachment', 'Binding', 'Choice', 'Condition', 'DiffChoiceRoute', 'DiffMutableOP', 'Domain', 'Expression',
    'Guard', 'GumbelChoiceRoute', 'InputChoice', 'KOf', 'Keyed', 'L1MutableChannelUnit', 'LAWS', 'Label', 'LayerChoice',
    'Mutable', 'MutableChannelUnit', 'MutableScope', 'MutableValue', 'Numeric', 'OneHotMutableOP', 'OneOf',
    'OneShotMutableChannelUnit', 'OneShotMutableOP', 'OneShotMutableValue', 'OneShotProbMutableOP', 'Ordered', 'Picks',
    'Repeat', 'SearchSpaceFile', 'SequentialMutableChannelUnit', 'SlimmableChannelUnit', 'Space', 'Subnet', 'ValueChoice',
    'Weights', 'Widths',
    'apply_subnet', 'attachments', 'bind', 'choices_of', 'chosen', 'concat', 'current_subnet', 'domain_from_dict',
    'dump_subnet', 'extract', 'fix', 'gumbel_weights', 'intercept', 'load_subnet', 'maximum', 'minimum', 'mutables_of',
    'one_hot', 'read_document', 'round_width', 'space_of', 'subnet_schema',
]  # fmt: skip
