"""The building blocks of world models and policies: layers, heads, output and action distributions, latents."""
