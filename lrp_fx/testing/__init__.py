"""For test suites: whether explanations of a model hold, and at which node and line they do not."""

from lrp_fx.testing.check import assert_explainable, check
from lrp_fx.testing.result import Check, Failure, Measured
from lrp_fx.testing.suites import ExplainTesterMixin, explain_test

__all__ = ["Check", "ExplainTesterMixin", "Failure", "Measured", "assert_explainable", "check", "explain_test"]
