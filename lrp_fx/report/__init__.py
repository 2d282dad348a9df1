"""The report of a conversion: role, rule and relevance of nodes, why they have them, and files for graph viewers."""

from lrp_fx.report.report import NodeRow, Report, Row, make_report
from lrp_fx.report.why import Reasons

__all__ = ["NodeRow", "Reasons", "Report", "Row", "make_report"]
