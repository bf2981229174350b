"""`test_ended` over the sync face."""

from tests.conformance.test_ended import *  # noqa: F403
