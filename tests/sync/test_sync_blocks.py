"""`test_blocks` over the sync face."""

from tests.conformance.test_blocks import *  # noqa: F403
