"""Export, choice of type, measurement, bundle with its model card and Modelfile."""
