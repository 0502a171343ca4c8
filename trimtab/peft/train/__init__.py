"""How a method is trained: recipe, examples, the Trainer, checkpoints."""
