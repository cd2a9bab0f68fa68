"""The report of a build: page, tables, plots; and the page that compares latency reports."""
