"""The machinery of stages: directories, locks, processes, console, events, sweeps, fetched packages."""
