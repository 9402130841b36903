"""The report: one offline HTML file on a run or a comparison."""

from tskd.report.write import REPORT, update_run_report, write_report

__all__ = ["REPORT", "update_run_report", "write_report"]
