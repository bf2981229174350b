"""`test_isolation` over the sync face."""

from tests.conformance.test_isolation import *  # noqa: F403
