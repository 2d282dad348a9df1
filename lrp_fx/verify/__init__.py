"""Verification: a conversion held to the model, to autograd and to its own accounts."""

from lrp_fx.verify.result import RoleCheck, Verification
from lrp_fx.verify.verify import verify

__all__ = ["RoleCheck", "Verification", "verify"]
