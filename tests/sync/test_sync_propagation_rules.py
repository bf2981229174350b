"""`test_propagation_rules` over the sync face."""

from tests.conformance.test_propagation_rules import *  # noqa: F403
