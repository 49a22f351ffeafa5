"""2D priors, with one module for each family of diffusion models."""
