"""What world models and policies are made of: layers, output distributions, latents."""
