"""Loops over time that a model runs in Python, as one operator for any number of steps.

Export writes out every step of ``for t in range(x.shape[1])`` and fixes the length. Such a model is exported at two
short lengths instead. In both graphs the steps become one :class:`lrp_fx.graph.loop.CapturedLoop`; sizes that differ
between both follow from the length. The result is compared with the model at every length that it serves.
"""
