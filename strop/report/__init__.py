"""Reports: what was found, as a table, as JSON, as a picture and in the browser."""

from strop.report.comparison import Comparison, Row
from strop.report.compression import CompressionReport
from strop.report.compression_result import CompressionResult, result_schema
from strop.report.compression_runs import RunComparison
from strop.report.dashboard import Dashboard
from strop.report.search_picture import draw_search
from strop.report.space_picture import draw_space
from strop.report.study_view import StudyView

__all__ = [
    'Comparison', 'CompressionReport', 'CompressionResult', 'Dashboard', 'Row', 'RunComparison', 'StudyView', 'draw_search',
    'draw_space', 'result_schema',
]  # fmt: skip
