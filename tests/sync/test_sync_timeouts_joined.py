"""`test_timeouts_joined` over the sync face."""

from tests.conformance.test_timeouts_joined import *  # noqa: F403
