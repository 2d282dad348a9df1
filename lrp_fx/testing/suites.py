"""For suites of many models: a mixin for test classes with a list of model classes, and a test over names of models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from torch import nn

from lrp_fx.converted import RuleSource
from lrp_fx.explain import Target
from lrp_fx.extras import require
from lrp_fx.testing.check import assert_explainable

#: inputs of ``forward``: one value, a tuple of values, or a mapping by keyword
Inputs = Any


class ExplainTesterMixin:
    """``test_explain`` for test classes in the style of transformers.

    Such a class has ``all_model_classes`` and a ``model_tester`` whose ``prepare_config_and_inputs_for_common`` returns
    a configuration and inputs by keyword; if it has ``_prepare_for_class``, inputs go through it. The order of mixins
    does not matter::

        class LlamaModelTest(ModelTesterMixin, ExplainTesterMixin, unittest.TestCase): ...

    Attributes:
        explain_rules: the rule set to check.
        explain_target: the target, as in :func:`lrp_fx.testing.check`.
        explain_skip: name of a model class -> why it is skipped.
    """

    explain_rules: ClassVar[RuleSource] = "default"
    explain_target: ClassVar[Target] = None
    explain_skip: ClassVar[Mapping[str, str]] = {}

    def test_explain(self) -> None:
        """Explanations of every model class hold."""
        suite: Any = self
        config, inputs = suite.model_tester.prepare_config_and_inputs_for_common()
        for model_class in suite.all_model_classes:
            if model_class.__name__ in self.explain_skip:
                continue
            with suite.subTest(model_class.__name__):
                prepare = getattr(suite, "_prepare_for_class", None)
                chosen = dict(inputs) if prepare is None else prepare(copy.deepcopy(inputs), model_class)
                model = model_class(copy.deepcopy(config)).eval()
                assert_explainable(model, rules=self.explain_rules, target=self.explain_target, **chosen)


def explain_test(
    names: Iterable[str],
    create: Callable[[str], nn.Module],
    inputs: Callable[[nn.Module], Inputs],
    *,
    rules: RuleSource = "default",
    target: Target = None,
) -> Callable[..., None]:
    """A pytest test over names of models; assign it to a name that pytest collects::

        test_explain = explain_test(timm.list_models(), timm.create_model, images)

    Args:
        names: names of the models.
        create: makes the model of a name.
        inputs: makes inputs for a model: one value, a tuple, or a mapping by keyword.
        rules: the rule set to check.
        target: the target, as in :func:`lrp_fx.testing.check`.

    Raises:
        MissingExtraError: if pytest is not installed.
    """
    pytest: Any = require("pytest", "testing")

    @pytest.mark.parametrize("model_name", list(names))
    def test(model_name: str) -> None:
        model = create(model_name).eval()
        example = inputs(model)
        args = () if isinstance(example, Mapping) else example if isinstance(example, tuple) else (example,)
        keywords = example if isinstance(example, Mapping) else {}
        assert_explainable(model, *args, rules=rules, target=target, **keywords)

    return test
