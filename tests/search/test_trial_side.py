from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from strop.errors import ComponentTypeError, ConfigError, ModeError
from strop.search import trial_side
from strop.search.trial_side import (
    METRICS,
    TrialReportError,
    get_current_parameter,
    get_experiment_id,
    get_next_parameter,
    get_sequence_id,
    get_trial_id,
    read_report,
    report_final_result,
    report_intermediate_result,
    write_parameters,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The process is in trial 7 of the search `mine`."""
    folder = tmp_path / 'mine' / 'trial'
    write_parameters(folder, {'lr': 0.1, 'op': {'_value': 'a', '_idx': 0}}, number=7)
    monkeypatch.setenv('STROP_TRIAL_DIR', str(folder))
    return folder


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('STROP_TRIAL_DIR', raising=False)
    monkeypatch.setattr(trial_side, '_state', trial_side._State())


class TestInATrial:
    def test_parameters_are_handed_out_once_and_kept(self, folder: Path) -> None:
        assert get_next_parameter() == {'lr': 0.1, 'op': {'_value': 'a', '_idx': 0}}
        assert get_next_parameter() is None
        assert get_current_parameter('lr') == 0.1
        assert get_current_parameter() == {'lr': 0.1, 'op': {'_value': 'a', '_idx': 0}}
        assert get_current_parameter('momentum') is None

    def test_its_names(self, folder: Path) -> None:
        assert (get_experiment_id(), get_trial_id(), get_sequence_id()) == ('mine', 'trial', 7)

    def test_results_are_read_by_the_search(self, folder: Path) -> None:
        for epoch in range(3):
            report_intermediate_result(epoch / 10)
        report_final_result({'default': 0.5, 'latency': np.float32(2.0), 'note': 'fine', 'curve': np.array([1, 2])})
        report = read_report(folder)
        assert report.value == 0.5
        assert report.more == {'latency': 2.0, 'note': 'fine', 'curve': [1, 2]}
        assert report.intermediate == (0.0, 0.1, 0.2)

    @pytest.mark.parametrize(
        'metric',
        [1, 1.0, np.float32(1), np.int64(1), np.array(1.0), np.array([1.0]), torch.tensor(1.0), {'default': torch.tensor(1)}],
    )
    def test_every_kind_of_number(self, folder: Path, metric: object) -> None:
        report_final_result(metric)
        assert read_report(folder).value == 1.0

    @pytest.mark.parametrize(
        'metric', ['0.93', None, True, [0.9], np.array([0.1, 0.2]), object(), {'accuracy': 0.9}, {'default': 'x'}]
    )
    @pytest.mark.parametrize('report', [report_final_result, report_intermediate_result])
    def test_what_is_no_number_is_refused_at_once(self, folder: Path, report: object, metric: object) -> None:
        with pytest.raises(ComponentTypeError, match=r"mapping with the number (to optimize )?under 'default'"):
            report(metric)  # type: ignore[operator]
        assert not (folder / METRICS).exists()

    def test_a_second_final_result_is_refused_and_the_first_stands(self, folder: Path) -> None:
        report_final_result(0.5)
        with pytest.raises(ModeError, match=r'called twice, the second time with 0\.7; the first result stands'):
            report_final_result(0.7)
        assert read_report(folder).value == 0.5

    def test_another_process_of_the_trial_knows_of_the_final_result(self, folder: Path) -> None:
        report_final_result(0.5)
        trial_side._state = trial_side._State()
        with pytest.raises(ModeError, match='called twice'):
            report_final_result(0.7)

    def test_a_folder_without_parameters(self, folder: Path) -> None:
        (folder / 'parameters.json').unlink()
        with pytest.raises(ConfigError, match=r'has no parameters\.json\. Unset the variable'):
            get_next_parameter()
        (folder / 'parameters.json').write_text('{"lr":')
        with pytest.raises(ConfigError, match='is not JSON'):
            get_next_parameter()
        (folder / 'parameters.json').write_text('{"lr": 3}')
        with pytest.raises(ConfigError, match='must hold'):
            get_next_parameter()


class TestStandalone:
    def test_no_parameters_and_one_warning(self, alone: None) -> None:
        with pytest.warns(UserWarning, match='runs standalone'):
            assert get_next_parameter() == {}
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert get_next_parameter() == {}
            assert get_current_parameter('lr') is None

    def test_results_are_printed(self, alone: None, capsys: pytest.CaptureFixture[str]) -> None:
        report_intermediate_result(0.5)
        report_final_result(np.float64(0.75))
        report_final_result({'default': 1})
        out = capsys.readouterr().out.splitlines()
        assert out == ['intermediate result: 0.5', 'final result: 0.75', 'final result: {"default": 1}']

    def test_its_names(self, alone: None) -> None:
        assert (get_experiment_id(), get_trial_id(), get_sequence_id()) == ('STANDALONE', 'STANDALONE', 0)


class TestReports:
    @pytest.mark.parametrize(
        ('lines', 'text'),
        [
            ([], r'ended without a result: it must call report_final_result'),
            ([('intermediate', 0.5)], 'ended without a result'),
            ([('final', 0.5), ('final', 0.6)], 'reported 2 final results, 0.5 and then 0.6'),
            ([('final', float('nan'))], 'must be a finite number, but it reported nan'),
            ([('final', float('inf'))], 'must be a finite number, but it reported inf'),
            ([('final', 'good')], "must be a finite number, but it reported 'good'"),
            ([('final', True)], 'must be a finite number, but it reported True'),
            ([('final', {'accuracy': 1})], 'must be a finite number, but it reported None'),
        ],
    )
    def test_a_report_that_is_no_result(self, tmp_path: Path, lines: list, text: str) -> None:
        content = [json.dumps({'type': kind, 'sequence': 0, 'value': value}) for kind, value in lines]
        (tmp_path / METRICS).write_text('\n'.join(content))
        with pytest.raises(TrialReportError, match=text):
            read_report(tmp_path)

    def test_a_half_written_last_line_is_left_out(self, tmp_path: Path) -> None:
        (tmp_path / METRICS).write_text('{"type": "final", "sequence": 0, "value": 0.5}\n{"type": "interm')
        assert read_report(tmp_path).value == 0.5

    def test_garbage_is_told(self, tmp_path: Path) -> None:
        (tmp_path / METRICS).write_text('hello\n{"type": "final", "sequence": 0, "value": 0.5}\n')
        with pytest.raises(TrialReportError, match=r"Line 1 of .* is no report of a trial: 'hello'"):
            read_report(tmp_path)

    def test_nan_is_reported_and_counts_as_no_result(self, folder: Path) -> None:
        report_final_result(float('nan'))
        with pytest.raises(TrialReportError, match='finite number, but it reported nan'):
            read_report(folder)
