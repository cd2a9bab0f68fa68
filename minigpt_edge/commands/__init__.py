"""One file per command or kind of command: options in, one call, output."""
