"""`test_lock_timeouts` over the sync face."""

from tests.conformance.test_lock_timeouts import *  # noqa: F403
