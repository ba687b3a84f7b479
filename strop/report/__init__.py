"""Reports: what was found, as a table, as JSON and as a picture."""

from strop.report.comparison import Comparison, Row

__all__ = ['Comparison', 'Row']
