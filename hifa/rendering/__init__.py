"""Rendering: where to sample rays, how to composite them, and whole images."""
