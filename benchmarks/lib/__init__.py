"""What the benchmarks share: models and their stages, extra methods, files, where results lie."""
