"""Texts: corpora, splits, windows, domains, questions."""
