"""The base model and its parts."""
