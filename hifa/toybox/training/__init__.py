"""Training of the Toybox models."""
