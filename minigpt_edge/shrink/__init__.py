"""Makes models smaller: slices tensors to what a plan keeps, refits the rest, trims the vocabulary."""
