"""The report: one self-contained page of a comparison or a study, from its JSON."""

from petseg.report.page import write_report
from petseg.report.study import write_study_report

__all__ = ["write_report", "write_study_report"]
