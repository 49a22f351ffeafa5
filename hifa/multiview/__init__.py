"""Sixteen consistent views of an object from one picture: SyncDreamer on stock diffusers and transformers."""
