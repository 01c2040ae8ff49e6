"""What all tests share."""

from hypothesis import settings

# A busy machine is no failure: no test has a time limit.
settings.register_profile("recsys", deadline=None)
settings.load_profile("recsys")
