"""Raw inputs: texts become what a model takes, and tokens that results know."""

from lrp_fx.encode.texts import Encoded, TextEncoder, are_texts

__all__ = ["Encoded", "TextEncoder", "are_texts"]
