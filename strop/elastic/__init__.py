"""Models at an active width: any traced model, and single layers."""

from strop.elastic.widths import ElasticWidths, l1_scores

__all__ = ['ElasticWidths', 'l1_scores']
