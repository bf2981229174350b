"""`test_closing` over the sync face."""

from tests.conformance.test_closing import *  # noqa: F403
