"""How a comparison looks: report.json, report.md, report.html."""
