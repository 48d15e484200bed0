"""The report: one self-contained page, and the README's table, from a comparison's JSON."""

from petseg.report.page import write_report
from petseg.report.tables import results_table

__all__ = ["results_table", "write_report"]
