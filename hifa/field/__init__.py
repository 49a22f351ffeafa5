"""Radiance field and its encodings."""

from .radiance_field import RadianceField


__all__ = ["RadianceField"]
