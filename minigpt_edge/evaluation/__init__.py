"""Quality of a checkpoint or a model file: bits per byte, multiple choice, translation."""
