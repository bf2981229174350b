"""`test_access` over the sync face."""

from tests.conformance.test_access import *  # noqa: F403
