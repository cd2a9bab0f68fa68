"""Which tokens are kept, and the tokenizer without the others."""
