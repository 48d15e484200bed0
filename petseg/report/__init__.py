"""The report: one self-contained page of a comparison or a study, and the README's table, from JSON."""

from petseg.report.page import write_report
from petseg.report.study import write_study_report
from petseg.report.tables import results_table

__all__ = ["results_table", "write_report", "write_study_report"]
