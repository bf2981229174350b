"""`test_timeouts` over the sync face."""

from tests.conformance.test_timeouts import *  # noqa: F403
