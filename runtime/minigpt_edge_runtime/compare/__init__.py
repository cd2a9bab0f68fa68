"""Latency reports side by side: ratios with their spread, and what to know before reading them."""
