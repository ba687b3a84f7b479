"""How small the images of a model may get: another way to time, beside narrower layers and fewer blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from strop.compression.calling import call, main_output
from strop.compression.ladder import Rung
from strop.compression.parts import DataParts

#: No image gets smaller than this share of a side.
_LEAST = 0.5


def smaller_sides(model: nn.Module, data: DataParts) -> tuple[list[int], str]:
    """Return which sides images may have, from the largest to half of what the model sees now; if none, why.

    A model takes another size if what it gives has the same shape for it, and is finite: a classifier that averages over all
    places does, one with an embedding for each place does not.

    Args:
        model: The model.
        data: The data as it sees them.
    """
    whole = data.side or data.image_side
    if whole is None:
        return [], 'its inputs are no images'
    wanted = _shape(model, data)
    step = 8 if whole >= 128 else 4 if whole >= 64 else 1
    sides = range((whole - 1) // step * step, 0, -step)  # of small images a pixel is several percent of the time
    name, found, reasons = type(model).__name__, list[int](), list[str]()
    for side in (side for side in sides if side >= _LEAST * whole):
        try:
            fits = _shape(model, data.at(side)) == wanted
            problem = f'{name} gives outputs of another shape for images of {side} pixels'
        except Exception as error:  # whatever a model of the user does
            fits = False
            said = (str(error).splitlines() or [''])[0][:200]
            problem = f'{name} does not take images of {side} pixels ({type(error).__name__}: {said})'
        if fits:
            found.append(side)
        else:
            reasons.append(problem)
    return found, '' if found else [*reasons, f'images of {whole} pixels are too small for it'][0]


def sized(ladder: Sequence[Rung], side: int, whole: int) -> list[Rung]:
    """Return the models of a ladder for smaller images, their times as if they followed the number of pixels.

    Args:
        ladder: The ladder.
        side: The new short side.
        whole: The side that the ladder's times are of.

    >>> sized([Rung({}, (), 4.0, 0.0)], 16, 32)[0].milliseconds
    1.0
    """
    return [replace(rung, side=side, milliseconds=rung.milliseconds * (side / whole) ** 2) for rung in ladder]


def between(sides: Sequence[int], index: int | None) -> list[int]:
    """Return a few sides for which something else must go as well: at quarters of the way to one small enough, and next to it.

    Args:
        sides: From the largest to the smallest.
        index: The place of the first that is small enough by itself; None if none is, and the smallest is then among them.

    >>> between([208, 192, 176, 160, 144, 128], 4)
    [192, 176, 160]
    >>> between([28, 24], 0)
    []
    """
    larger = sides if index is None else sides[:index]
    if not larger:
        return []
    chosen = {larger[quarter * len(larger) // 4] for quarter in (1, 2, 3)}
    return sorted({*chosen, larger[-1]}, reverse=True)


def _shape(model: nn.Module, data: DataParts) -> torch.Size | None:
    inputs = data.example(2)
    with torch.no_grad():
        output = main_output(call(model, inputs), inputs)
    return output.shape if bool(torch.isfinite(output).all()) else None


__all__ = ['between', 'sized', 'smaller_sides']
