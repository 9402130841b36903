"""Phantoms: procedural images of five modalities with exact masks, the data that needs no download."""

from tskd.data.phantoms.family import Family
from tskd.data.phantoms.write import FAMILIES, Phantom, draw_phantom, write_phantoms

__all__ = ["FAMILIES", "Family", "Phantom", "draw_phantom", "write_phantoms"]
