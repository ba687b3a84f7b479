"""Compression: one recipe from a model, data and a budget to a smaller model with the evidence."""

from strop.compression.artefact import Artefact, load
from strop.compression.budget import Budget, Verdict, verdicts
from strop.compression.chain import Compressed, Compression
from strop.compression.compressing import compress
from strop.compression.data_source import DataSource, open_data
from strop.compression.model_source import ModelSource
from strop.compression.parts import DataParts
from strop.compression.progress import Bars, JsonLines, Progress
from strop.compression.recipe import NamedStage, Recipe, recipe_schema
from strop.compression.scoring import Judge

__all__ = [
    'Artefact', 'Bars', 'Budget', 'Compressed', 'Compression', 'DataParts', 'DataSource', 'JsonLines', 'Judge', 'ModelSource',
    'NamedStage', 'Progress', 'Recipe', 'Verdict', 'compress', 'load', 'open_data', 'recipe_schema', 'verdicts',
]  # fmt: skip
