"""One module per command; each is a click command that imports what it needs when it runs."""
