"""One file per verb: options in, one call, output."""
