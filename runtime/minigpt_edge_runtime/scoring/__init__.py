"""Quality of a model file under any engine: likelihoods, divergences, multiple choice."""
