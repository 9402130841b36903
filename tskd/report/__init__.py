"""The report: one offline HTML file on a run or a comparison."""

from tskd.report.write import REPORT, write_report, write_run_report

__all__ = ["REPORT", "write_report", "write_run_report"]
