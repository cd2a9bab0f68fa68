"""Bundles: open, unpack, inspect, verify."""
