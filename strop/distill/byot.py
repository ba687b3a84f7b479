"""The distiller of a network that teaches itself."""

from __future__ import annotations

from typing import Any

import torch

from strop.distill.distiller import ConfigurableDistiller
from strop.distill.recorders import mapped
from strop.registry import MODELS


@MODELS.register_module()
class BYOTDistiller(ConfigurableDistiller):
    """A distiller whose teacher is the student: no gradient goes back through what the teacher's recorders saw.

    Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation, ICCV 2019, https://arxiv.org/abs/1905.08094.

    What pooling leaves of the teacher's maps, (batch, channels, 1, 1), is given as the vectors that a `BYOTConnector` gives.
    MMRazor's configs record it so, and its losses broadcast the two against each other, which compared every pair of images.

    Args, Raises: as `ConfigurableDistiller`.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> distiller = BYOTDistiller(teacher_recorders=dict(late=dict(type='ModuleOutputs', source='1')))
    >>> with distiller.record(None, net):
    ...     _ = net(torch.ones(1, 2))
    >>> distiller.get_record('late', from_student=False).requires_grad
    False
    """

    def get_record(
        self,
        recorder: str,
        from_student: bool,
        record_idx: int = 0,
        data_idx: int | str | None = None,
        connector: str | None = None,
        connector_idx: int | None = None,
    ) -> Any:
        """Return what was recorded, detached if it is the teacher's; see `ConfigurableDistiller.get_record`."""
        data = super().get_record(recorder, from_student, record_idx, data_idx, connector, connector_idx)
        return data if from_student else mapped(data, _taught)


def _taught(feature: torch.Tensor) -> torch.Tensor:
    pooled = feature.ndim > 2 and set(feature.shape[2:]) == {1}
    return (feature.flatten(1) if pooled else feature).detach()
