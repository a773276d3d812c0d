"""Environments: world models as environments, small environments, and known functions of well-known ones."""
