"""`test_propagation` over the sync face."""

from tests.conformance.test_propagation import *  # noqa: F403
