"""Pruning: importance of channels, ranking under a budget, steps, sparse training, and taking out whole blocks."""

from strop.pruning.budgets import Budget
from strop.pruning.calibration import recalibrate
from strop.pruning.depth import Block, Skip, block_scores, remove_blocks, residual_blocks, skip
from strop.pruning.importance import (
    FPGM,
    IMPORTANCES,
    L1,
    L2,
    LAMP,
    Activation,
    Hessian,
    Importance,
    NormScale,
    Random,
    Taylor,
    build_importance,
    normalised,
    register_importance,
    score,
)
from strop.pruning.pruner import Pruner, prune
from strop.pruning.ranking import Ranking, Selection
from strop.pruning.record import Pruned, PruneRecord, Step, UnitChange
from strop.pruning.schedule import SCHEDULES, milestones
from strop.pruning.sparsity import GroupLasso, ScaleL1, Sparsity
from strop.pruning.transformer import prune_transformer

__all__ = [
    'FPGM', 'IMPORTANCES', 'L1', 'L2', 'LAMP', 'SCHEDULES', 'Activation', 'Block', 'Budget', 'GroupLasso', 'Hessian',
    'Importance', 'NormScale', 'PruneRecord', 'Pruned', 'Pruner', 'Random', 'Ranking', 'ScaleL1', 'Selection', 'Skip',
    'Sparsity', 'Step', 'Taylor', 'UnitChange', 'block_scores', 'build_importance', 'milestones', 'normalised', 'prune',
    'prune_transformer', 'recalibrate', 'register_importance', 'remove_blocks', 'residual_blocks', 'score', 'skip',
]  # fmt: skip
