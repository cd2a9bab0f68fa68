"""Scripts that take the figures in the README and docs; their results lie in results/."""
