"""`test_timeouts_leave_nothing` over the sync face."""

from tests.conformance.test_timeouts_leave_nothing import *  # noqa: F403
