"""Latency reports."""
