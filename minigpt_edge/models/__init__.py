"""The base model: read, loaded and run; `archs/` has what torch needs of each architecture."""
