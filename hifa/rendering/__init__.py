"""Rendering: sampling along rays, compositing, and whole images."""
