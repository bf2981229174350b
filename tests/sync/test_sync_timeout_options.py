"""`test_timeout_options` over the sync face."""

from tests.conformance.test_timeout_options import *  # noqa: F403
