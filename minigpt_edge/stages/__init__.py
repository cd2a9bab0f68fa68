"""The machinery of stages: directories, locks, processes, memory, console, events, sweeps, downloads."""
