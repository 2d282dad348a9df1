"""Results of explanations: relevance with context, ledger and notes; tables, figures and files of them."""

from lrp_fx.results.accounts import Accounting, computed_ledger, no_ledger
from lrp_fx.results.attribution import Attribution, Later
from lrp_fx.results.context import Context, Normalization, Tokens
from lrp_fx.results.ledger import Entry, Ledger
from lrp_fx.results.notes import Note
from lrp_fx.results.result import Result
from lrp_fx.results.stored import Stored
from lrp_fx.results.targets import Attributions, Generation
from lrp_fx.results.viewing import view, viewer_data

#: read a file written by ``save`` of any result
load_result = Stored.load

__all__ = [
    "Accounting",
    "Attribution",
    "Attributions",
    "Context",
    "Entry",
    "Generation",
    "Later",
    "Ledger",
    "Normalization",
    "Note",
    "Result",
    "Stored",
    "Tokens",
    "computed_ledger",
    "load_result",
    "no_ledger",
    "view",
    "viewer_data",
]
