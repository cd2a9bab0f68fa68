"""Quality of a file under any engine."""
