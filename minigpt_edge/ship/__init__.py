"""Export, choice of type, measurement, bundle."""
