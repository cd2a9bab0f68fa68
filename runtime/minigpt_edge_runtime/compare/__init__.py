"""Latency reports side by side: ratios with their spread, what to know before reading them, a page."""
