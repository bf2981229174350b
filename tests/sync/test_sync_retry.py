"""`test_retry` over the sync face."""

from tests.conformance.test_retry import *  # noqa: F403
