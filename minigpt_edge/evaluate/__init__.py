"""Quality of a checkpoint, measured with torch."""
