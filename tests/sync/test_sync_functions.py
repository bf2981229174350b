"""`test_functions` over the sync face."""

from tests.conformance.test_functions import *  # noqa: F403
