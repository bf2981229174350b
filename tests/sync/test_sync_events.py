"""`test_events` over the sync face."""

from tests.conformance.test_events import *  # noqa: F403
