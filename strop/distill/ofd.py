"""The distiller of overhauled feature distillation, whose margins come from the teacher's batch norms."""

from __future__ import annotations

from torch import nn

from strop.distill.distiller import ConfigurableDistiller
from strop.distill.sources import find_module
from strop.errors import ComponentTypeError, ConfigError
from strop.registry import MODELS


@MODELS.register_module()
class OFDDistiller(ConfigurableDistiller):
    """A distiller that gives each `OFDTeacherConnector` the margins of the batch norm whose output passes through it.

    Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation, ICCV 2019,
    https://arxiv.org/abs/1904.01866.

    Args, Raises: as `ConfigurableDistiller`.

    >>> import torch
    >>> distiller = OFDDistiller(
    ...     student_recorders=dict(norm=dict(type='ModuleOutputs', source='1')),
    ...     teacher_recorders=dict(norm=dict(type='ModuleOutputs', source='1')),
    ...     connectors=dict(margin=dict(type='OFDTeacherConnector')),
    ...     distill_losses=dict(loss_ofd=dict(type='OFDLoss')),
    ...     loss_forward_mappings=dict(
    ...         loss_ofd=dict(
    ...             s_feature=dict(from_student=True, recorder='norm'),
    ...             t_feature=dict(from_student=False, recorder='norm', connector='margin'),
    ...         )
    ...     ),
    ... )
    >>> distiller.prepare_from_teacher(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)))
    >>> distiller.connectors['margin'].margin.shape
    torch.Size([1, 2, 1, 1])
    """

    def prepare_from_teacher(self, model: nn.Module) -> None:
        """Find the sources of the teacher's recorders, and take the margins from them.

        Raises:
            ConfigError: If a source is not there, or none is a batch norm.
        """
        super().prepare_from_teacher(model)
        self.init_ofd_connectors(model)

    def init_ofd_connectors(self, teacher: nn.Module) -> None:
        """Take the margins from the teacher's batch norms as they are now.

        Raises:
            ConfigError: If what passes through a connector of margins is not the output of a batch norm.
        """
        for loss, records in self.loss_forward_mappings.items():
            for record in records.values():
                connector = self.connectors[record['connector']] if record.get('connector') else None
                if record['from_student'] or not hasattr(connector, 'init_margin'):
                    continue
                name, source = record['connector'], self.teacher_recorders.get_recorder(record['recorder']).source
                try:
                    connector.init_margin(find_module(teacher, source))  # type: ignore[union-attr,operator]
                except (ComponentTypeError, ConfigError) as error:
                    raise ConfigError(
                        f'The loss {loss!r} gets {source!r} of the teacher through the connector {name!r}: {error}'
                    ) from error
