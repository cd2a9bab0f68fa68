"""Recovery: fine-tuning after pruning, with the dense model as teacher."""
