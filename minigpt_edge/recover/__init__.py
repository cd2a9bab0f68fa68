"""Recovery: fine-tuning after pruning."""
