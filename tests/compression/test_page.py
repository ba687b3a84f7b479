"""The README of an artefact."""

from __future__ import annotations

from strop.compression.model_source import ModelSource
from strop.compression.page import readme
from strop.report.compression_result import (
    CompressionResult,
    DataSource,
    Export,
    Measurement,
    Outcome,
    Stage,
    StageResources,
)
from strop.report.compression_result import ModelSource as Named


def test_it_tells_scores_files_times_reasons_and_warnings():
    result = CompressionResult(
        model=Named('net', 'demo:net'),
        data=DataSource('digits'),
        outcome=Outcome(False, ['The budget macs is NOT met.']),
        stages=[
            Stage('source', 'source', resources=StageResources(1000, 200, 0.8), scores={'accuracy': 0.9}),
            Stage(
                'prune',
                'prune',
                resources=StageResources(500, 100, 0.4),
                scores={'accuracy': 0.8},
                explanation=['Because.'],
                warnings=['Oh.'],
            ),
        ],
        exports=[Export('exports/model.pt2', 'pt2', 'torch', None, 1234)],
        measurements=[Measurement('prune', 'eager', 'f32', 1, 2, 1.5, 1.4, 1.7, 9)],
    )
    text = readme(result, ModelSource('my_nets:make'))
    assert "model = strop.load(folder, allow='my_nets')" in text
    assert '| prune | 500 | 100 | 0.400 | accuracy 0.8000 |' in text
    assert '| `exports/model.pt2` | torch | f32 | not run here | 1,234 |' in text
    assert '| prune | eager | f32 | 2 | 1.500 | 1.400 to 1.700 |' in text
    assert '- The budget macs is NOT met.' in text
    assert '- Because.' in text
    assert '- Oh.' in text
    assert 'factory=make' in readme(result, None)
