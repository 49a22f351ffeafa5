"""2D priors: one file for each family of diffusion model."""
