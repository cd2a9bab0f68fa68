"""From prompt to text."""
