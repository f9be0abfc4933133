"""The sections of a report, a file each; one whose figures a run lacks is empty.

`as_html(report, metrics)` is a section of the page, of what report.json holds and the lines of metrics.jsonl;
`as_markdown(report)` the paragraphs of the same.
"""
