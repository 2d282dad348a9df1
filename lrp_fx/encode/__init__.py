"""Raw inputs: encodes texts, chats, images and sound as model inputs, with tokens and notes for results."""

from lrp_fx.encode.calls import encoded_call
from lrp_fx.encode.encoded import Encoded
from lrp_fx.encode.encoder import KINDS, InputEncoder, Raw, kind_of
from lrp_fx.encode.images import open_image
from lrp_fx.encode.sounds import decoded_sound, open_sound
from lrp_fx.encode.texts import Text, TextEncoder, Tokenized, are_texts

__all__ = [
    "KINDS",
    "Encoded",
    "InputEncoder",
    "Raw",
    "Text",
    "TextEncoder",
    "Tokenized",
    "are_texts",
    "decoded_sound",
    "encoded_call",
    "kind_of",
    "open_image",
    "open_sound",
]
