"""Dreamer: an actor and a critic that learn in a latent world model's imagination. Parts so far; the algorithm is to come."""
