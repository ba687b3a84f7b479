"""What can vary in a model: domains, the space they form, subnets, and the modules that carry a decision."""

from strop.mutables.domain import AnyOf, Choice, Domain, KOf, Label, OneOf, Ordered, Picks, Weights, domain_from_dict
from strop.mutables.space import Condition, Guard, Space, chosen
from strop.mutables.subnet import Subnet
from strop.mutables.subnet_file import choices_of, dump_subnet, load_subnet, read_document, subnet_schema

__all__ = [
    'AnyOf',
    'Choice',
    'Condition',
    'Domain',
    'Guard',
    'KOf',
    'Label',
    'OneOf',
    'Ordered',
    'Picks',
    'Space',
    'Subnet',
    'Weights',
    'choices_of',
    'chosen',
    'domain_from_dict',
    'dump_subnet',
    'load_subnet',
    'read_document',
    'subnet_schema',
]
