"""Export: a subnet or pruned model as recipe and weights, a `torch.export` program, ONNX; each compared with its model."""

from __future__ import annotations

from strop.export.comparison import ExportedFile, Inputs, random_inputs
from strop.export.convert import FORMATS, export
from strop.export.factory import supernet_config
from strop.export.layer_times import LayerTime, LayerTimes, layer_times
from strop.export.programs import export_onnx, export_program
from strop.export.pruned_architecture import RecipeArchitecture
from strop.export.recipe import load_recipe, plain_subnet, read_recipe, recipe_schema, save_recipe
from strop.export.runtime_times import RuntimeFile, RuntimeTimes, measure_runtimes
from strop.export.slim import load_slim, save_slim

__all__ = [
    'FORMATS', 'ExportedFile', 'Inputs', 'LayerTime', 'LayerTimes', 'RecipeArchitecture', 'RuntimeFile', 'RuntimeTimes',
    'export', 'export_onnx', 'export_program', 'layer_times', 'load_recipe', 'load_slim', 'measure_runtimes', 'plain_subnet',
    'random_inputs', 'read_recipe', 'recipe_schema', 'save_recipe', 'save_slim', 'supernet_config',
]  # fmt: skip
