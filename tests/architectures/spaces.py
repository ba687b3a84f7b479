"""Configs that several tests use."""

from __future__ import annotations

from typing import Any

SHUFFLE: dict[str, Any] = {
    'type': 'OneShotMutableOP',
    'candidates': {
        'shuffle_3x3': {'type': 'ShuffleBlock', 'kernel_size': 3},
        'shuffle_5x5': {'type': 'ShuffleBlock', 'kernel_size': 5},
        'shuffle_7x7': {'type': 'ShuffleBlock', 'kernel_size': 7},
        'shuffle_xception': {'type': 'ShuffleXception'},
    },
}

MOBILE: dict[str, Any] = {
    '_scope_': 'mmrazor',
    'type': 'OneShotMutableOP',
    'candidates': {
        'mb_k3e3': {'type': 'MBBlock', 'kernel_size': 3, 'expand_ratio': 3, 'act_cfg': {'type': 'ReLU6'}},
        'mb_k5e6': {'type': 'MBBlock', 'kernel_size': 5, 'expand_ratio': 6, 'act_cfg': {'type': 'ReLU6'}},
        'identity': {'type': 'Identity'},
    },
}


def shuffle_rows(*rows: tuple[int, int]) -> list[list[Any]]:
    """Rows of an `arch_setting` with the four candidates of SPOS."""
    return [[channels, blocks, SHUFFLE] for channels, blocks in rows]


def decide_all(model: Any, place: int) -> None:
    """Choose candidate `place` (from the end, where there are fewer) in every choice of a model."""
    from strop.mutables.choice import LayerChoice

    for module in model.modules():
        if isinstance(module, LayerChoice):
            module.decide(min(place, len(module) - 1))
