"""Speed, peak memory, energy and quality of a model file on this machine: latency reports."""
