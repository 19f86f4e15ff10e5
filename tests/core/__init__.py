"""Tests of the compiled core: no Redis, and no socket but in the fan-out's."""
