"""What an explanation returns: numbers that know what they are about. Pictures, tables and files are made of them."""

from lrp_fx.results.attribution import Attribution, Later, known_ledger, no_ledger
from lrp_fx.results.context import Context, Tokens
from lrp_fx.results.ledger import Entry, Ledger
from lrp_fx.results.notes import Note
from lrp_fx.results.result import Result
from lrp_fx.results.targets import Attributions, Generation
from lrp_fx.results.viewing import view, viewer_data

#: read what ``save`` of any result wrote
load_result = Result.load

__all__ = [
    "Attribution",
    "Attributions",
    "Context",
    "Entry",
    "Generation",
    "Later",
    "Ledger",
    "Note",
    "Result",
    "Tokens",
    "known_ledger",
    "load_result",
    "no_ledger",
    "view",
    "viewer_data",
]
