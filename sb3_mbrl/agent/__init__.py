"""The objects that every agent has: its parts, the trainer of its world model, its recorder, its checkpoints."""
