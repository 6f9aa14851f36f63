"""Settings of the property tests in this folder."""

from hypothesis import settings

# No deadline: a test says nothing about the load of the machine that it runs on.
settings.register_profile("pipelines", deadline=None)
settings.load_profile("pipelines")
