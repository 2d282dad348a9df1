"""For test suites: check explanations of a model; failures name node, module path and source line."""

from lrp_fx.testing.check import assert_explainable, check
from lrp_fx.testing.result import Check, Failure, Measured
from lrp_fx.testing.suites import ExplainTesterMixin, explain_test

__all__ = ["Check", "ExplainTesterMixin", "Failure", "Measured", "assert_explainable", "check", "explain_test"]
