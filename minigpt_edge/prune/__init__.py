"""Pruning: calibrate, decide, cut, refit, trim."""
