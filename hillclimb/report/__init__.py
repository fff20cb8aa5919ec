"""The report: an experiment as one self-contained HTML file."""

from hillclimb.report.build import build_report

__all__ = ["build_report"]
