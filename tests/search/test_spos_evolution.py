from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from strop.errors import ConfigError
from strop.mutables import InputChoice, LayerChoice, SearchSpaceFile, ValueChoice, extract
from strop.mutators import apply_fixed_architecture
from strop.search import NoMoreTrialError, SPOSTuner, TunerStrategy, run


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice([nn.Linear(4, 4), nn.Identity(), nn.Tanh()], key='op')
        self.skip = InputChoice(n_candidates=3, n_chosen=2, key='skip')
        self.any = InputChoice(n_candidates=2, key='any')
        self.scale = ValueChoice([1, 2], key='scale')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.op(x)
        more = self.any([x, y])
        out = self.skip([x, y, x * y]) * self.scale()
        return out if more is None else out + more


FILE = SearchSpaceFile.of(Net())
SETTINGS: dict[str, Any] = {'num_select': 2, 'num_population': 6, 'num_crossover': 2, 'num_mutation': 2}


def reward(parameters: dict) -> float:
    return parameters['op']['_idx'] + len(parameters['any']['_idx']) + parameters['scale']


def play(tuner: SPOSTuner, trials: int) -> list[dict]:
    tuner.update_search_space(FILE.to_dict())
    every = []
    for number in range(trials):
        parameters = tuner.generate_parameters(number)
        tuner.receive_trial_result(number, parameters, reward(parameters))
        tuner.trial_end(number, True)
        every.append(parameters)
    return every


def test_checkpoints_are_one_boolean_a_candidate_and_are_read_again(tmp_path: Path) -> None:
    tuner = SPOSTuner(max_epochs=3, checkpoints=tmp_path, **SETTINGS)
    every = play(tuner, 14)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f'{e:03d}_{rank:03d}.json' for e in range(2) for rank in range(2)
    ]
    best = sorted(every[:12], key=reward, reverse=True)[0]
    content = json.loads((tmp_path / '001_000.json').read_text())
    assert reward(FILE.parameters(FILE.subnet(content))) == reward(best)
    assert {key: len(mask) for key, mask in content.items()} == {'op': 3, 'skip': 3, 'any': 2, 'scale': 2}
    assert all(type(item) is bool for mask in content.values() for item in mask)
    torch.manual_seed(0)
    supernet, x = Net(), torch.randn(2, 4)
    expected = extract(supernet, content)(x)
    assert torch.equal(apply_fixed_architecture(supernet, tmp_path / '001_000.json')(x), expected)


def test_rounds_are_of_the_population_and_end() -> None:
    tuner = SPOSTuner(max_epochs=2, checkpoints=None, **SETTINGS)
    every = play(tuner, 12)
    assert len({json.dumps(parameters) for parameters in every}) == 12
    with pytest.raises(NoMoreTrialError, match='The 2 rounds of 6 trials are over'):
        tuner.generate_parameters(12)


def test_a_space_smaller_than_the_population_ends_instead_of_looping() -> None:
    tuner = SPOSTuner(checkpoints=None)
    tuner.update_search_space({'op': {'_type': 'layer_choice', '_value': ['a', 'b', 'c']}})
    assert len(tuner.generate_multiple_parameters(list(range(10)))) == 3


def test_illegal_candidates_are_not_proposed() -> None:
    class Light(SPOSTuner):
        def _is_legal(self, cand: dict) -> bool:
            return cand['op']['_value'] != '0' and cand['scale'] == 1

    every = play(Light(checkpoints=None, **SETTINGS), 12)
    assert all(parameters['op']['_idx'] != 0 and parameters['scale'] == 1 for parameters in every)


def test_its_seed_alone_decides() -> None:
    first, second, other = (play(SPOSTuner(checkpoints=None, seed=seed, **SETTINGS), 12) for seed in (1, 1, 2))
    assert first == second != other


def test_it_runs_as_a_strategy_and_finds_the_best(tmp_path: Path) -> None:
    tuner = SPOSTuner(max_epochs=8, checkpoints=tmp_path, **SETTINGS)
    result = run(FILE.space, lambda subnet: reward(FILE.parameters(subnet)), strategy=TunerStrategy(tuner, FILE), trials=200)
    assert len(result.trials) == 48
    assert result.stopped == 'exhausted'
    assert result.best.values == {'score': 6.0}
    assert len(list(tmp_path.iterdir())) == 16


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match='`max_epochs` must be at least 1'):
        SPOSTuner(max_epochs=0)
    with pytest.raises(ConfigError, match='mutations'):
        SPOSTuner(num_population=10)
