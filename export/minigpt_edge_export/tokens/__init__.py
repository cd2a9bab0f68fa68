"""What the tokens of a checkpoint mean: which begin and end texts, and what prompts are made of them."""
