"""The report of a build: page, tables, plots."""
