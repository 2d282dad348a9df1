"""Verification: a conversion compared with the model and with autograd, and its accounts checked."""

from lrp_fx.verify.result import RoleCheck, Verification
from lrp_fx.verify.verify import verify

__all__ = ["RoleCheck", "Verification", "verify"]
