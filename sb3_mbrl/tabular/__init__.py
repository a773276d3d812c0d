"""Finite states and actions: counted transitions, and planning on them."""
