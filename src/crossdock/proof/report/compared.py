"""The section of the report that says what was held against what, and what nothing was held against."""

from __future__ import annotations

from dataclasses import fields

from crossdock.proof.report.plots import text
from crossdock.running.verify import VerifyReport


def compared_section(report: VerifyReport) -> str:
    """A row for each part of the output, then what the user said against the source's own configuration."""
    rows = "".join(
        f"<tr><td>{text(one.name.replace('_', ' '))}</td>"
        f"<td>{text(getattr(report.checked, one.name) or 'not compared')}</td></tr>"
        for one in fields(report.checked)
    )
    items = "".join(f"<li>not proven: {text(sentence)}</li>" for sentence in report.unproven)
    return f"<h2>Compared</h2><table><tbody>{rows}</tbody></table>" + (f"<ul>{items}</ul>" if items else "")
