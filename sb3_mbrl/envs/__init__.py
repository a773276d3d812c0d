"""Environments: world models as environments, and what is known of real ones."""
