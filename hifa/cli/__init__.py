"""Command line of HiFA."""
